"""The training loop, compared with a hand-written loop; errors; and state that it must not change."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy_objective import ToyLoader, ToyObjective, toy, toy_batches

from ssl_vivit import command
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.errors import RunError
from ssl_vivit.objectives import Step
from ssl_vivit.objectives.contract import as_objective
from ssl_vivit.training import Moment, Periodic, fit
from ssl_vivit.training.batches import repeated
from ssl_vivit.training.processes import parts_to_compile, synchronise_norms
from ssl_vivit.training.random_state import preserved, seed_process


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_agrees_with_a_hand_written_loop(config, metrics) -> None:
    batches = toy_batches(count=3)
    settings = config(steps=7, total_batch_size=4, clip_grad_norm=0.5, checkpoint_every=100)
    result = fit(toy(dropout=0.0), batches, settings)

    model = toy(dropout=0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    exempt = {id(model.encoder.position)} | {id(p) for p in trained if p.ndim == 1}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0},
            {"params": [p for p in trained if id(p) not in exempt], "weight_decay": 0.05},
        ]
    )
    expected = []
    for step in range(7):
        peak = 0.5 * 4 / 256
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 2) / 5))
        rate = peak * ((step + 1) / 2 if step < 2 else cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss, spread = model(batches[step % 3])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        expected.append(
            {
                "step": step + 1,
                "train/loss": loss.item(),
                "train/grad_norm": norm.item(),
                "train/lr": rate,
                "train/spread": spread["spread"].item(),
            }
        )
    for row, reference in zip(metrics(settings.run_dir), expected, strict=True):
        assert row == pytest.approx(reference, rel=1e-5)
    assert result.step == 7
    assert result.checkpoint is not None
    for name, value in _weights(result.checkpoint).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_accumulation_equals_one_big_batch(config) -> None:
    whole = fit(
        toy(dropout=0.0, dtype=torch.float64), ToyLoader(), config("whole", total_batch_size=12)
    )
    parts = fit(
        toy(dropout=0.0, dtype=torch.float64),
        ToyLoader(),
        config("parts", total_batch_size=12, accumulation=3),
    )
    assert whole.checkpoint is not None
    assert parts.checkpoint is not None
    a, b = _weights(whole.checkpoint), _weights(parts.checkpoint)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-12)
    assert not torch.equal(a["head.weight"], toy(dtype=torch.float64).head.weight)


def test_metrics_are_means_over_micro_batches(config, metrics) -> None:
    settings = config(steps=2, total_batch_size=12, accumulation=3)
    fit(toy(dropout=0.0, dtype=torch.float64), ToyLoader(), settings)
    model = toy(dropout=0.0, dtype=torch.float64)
    batches = ToyLoader().stream(BatchSplit(12, accumulation=3), start_step=0, device="cpu")
    steps = [model(next(batches)) for _ in range(3)]
    row = metrics(settings.run_dir)[0]
    spreads = [step.metrics["spread"].item() for step in steps]
    assert len({*spreads}) == 3
    assert row["train/spread"] == pytest.approx(sum(spreads) / 3)
    assert row["train/loss"] == pytest.approx(sum(step.loss.item() for step in steps) / 3)


def test_processes_steps_and_seeds_have_draws_of_their_own() -> None:
    def draws(*names: int) -> tuple[float, ...]:
        seed_process(*names)
        return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002

    with preserved():
        names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
        found = [draws(*each) for each in names]
        assert found == [draws(*each) for each in names]
    for generator in zip(*found, strict=True):
        assert len({*generator}) == len(names)


def test_periodic_jobs_leave_no_trace_in_training(config, metrics) -> None:
    calls: list[tuple[int, bool, bool]] = []

    def job(moment: Moment) -> dict[str, float]:
        torch.rand(7)
        np.random.rand(3)  # noqa: NPY002
        random.random()
        with torch.random.fork_rng():
            moment.model(toy_batches(1)[0])
        moment.call("embed", torch.zeros(1, 6))
        calls.append((moment.step, moment.model.training, torch.is_grad_enabled()))
        return {"probe/drawn": 1.0}

    plain = fit(toy(), toy_batches(), config("plain"))
    probed = fit(toy(), toy_batches(), config("probed"), periodic=[Periodic(5, job, at_start=True)])
    assert calls == [(0, False, False), (5, False, False), (10, False, False), (12, False, False)]
    assert plain.checkpoint is not None
    assert probed.checkpoint is not None
    for name in ("model", "optimizer", "rng_0"):
        plain_bytes = (plain.checkpoint / f"{name}.safetensors").read_bytes()
        assert plain_bytes == (probed.checkpoint / f"{name}.safetensors").read_bytes()
    trained = [row for row in metrics(probed.run_dir) if "probe/drawn" not in row]
    assert trained == metrics(plain.run_dir)
    probes = [row["step"] for row in metrics(probed.run_dir) if "probe/drawn" in row]
    assert probes == [0, 5, 10, 12]


def test_a_job_ends_a_run_as_if_the_step_were_the_last(config, metrics, capsys) -> None:
    asked: list[int] = []

    def job(moment: Moment) -> dict[str, float]:
        asked.append(moment.step)
        if moment.step >= 6:
            moment.end("nothing is gained")
        return {"val/step": float(moment.step)}

    jobs = [Periodic(3, job)]
    settings = config("ended", checkpoint_every=4)
    ended = fit(toy(), toy_batches(), settings, periodic=jobs)
    assert "ended    after step 6 of 12: nothing is gained" in capsys.readouterr().err
    assert (ended.step, ended.interrupted, asked) == (6, None, [3, 6])
    assert ended.encoder == Path(settings.run_dir) / "encoder"
    whole = fit(toy(), toy_batches(), config("whole", checkpoint_every=6, keep_checkpoints=0))
    same = whole.run_dir / "checkpoints" / "step_00000006"
    assert ended.checkpoint is not None
    for name in ("model", "optimizer", "rng_0"):
        file = f"{name}.safetensors"
        assert (ended.checkpoint / file).read_bytes() == (same / file).read_bytes()
    trained = [row for row in metrics(ended.run_dir) if "train/loss" in row]
    assert trained == [row for row in metrics(whole.run_dir) if row["step"] <= 6]

    # One that was killed before this step ends at it again; one that has ended goes on no further.
    for lost in (True, False):
        if lost:
            shutil.rmtree(ended.checkpoint)
            shutil.rmtree(ended.run_dir / "encoder")
        asked.clear()
        settings = config("ended", checkpoint_every=4, resume="auto", steps=12)
        again = fit(toy(5), toy_batches(), settings, periodic=jobs)
        assert "ended    after step 6 of 12: nothing is gained" in capsys.readouterr().err
        assert (again.step, asked) == (6, [6] if lost else [])
        file = "model.safetensors"
        assert (ended.checkpoint / file).read_bytes() == (same / file).read_bytes()
        assert again.encoder is not None
        assert (again.encoder / file).is_file()


def test_a_run_is_finished_at_the_last_step_even_if_a_job_ends_it(config, capsys) -> None:
    job = Periodic(12, lambda moment: moment.end("too late"))
    assert fit(toy(), toy_batches(), config(), periodic=[job]).step == 12
    assert "ended" not in capsys.readouterr().err


@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
def test_jobs_are_due_at_multiples_and_at_the_ends_if_asked(at_start: bool, at_end: bool) -> None:
    job = Periodic(4, lambda moment: None, at_start=at_start, at_end=at_end)
    due = [step for step in range(11) if job.due(step, 10)]
    assert due == [0] * at_start + [4, 8] + [10] * at_end


def test_modes_of_submodules_are_put_back(config) -> None:
    class Half(ToyObjective):
        def train(self, mode: bool = True) -> Half:
            super().train(mode)
            self.head.eval()
            return self

    modes: list[bool] = []
    objective = Half()
    objective.encoder.register_forward_pre_hook(lambda *_: modes.append(objective.head.training))
    fit(objective, toy_batches(), config(steps=3), periodic=[Periodic(1, lambda moment: None)])
    assert modes == [False] * 3
    assert objective.encoder.training


def test_nonfinite_loss_names_step_keys_and_checkpoint(config) -> None:
    batches = toy_batches(count=12)
    batches[5]["target"][2] = float("nan")
    settings = config(checkpoint_every=2)
    with pytest.raises(RunError) as caught:
        fit(toy(), batches, settings)
    message = str(caught.value)
    assert "\n" not in message
    assert "loss is not finite at step 6" in message
    assert "sample_20, sample_21, sample_22, sample_23" in message
    assert "step_00000004" in message
    saved = sorted(path.name for path in (Path(settings.run_dir) / "checkpoints").iterdir())
    assert saved == ["step_00000002", "step_00000004"]


def test_nonfinite_gradient_is_refused_before_it_is_saved(config) -> None:
    objective = toy()
    objective.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match=r"gradient norm is not finite at step 1;.*none"):
        fit(objective, toy_batches(), config(checkpoint_every=1))


def test_only_the_bad_micro_batch_is_named(config) -> None:
    batches = toy_batches(count=4)
    batches[3]["clips"][0] = float("inf")
    with pytest.raises(RunError) as caught:
        fit(toy(), batches, config(total_batch_size=8, accumulation=2))
    assert "sample_12" in str(caught.value)
    assert "sample_8" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_ends(config, metrics, capfd, monkeypatch, number) -> None:
    monkeypatch.setattr(command, "continued_by", "python mine.py --resume auto")

    def strike(moment: Moment) -> None:
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    settings = config("stopped")
    stopped = fit(toy(), toy_batches(), settings, periodic=[Periodic(6, strike, at_end=False)])
    assert (stopped.interrupted, stopped.step, stopped.encoder) == (number.name, 6, None)
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"{number.name}: {stopped.run_dir} stopped after step 6, saved in step_00000006; "
        "continue with python mine.py --resume auto"
    )
    settings.resume = "auto"
    continued = fit(toy(), toy_batches(), settings)
    whole = fit(toy(), toy_batches(), config("whole"))
    assert (continued.step, continued.interrupted) == (12, None)
    assert metrics(continued.run_dir) == metrics(whole.run_dir)
    assert continued.checkpoint is not None
    assert whole.checkpoint is not None
    for name, value in _weights(whole.checkpoint).items():
        assert torch.equal(value, _weights(continued.checkpoint)[name])
    assert signal.getsignal(number) == before


def test_an_automatic_start_from_nothing_is_named(config, capfd) -> None:
    settings = config("begun", steps=2, resume="auto")
    line = f"resume   no checkpoint in {settings.run_dir}: the run starts at step 0"
    fit(toy(), toy_batches(), settings)
    assert line in capfd.readouterr().err.splitlines()
    settings.steps = 3
    fit(toy(), toy_batches(), settings)
    fit(toy(), toy_batches(), config("other", steps=2))
    assert "no checkpoint in" not in capfd.readouterr().err


def test_the_first_lines_of_a_run(config, capfd) -> None:
    fit(toy(), toy_batches(), config("said", steps=5, total_batch_size=4))
    lines = capfd.readouterr().err.splitlines()
    assert "device   cpu, fp32, 1 process" in lines
    assert "steps    5 of 4 samples" in lines
    assert any(line.startswith("results  ") and line.endswith("said") for line in lines)
    assert not any("warmup_steps" in line or "there are no steps left" in line for line in lines)
    fit(toy(), toy_batches(), config("said", steps=3, total_batch_size=4, resume="auto"))
    assert (
        "has done 5 steps, and training.steps is 3: there are no steps left"
        in capfd.readouterr().err
    )


def test_a_run_shorter_than_its_warmup_is_named(config, capfd) -> None:
    settings = config("short", steps=3)
    settings.optimizer.warmup_steps = 4
    result = fit(toy(), toy_batches(), settings)
    assert "warmup_steps 4: the learning rate reaches 75% of its peak" in capfd.readouterr().err
    assert result.metrics["train/lr"] == pytest.approx(0.75 * 0.5 * settings.total_batch_size / 256)


def test_periodic_jobs_receive_the_state_of_the_warmup(config) -> None:
    seen = []
    settings = config("told", steps=5)
    settings.optimizer.warmup_steps = 3

    def note(moment: Moment) -> None:
        seen.append((moment.step, moment.warming_up))

    fit(toy(), toy_batches(), settings, periodic=[Periodic(1, note)])
    assert seen == [(1, True), (2, True), (3, False), (4, False), (5, False)]


def test_plain_batches_start_where_asked() -> None:
    batches = toy_batches(count=5)
    stream = repeated(batches, BatchSplit(8, accumulation=2), 4, torch.device("cpu"))
    first = [next(stream)["key"][0] for _ in range(4)]
    assert first == [batches[i]["key"][0] for i in (3, 4, 0, 1)]


def test_plain_batches_serve_one_process_only() -> None:
    stream = repeated(toy_batches(), BatchSplit(8, world_size=2), 0, torch.device("cpu"))
    with pytest.raises(RunError, match="one process"):
        next(stream)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "training.steps"),
        ({"clip_grad_norm": -1.0}, "training.clip_grad_norm"),
        ({"precision": "fp16"}, "training.precision fp16 needs a GPU"),
        ({"total_batch_size": 5, "accumulation": 2}, "total_batch_size 5 does not divide"),
    ],
)
def test_impossible_settings_are_named(config, change: dict, named: str) -> None:
    if named.endswith("GPU") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises((RunError, ValueError), match=named):
        fit(toy(), toy_batches(), config(**change))
    assert not Path(config().run_dir).exists()


def test_settings_changed_after_their_check_are_checked_again(config) -> None:
    settings = config()
    settings.steps = 0
    with pytest.raises(ValueError, match=r"training\.steps is 0"):
        fit(toy(), toy_batches(), settings)


@pytest.mark.parametrize("compiles", [False, True])
def test_compile_compiles_the_encoder(config, monkeypatch, compiles) -> None:
    compiled = []
    # Eager all the same: what a compiler makes of it is not this test's matter.
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(module))
    objective = toy()
    fit(objective, toy_batches(), config(steps=1, compile=compiles))
    assert compiled == ([objective.encoder] if compiles else [])


def test_the_stream_is_closed_at_any_end_of_a_run(config) -> None:
    closed = []

    class Watched:
        def steps_per_epoch(self, total_batch_size: int) -> int:
            return 5

        def stream(self, split, *, start_step: int, device) -> Iterator[dict]:
            try:
                while True:
                    yield from toy_batches()
            finally:
                closed.append(start_step)

    fit(toy(), Watched(), config(steps=3))

    class Breaks(Exception):
        pass

    def fail(moment: Moment) -> None:
        raise Breaks

    job = Periodic(every=2, run=fail)
    with pytest.raises(Breaks) as error:
        fit(toy(), Watched(), config("broken", steps=3), periodic=[job])
    assert error.traceback, "the traceback keeps the run's frames, and with them the stream"
    assert closed == [0, 0]


def test_batch_norm_over_cpu_processes_is_refused() -> None:
    norm = torch.nn.BatchNorm1d(3)
    accelerator = SimpleNamespace(is_fsdp2=False, mixed_precision="no", device=torch.device("cpu"))
    one, two = SimpleNamespace(world_size=1), SimpleNamespace(world_size=2)
    assert synchronise_norms(norm, one, accelerator) is norm
    assert isinstance(synchronise_norms(torch.nn.Linear(2, 2), two, accelerator), torch.nn.Linear)
    with pytest.raises(RunError, match="over 2 CPU processes"):
        synchronise_norms(norm, two, accelerator)


@pytest.mark.parametrize(("capability", "told"), [("AVX2", True), ("AVX512", False)])
def test_emulated_bf16_is_noted(config, capfd, monkeypatch, capability, told) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    fit(toy(), toy_batches(), config(steps=1, precision="bf16"))
    assert ("this CPU emulates bf16" in capfd.readouterr().err) == told


def test_a_module_with_forward_and_export_trains_like_an_objective(config) -> None:
    """A plain nn.Module gets the defaults of Objective, and its parameters keep their names."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = toy()

        def forward(self, batch: dict[str, Any]) -> Step:
            return self.inside(batch)

        def export(self, directory: Path, *, training: dict[str, Any]) -> None:
            self.inside.export(directory, training=training)

    plain, derived = Plain(), toy()
    names = list(plain.state_dict())
    found = fit(plain, toy_batches(), config("plain", steps=3))
    expected = fit(derived, toy_batches(), config("derived", steps=3))
    assert found.metrics["train/loss"] == expected.metrics["train/loss"]
    assert list(plain.state_dict()) == names
    assert type(plain) is Plain


def test_an_export_contains_command_and_seed_of_its_run(config, monkeypatch) -> None:
    monkeypatch.setattr(command, "started_by", "python mine.py --seed 5")
    found = fit(toy(), toy_batches(), config("run", steps=1, seed=5))
    facts = json.loads((found.run_dir / "encoder" / "config.json").read_text())
    assert (facts["command"], facts["seed"]) == ("python mine.py --seed 5", 5)
    monkeypatch.setattr(command, "started_by", None)
    found = fit(toy(), toy_batches(), config("of a program", steps=1))
    assert "command" not in json.loads((found.run_dir / "encoder" / "config.json").read_text())


def test_logs_step_is_true_in_logged_steps(config) -> None:
    class Sparing(ToyObjective):
        logged: tuple[bool, ...] = ()

        def forward(self, batch):
            self.logged += (self.logs_step,)
            step = super().forward(batch)
            return step if self.logs_step else step._replace(metrics={})

    objective = Sparing()
    found = fit(objective, toy_batches(), config(steps=7, log_every=3))
    assert objective.logged == (True, False, True, False, False, True, True)
    lines = (found.run_dir / "metrics.jsonl").read_text().splitlines()
    logged = {line["step"] for line in map(json.loads, lines) if "train/spread" in line}
    assert logged == {1, 3, 6, 7}


def test_float32_products_are_less_precise_only_in_half_precision_runs(config) -> None:
    class Seeing(ToyObjective):
        precision = ""

        def forward(self, batch):
            self.precision = torch.get_float32_matmul_precision()
            return super().forward(batch)

    before = torch.get_float32_matmul_precision()
    for precision, expected in (("bf16", "high"), ("fp32", before)):
        objective = Seeing()
        fit(objective, toy_batches(), config(precision, steps=1, precision=precision))
        assert objective.precision == expected
        assert torch.get_float32_matmul_precision() == before


class Blockless(nn.Linear):
    """An objective whose modules declare no blocks."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def export(self, directory, *, training) -> None:
        """Write nothing."""


def test_blocks_with_hooks_are_compiled_separately() -> None:
    objective = toy()
    assert parts_to_compile(objective, by_block=False) == [objective.encoder]
    assert parts_to_compile(objective, by_block=True) == list(objective.encoder.blocks)
    blockless = as_objective(Blockless())
    assert parts_to_compile(blockless, by_block=True) == [blockless]


def test_begin_step_is_called_before_each_step(config) -> None:
    class Told(ToyObjective):
        steps: tuple[int, ...] = ()

        def begin_step(self, step: int) -> None:
            self.steps += (step,)

    objective = Told()
    fit(objective, toy_batches(), config(steps=3))
    assert objective.steps == (0, 1, 2)
