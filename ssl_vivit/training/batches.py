"""Where a run's batches come from: a loader that knows steps, or any list of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.utils import send_to_device

from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.errors import RunError


@runtime_checkable
class Batches(Protocol):
    """A loader that can start at any step and serve any share of the global batch."""

    def steps_per_epoch(self, total_batch_size: int) -> int: ...

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device
    ) -> Iterator[dict[str, Any]]: ...


class RepeatedBatches:
    """A re-iterable of batches, one for each micro-step, over and over; for one process.

    Args:
        batches: gives the same batches in the same order whenever it is iterated.
    """

    def __init__(self, batches: Iterable[dict[str, Any]]) -> None:
        self.batches = batches

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device
    ) -> Iterator[dict[str, Any]]:
        """Endless micro-batches from ``start_step`` on.

        Raises:
            RunError: with several processes, which would all see the same batches, or if there is
                no batch.
        """
        if split.world_size > 1:
            raise RunError(
                "a plain list of batches serves one process; pass a loader with stream()"
            )
        skip = start_step * split.accumulation
        while True:
            count = 0
            for batch in self.batches:
                count += 1
                if skip:
                    skip -= 1
                    continue
                yield send_to_device(batch, device)
            if not count:
                raise RunError("there is no batch to train on")
