"""Sources of a run's batches: a loader that can start at any step, or any list of batches."""

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
    """A loader that can start at any step and serve any share of the global batch."""

    def steps_per_epoch(self, total_batch_size: int) -> int: ...

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device
    ) -> Iterator[dict[str, Any]]: ...


@runtime_checkable
class Recognised(Protocol):
    """A loader that identifies its data by their contents, independently of their paths."""

    def contents(self) -> dict[str, str]:
        """Setting that names data, such as ``data.shards`` → digest of what it names."""
        ...


def split_batch(config: TrainingConfig, host: Host) -> BatchSplit:
    """This process's share of the total batch.

    Raises:
        RunError: if it does not divide, with the numbers of processes that would.
    """
    try:
        return BatchSplit(
            config.total_batch_size, host.world_size, host.rank, accumulation=config.accumulation
        )
    except ValueError as error:
        per_process, rest = divmod(config.total_batch_size, config.accumulation)
        counts = [str(n) for n in range(1, per_process + 1) if per_process % n == 0]
        mend = "" if rest else f"; so would {', '.join(counts[:12])} processes"
        raise RunError(f"training.{error}{mend}") from None


def repeated(
    batches: Iterable[dict[str, Any]], split: BatchSplit, start_step: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield the batches over and over, one for each micro-step from ``start_step`` on.

    Args:
        batches: gives the same batches in the same order whenever it is iterated.
        split: this process's share.
        start_step: optimisation steps done before.
        device: where the batches go.

    Raises:
        RunError: with several processes, which would all see the same batches, or if there is
            no batch.
    """
    if split.world_size > 1:
        raise RunError("a plain list of batches serves one process; pass a loader with stream()")
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
            raise RunError("there is no batch to train on")
