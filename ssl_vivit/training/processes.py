"""The processes of a run: joined as the launcher says (one, DDP, FSDP2), and what they exchange."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from torch.optim import Optimizer

from ssl_vivit.errors import RunError, UserError
from ssl_vivit.objectives.contract import Blocks, Objective
from ssl_vivit.training.config import TrainingConfig

_SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)


class Host:
    """A gloo group of all processes; with one process everything stays where it is."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.world_size = dist.get_world_size() if joined else 1
        self.rank = dist.get_rank() if joined else 0
        self._group: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """Mean of each value over the processes, the same on all; NaN where any has NaN."""
        if self._group is None:
            return list(values)
        vector = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(vector, group=self._group)
        return (vector / self.world_size).tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's JSON value, in order of rank, on all processes."""
        if self._group is None:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([text.numel()])
        lengths = [torch.empty_like(length) for _ in range(self.world_size)]
        dist.all_gather(lengths, length, group=self._group)
        longest = int(torch.cat(lengths).max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: text.numel()] = text
        texts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(texts, padded, group=self._group)
        return [
            json.loads(bytes(piece[: int(size)].tolist()))
            for piece, size in zip(texts, lengths, strict=True)
        ]

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Do ``work`` on the main process; all get its JSON result.

        Raises:
            RunError: on all processes, if the work raised an error that a user can mend.
        """
        outcome: dict[str, Any] | None = None
        if self.is_main:
            try:
                outcome = {"result": work()}
            except (UserError, ValueError, OSError) as error:
                outcome = {"error": str(error)}
        outcome = self.gather(outcome)[0]
        assert outcome is not None
        if "error" in outcome:
            raise RunError(outcome["error"])
        return outcome["result"]


def join_processes() -> PartialState:
    """Join the processes that the launcher started; what needs them before ``fit`` calls this.

    Accelerate keeps what it was told first, and joins processes on CPUs only when told that they
    are meant to be CPUs: a bare ``PartialState()`` would leave each of them alone for good.
    """
    if not torch.cuda.is_available():
        _use_the_cores()
    joins_cpus = "LOCAL_RANK" in os.environ and not torch.cuda.is_available()
    return PartialState(cpu=joins_cpus)


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Join the processes that the launcher started, in the precision asked for.

    Raises:
        RunError: if this machine has not that precision.
    """
    on_gpu = torch.cuda.is_available()
    joins_cpus = join_processes().distributed_type == DistributedType.MULTI_CPU
    accelerator = Accelerator(
        mixed_precision=_precision(config, on_gpu),
        cpu=joins_cpus,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.accumulation, sync_with_dataloader=False
        ),
    )
    if accelerator.distributed_type not in _SUPPORTED or (
        accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise RunError(
            f"the launcher's configuration asks for {accelerator.distributed_type.value}; "
            "supported are one process, DDP, and FSDP with fsdp_version: 2"
        )
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        # FSDP is imported where it is used: it takes half as long to load as torch itself.
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Weights travel and multiply in half precision, gradients add up in full. Inputs are left to
        # autocast, as under DDP: cast at the door, losses would be computed in half precision too.
        compute = {"bf16": torch.bfloat16, "fp16": torch.float16}[accelerator.mixed_precision]
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return accelerator


def prepare(
    accelerator: Accelerator, objective: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Wrap model and optimiser as the launcher's configuration says."""
    if accelerator.is_fsdp2:
        name_blocks(objective)
        objective.to(accelerator.device)
        # DDP hands the main process's weights round by itself, FSDP2 shards whatever each has.
        for tensor in chain(objective.parameters(), objective.buffers()):
            dist.broadcast(tensor.data, src=0)
    model, prepared = accelerator.prepare(objective, optimizer)
    return model, prepared


def synchronise_norms(objective: Objective, host: Host, accelerator: Accelerator) -> Objective:
    """Batch norms over the batch of all processes.

    Raises:
        RunError: where there is no such kernel: on CPUs, and under FSDP2 in half precision, which
            would halve a batch norm's weights but not its running statistics.
    """
    norms = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in objective.modules())
    if host.world_size == 1 or not norms:
        return objective
    if not torch.cuda.is_available():
        raise RunError(
            f"batch norm is not synchronised over {host.world_size} CPU processes; set "
            "--objective.batch_norm false, or train in one process"
        )
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        raise RunError(
            f"batch norm does not go with FSDP2 in {accelerator.mixed_precision}; set "
            "--objective.batch_norm false or --training.precision fp32"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(objective)


def name_blocks(objective: nn.Module) -> None:
    """Tell FSDP which blocks to shard: those that parts of the objective declare."""
    present = {type(part).__name__ for part in objective.modules()}
    named = (part._no_split_modules for part in objective.modules() if isinstance(part, Blocks))
    declared = {name for names in named for name in names or ()}
    objective._no_split_modules = sorted(declared & present)  # type: ignore[assignment]


def call(accelerator: Accelerator, model: nn.Module, method: str, *args: object) -> object:
    """Call a method of the objective behind whatever wraps it, with its parameters in place."""
    inner = accelerator.unwrap_model(model)
    # Registered twice, the method would be wrapped twice, and deeper at every call.
    if accelerator.is_fsdp2 and method not in vars(inner):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(inner, method)
    with accelerator.autocast():
        return getattr(inner, method)(*args)


def _precision(config: TrainingConfig, on_gpu: bool) -> str:
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "auto":
        return "bf16" if has_bf16 else "no"
    if config.precision == "bf16" and on_gpu and not has_bf16:
        raise RunError("training.precision bf16: this GPU has no bfloat16; fp16 and fp32 work")
    if config.precision == "fp16" and not on_gpu:
        raise RunError("training.precision fp16 needs a GPU; here auto, fp32 and bf16 work")
    return {"fp32": "no"}.get(config.precision, config.precision)


def _use_the_cores() -> None:
    """Launchers set one thread a process, whatever the number of cores."""
    launched = any(name.startswith(("ACCELERATE_", "TORCHELASTIC_")) for name in os.environ)
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        usable = getattr(os, "sched_getaffinity", None)  # macOS has none
        cores = len(usable(0)) if usable else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
