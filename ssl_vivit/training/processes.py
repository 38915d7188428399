"""The processes of a run (one, DDP or FSDP2): their set-up and the data that they exchange."""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_vivit import first_failure
from ssl_vivit.errors import RunError, UserError
from ssl_vivit.objectives.contract import Blocks, Objective
from ssl_vivit.run_lock import locked
from ssl_vivit.training.config import TrainingConfig
from ssl_vivit.training.launcher import dynamo_plugin

_SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)
_RUNNING = threading.Lock()
# Gradients are views of the communication buckets, which saves a copy. Buffers need no broadcast:
# they are equal on all processes, since batch norms are synchronised.
_DDP = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)


@contextmanager
def locked_run(directory: Path, setting: str = "--training.run_dir") -> Iterator[None]:
    """Lock a run's directory against other runs while the block runs; all processes must call this.

    Only the main process holds the lock, see :mod:`ssl_vivit.run_lock`.

    Args:
        directory: the run's directory.
        setting: the option that names the directory, for messages.

    Raises:
        RunError: on all processes, if another run is writing in the directory.
    """
    with ExitStack() as held:
        lock = locked(directory, setting, lambda line: print(line, file=sys.stderr))
        Host().from_main(lambda: held.enter_context(lock))
        yield


class Host:
    """Exchanges values between all processes through a gloo group."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.world_size = dist.get_world_size() if joined else 1
        self.rank = dist.get_rank() if joined else 0
        self._group: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the mean of each value over all processes; a NaN in one process makes it NaN."""
        if self._group is None:
            return list(values)
        vector = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(vector, group=self._group)
        return (vector / self.world_size).tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the JSON values of all processes, in order of rank."""
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

    def gather_rows(self, own: Tensor) -> list[Tensor]:
        """Return a list of the tensors of all processes, in order of rank.

        Args:
            own: CPU tensor of this process. Only the length of the first axis may differ between
                processes.
        """
        if self._group is None:
            return [own]
        lengths = self.gather(len(own))
        padded = own.new_zeros((max(lengths), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=self._group)
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]

    def tensors_of_main(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the main process's CPU tensors by name, on all processes.

        The argument of other processes is ignored.
        """
        if self._group is None:
            return tensors
        facts = {name: [str(t.dtype).split(".")[-1], *t.shape] for name, t in tensors.items()}
        received = {}
        for name, (dtype, *shape) in self._of_main(facts).items():
            if self.is_main:
                received[name] = tensors[name].contiguous()
            else:
                received[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            # Send bytes, since gloo does not support every dtype.
            dist.broadcast(received[name].reshape(-1).view(torch.uint8), 0, group=self._group)
        return received

    def _of_main(self, value: Any) -> Any:
        """Return the main process's JSON value, on all processes."""
        if self._group is None:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([text.numel()])
        dist.broadcast(length, 0, group=self._group)
        if not self.is_main:
            text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0, group=self._group)
        return json.loads(text.numpy().tobytes())

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Call ``work`` on the main process, and return its JSON result on all processes.

        Raises:
            RunError: on all processes, if the work raised an error that a user can fix.
        """
        outcome: dict[str, Any] | None = None
        if self.is_main:
            try:
                outcome = {"result": work()}
            except (UserError, ValueError, OSError) as error:
                outcome = {"error": str(error)}
        outcome = self._of_main(outcome)
        assert outcome is not None
        if "error" in outcome:
            failure = RunError(outcome["error"])
            failure.rank = 0
            raise failure
        return outcome["result"]


def join_processes() -> PartialState:
    """Join the processes that the launcher started.

    ``fit`` does this itself. Call the function to exchange data between processes before ``fit``.
    Do not create accelerate's ``PartialState()`` instead: it joins processes on CPUs only with
    ``cpu=True``, and keeps the settings of its first call, so the processes could not be joined any
    more.

    Raises:
        RunError: if an ``Accelerator`` was made before that did not join the processes.
    """
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    if not on_gpu:
        _set_threads()
    launched = "LOCAL_RANK" in os.environ
    state = PartialState(cpu=not on_gpu and (launched or torch.cuda.is_available()))
    started = int(os.environ.get("WORLD_SIZE", "1")) if launched else 1
    if state.num_processes == 1 < started:
        raise RunError(
            f"the launcher started {started} processes, but an Accelerator made before fit did "
            "not join them: make the Accelerator by Accelerator(cpu=True), or call "
            "ssl_vivit.training.join_processes() first"
        )
    first_failure.watch()
    return state


@contextmanager
def accelerator_state_kept() -> Iterator[None]:
    """Let ``fit`` change Accelerate's global state, and restore the earlier state afterwards.

    Accelerate has one state per process and refuses other settings once it is set up. The processes
    stay joined.

    Raises:
        RunError: if ``fit`` is already running in this process.
    """
    if not _RUNNING.acquire(blocking=False):
        raise RunError(
            "fit is already running in this process, and a process has only one state of "
            "Accelerate and of the random generators; wait until fit returns, or start another "
            "process"
        )
    shared = AcceleratorState._shared_state, GradientState._shared_state
    before = [dict(state) for state in shared]
    matmul_precision = torch.get_float32_matmul_precision()
    kind = PartialState._shared_state.get("distributed_type")
    try:
        yield
    finally:
        for state, content in zip(shared, before, strict=True):
            state.clear()
            state.update(content)
        torch.set_float32_matmul_precision(matmul_precision)
        _set_distributed_type(kind)
        _RUNNING.release()


def _set_distributed_type(kind: DistributedType | None) -> None:
    """Restore the distributed type of joined processes if Accelerate has set it to FSDP."""
    state = PartialState._shared_state
    if state.get("distributed_type") == DistributedType.FSDP and kind != DistributedType.FSDP:
        state["distributed_type"] = kind or DistributedType.MULTI_GPU


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Make the Accelerator of a run.

    Args:
        config: result of :func:`~ssl_vivit.training.launcher.resolve_settings`.

    Raises:
        RunError: if the launcher asks for anything but one process, DDP or FSDP2.
    """
    state = join_processes()
    earlier = dict(AcceleratorState._shared_state)
    # With training.compile, fit compiles the model itself.
    dynamo = TorchDynamoPlugin(backend="no") if config.compile else dynamo_plugin()  # type: ignore[arg-type]
    AcceleratorState._shared_state.clear()
    GradientState._shared_state.clear()
    _set_distributed_type(DistributedType.MULTI_GPU)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
        cpu=state.device.type == "cpu",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.accumulation, sync_with_dataloader=False
        ),
        dynamo_plugin=dynamo,
        fsdp_plugin=earlier.get("fsdp_plugin"),
        kwargs_handlers=[_DDP],
    )
    if accelerator.distributed_type not in _SUPPORTED or (
        accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise RunError(
            f"the launcher's configuration asks for {accelerator.distributed_type.value}, which "
            "is not supported; use one process, DDP, or FSDP with fsdp_version: 2"
        )
    if accelerator.mixed_precision != "no":
        # Use TensorFloat-32 for products that autocast leaves in float32; its rounding errors are
        # far below those of half precision.
        torch.set_float32_matmul_precision("high")
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        # Imported here: FSDP takes half as long to load as torch itself.
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Gather weights in float32 and leave casts to autocast, as under DDP. Weights gathered in
        # half precision would also round positions and residuals to half precision.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            cast_forward_inputs=False
        )
    return accelerator


def prepare(
    accelerator: Accelerator, objective: nn.Module, optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]:
    """Wrap model and optimiser for the processes of the launcher (one, DDP or FSDP2)."""
    if accelerator.is_fsdp2:
        name_blocks(objective)
        objective.to(accelerator.device)
        # Broadcast the main process's weights, as DDP does. FSDP2 would not: it shards the weights
        # of each process.
        for tensor in chain(objective.parameters(), objective.buffers()):
            dist.broadcast(tensor.data, src=0)
    with warnings.catch_warnings():
        # Newer versions of torch rename the argument. The oldest supported version lacks the new
        # name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model, prepared = accelerator.prepare(objective, optimizer)
    return model, prepared


def synchronise_norms(objective: Objective, host: Host, accelerator: Accelerator) -> Objective:
    """Make batch norms compute their statistics over the samples of all processes.

    Raises:
        RunError: if there are several processes on CPUs, where torch cannot synchronise them.
    """
    norms = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in objective.modules())
    if host.world_size == 1 or not norms:
        return objective
    if accelerator.device.type != "cuda":
        raise RunError(
            f"batch norm cannot be synchronised over {host.world_size} CPU processes; set "
            "--objective.batch_norm false, or train in one process"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(objective)


def name_blocks(objective: nn.Module) -> None:
    """Tell FSDP which transformer blocks to shard, each as one unit.

    Submodules of the objective name the classes of their blocks in ``_no_split_modules``.
    """
    names = {type(part).__name__ for part in _blocks(objective)}
    objective._no_split_modules = sorted(names)  # type: ignore[assignment]


def parts_to_compile(objective: Objective, *, by_block: bool) -> list[nn.Module]:
    """List the modules that ``training.compile`` compiles, each to its own graph.

    Args:
        objective: the objective.
        by_block: compile each block separately. FSDP2 needs this, since it gathers the weights of
            a block in a hook, and a hook inside a graph would break the graph.
    """
    whole = objective.to_compile()
    return (by_block and _blocks(whole)) or [whole]


def _blocks(module: nn.Module) -> list[nn.Module]:
    """List the submodules whose class is declared as a block (``_no_split_modules``)."""
    named = (part._no_split_modules for part in module.modules() if isinstance(part, Blocks))
    declared = {name for names in named for name in names or ()}
    return [part for part in module.modules() if type(part).__name__ in declared]


def call(accelerator: Accelerator, model: nn.Module, method: str, *args: object) -> object:
    """Call a method of the wrapped objective; FSDP2 gathers its parameters for the call."""
    # FSDP2 shards the compiled module. With compiled DDP, keep_torch_compile would remove DDP
    # for good.
    inner = accelerator.unwrap_model(model, keep_torch_compile=accelerator.is_fsdp2)
    # Register once: every registration wraps the method again.
    if accelerator.is_fsdp2 and method not in vars(inner):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(inner, method)
    with accelerator.autocast():
        return getattr(inner, method)(*args)


def _set_threads() -> None:
    """Divide the cores among the processes if the launcher has set one thread per process."""
    launched = any(name.startswith(("ACCELERATE_", "TORCHELASTIC_")) for name in os.environ)
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        usable = getattr(os, "sched_getaffinity", None)  # macOS lacks this function.
        cores = len(usable(0)) if usable else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
