"""Sources of a run's batches: a loader that can start at any step, or a list of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.utils import send_to_device

from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.errors import RunError
from ssl_vivit.training.config import TrainingConfig
from ssl_vivit.training.processes import Host


@runtime_checkable
class Batches(Protocol):
    """Protocol of a loader that can start at any step and loads a process's part of each batch."""

    def steps_per_epoch(self, total_batch_size: int) -> int: ...

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device
    ) -> Iterator[dict[str, Any]]: ...


@runtime_checkable
class Recognised(Protocol):
    """Protocol of a loader whose data are identified by their contents instead of their paths."""

    def contents(self) -> dict[str, str]:
        """Return digests of the data, by the settings that name them, such as ``data.shards``."""
        ...


def split_batch(config: TrainingConfig, host: Host) -> BatchSplit:
    """Return the split that says which samples of the total batch this process loads.

    Raises:
        RunError: if the total batch does not divide evenly over processes and micro-batches. The
            message lists numbers of processes that divide it.
    """
    try:
        return BatchSplit(
            config.total_batch_size, host.world_size, host.rank, accumulation=config.accumulation
        )
    except ValueError as error:
        per_process, rest = divmod(config.total_batch_size, config.accumulation)
        counts = [str(n) for n in range(1, per_process + 1) if per_process % n == 0]
        mend = "" if rest else f"; or use {', '.join(counts[:12])} processes"
        raise RunError(f"training.{error}{mend}") from None


def repeated(
    batches: Iterable[dict[str, Any]], split: BatchSplit, start_step: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Repeat the batches endlessly, and yield one for each micro-batch from ``start_step`` on.

    Args:
        batches: must yield the same batches in the same order each time it is iterated.
        split: split of the total batch; its world size must be 1.
        start_step: number of optimisation steps already done; their batches are skipped.
        device: device to which each batch is moved.

    Raises:
        RunError: if there are several processes, which would all get the same batches, or if
            ``batches`` is empty.
    """
    if split.world_size > 1:
        raise RunError(
            "a plain list of batches works only in one process; for several processes, pass a "
            "loader with a stream() method"
        )
    skip = start_step * split.accumulation
    while True:
        empty = True
        for batch in batches:
            empty = False
            if skip:
                skip -= 1
            else:
                yield send_to_device(batch, device)
        if empty:
            raise RunError("the batches passed to fit are empty; pass at least one batch")
