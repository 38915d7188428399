"""What the processes of a run tell each other on the host, without waiting for the GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ssl_vivit.errors import RunError


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
            RunError: on all processes, if the work raised one.
        """
        outcome: dict[str, Any] | None = None
        if self.is_main:
            try:
                outcome = {"result": work()}
            except RunError as error:
                outcome = {"error": str(error)}
        outcome = self.gather(outcome)[0]
        assert outcome is not None
        if "error" in outcome:
            raise RunError(outcome["error"])
        return outcome["result"]
