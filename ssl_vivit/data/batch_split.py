"""Split of the global batch of one optimisation step over processes and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSplit:
    """Part of every global batch that one process loads.

    The global batch of a step does not depend on the split. Micro-batch ``a`` of process ``r``
    consists of ``micro_batch_size`` samples of the global batch, from position
    ``(a · world_size + r) · micro_batch_size`` on. All micro-batches have this size.

    Args:
        total_batch_size: number of samples of the global batch, over all processes and
            micro-batches.
        world_size: number of processes.
        rank: rank of this process, 0 ≤ rank < world_size.
        accumulation: number of micro-batches of each process in one optimisation step.

    Raises:
        ValueError: if the batch does not divide evenly; the message suggests sizes that do.
    """

    total_batch_size: int
    world_size: int = 1
    rank: int = 0
    accumulation: int = 1

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulation
        if self.total_batch_size < 1 or self.total_batch_size % parts:
            below = self.total_batch_size // parts * parts
            near = sorted({size for size in (below, below + parts) if size > 0})
            raise ValueError(
                f"total_batch_size {self.total_batch_size} does not divide over {self.world_size} "
                f"processes × {self.accumulation} accumulation steps; "
                f"set it to {' or '.join(map(str, near))}"
            )

    @property
    def micro_batch_size(self) -> int:
        return self.total_batch_size // (self.world_size * self.accumulation)

    def positions(self, micro_step: int) -> range:
        """Return the positions of this process's micro-batch ``micro_step`` in the global batch."""
        start = (micro_step * self.world_size + self.rank) * self.micro_batch_size
        return range(start, start + self.micro_batch_size)
