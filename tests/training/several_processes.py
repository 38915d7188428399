"""Script that tests/training/test_several_processes.py starts by `accelerate launch`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from toy_objective import ToyLoader, toy

from ssl_vivit.errors import RunError
from ssl_vivit.training import Moment, OptimConfig, Periodic, TrainingConfig, fit

RANK = int(os.environ["RANK"])
embedded: list[float] = []
layers: list[int] = []
sharded: set[str] = set()


def config(folder: Path, **changes) -> TrainingConfig:
    settings = {
        "run_dir": str(folder),
        "steps": 6,
        "total_batch_size": 8,
        "accumulation": 2,
        "checkpoint_every": 3,
        "log_every": 1,
        "tracker": "none",
        **changes,
    }
    return TrainingConfig(optimizer=OptimConfig(learning_rate=0.5, warmup_steps=2), **settings)


class Poisoned(ToyLoader):
    """Batches in which the last process has NaN samples at step 5."""

    def stream(self, split, *, start_step, device):
        for micro, batch in enumerate(super().stream(split, start_step=start_step, device=device)):
            if split.rank == split.world_size - 1 and micro // split.accumulation + start_step == 4:
                batch["target"] = batch["target"] * float("nan")
            yield batch


class Broken(ToyLoader):
    """Batches in which the last process raises a data error."""

    def stream(self, split, *, start_step, device):
        for micro, batch in enumerate(super().stream(split, start_step=start_step, device=device)):
            if split.rank == split.world_size - 1 and micro == 5:
                raise ValueError("data.shards: clevrer-train-000001.tar is cut off")
            yield batch


def strike_one(moment: Moment) -> None:
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGTERM)


def embed(moment: Moment) -> dict[str, float]:
    x = torch.ones(1, 6, dtype=torch.float64)
    sharded.update(
        type(module).__name__ for module in moment.model.modules() if isinstance(module, FSDPModule)
    )
    embedded.append(moment.call("embed", x).sum().item())
    method, depth = vars(moment.accelerator.unwrap_model(moment.model)).get("embed"), 0
    while method := getattr(method, "__wrapped__", None):
        depth += 1
    layers.append(depth)
    moment.model({"clips": x, "target": torch.zeros(1, 3, dtype=torch.float64)})
    return {"probe/sum": embedded[-1]}


def objective(seed: int, dropout: float = 0.0):
    """Return an objective with other weights on each process, so that they must be broadcast."""
    return toy(seed + 10 * RANK, dropout=dropout, dtype=torch.float64)


def main(folder: Path) -> None:
    report: dict = {}
    result = fit(objective(0), ToyLoader(), config(folder / "whole"), periodic=[Periodic(4, embed)])
    report["world"] = torch.distributed.get_world_size()
    report["whole"], report["embedded"] = result.step, embedded
    report["layers"] = layers
    report["sharded"], report["threads"] = sorted(sharded), torch.get_num_threads()

    stopped = fit(
        objective(0, dropout=0.3),
        ToyLoader(),
        config(folder / "stopped"),
        periodic=[Periodic(4, strike_one, at_end=False)],
    )
    report["stopped"] = [stopped.step, stopped.interrupted]
    # To the other process the directory of the run is an empty folder.
    place = folder if RANK == 0 else folder / "elsewhere"
    (place / "stopped").mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    again = config(Path("stopped"), resume="auto")
    report["continued"] = fit(objective(3, dropout=0.3), ToyLoader(), again).step
    report["directory"] = sorted(os.listdir("stopped"))
    fit(objective(0, dropout=0.3), ToyLoader(), config(folder / "dropped"))

    ends = Periodic(2, lambda moment: moment.end("nothing is gained"))
    ended = fit(objective(0), ToyLoader(), config(folder / "ended"), periodic=[ends])
    report["ended"] = [ended.step, ended.encoder is not None]

    fit(toy(0, dropout=0.0), ToyLoader(torch.float32), config(folder / "half", precision="bf16"))

    try:
        fit(objective(0), Poisoned(), config(folder / "poisoned"))
    except RunError as error:
        report["poisoned"] = str(error)
    try:
        fit(objective(0), Broken(), config(folder / "broken"))
    except RunError as error:
        report["broken"] = str(error)
    (folder / f"report_{RANK}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.cuda.is_available():
        # Accelerate offers FSDP2 to accelerators alone; gloo on CPUs can do it as well.
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    main(Path(sys.argv[1]))
