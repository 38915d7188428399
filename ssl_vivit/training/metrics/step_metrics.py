"""Loss, gradient norm and metrics of an optimisation step, copied from the device for logging."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.objectives.contract import Step


@dataclass
class StepMetrics:
    """Losses and metrics of one step, copied to the host without waiting for the device.

    Attributes:
        step: number of the step, from 1.
        names: names of the metrics.
        numbers: losses of the micro-batches, then gradient norm, then metrics averaged over
            micro-batches; on the host.
        copied: event that marks the end of the copy; None on the CPU.
        keys: for each micro-batch, the names of its samples.
        clips: number of clips in this process's micro-batches.
        learning_rate: learning rate of the step.
    """

    step: int
    names: list[str]
    numbers: Tensor
    copied: torch.cuda.Event | None
    keys: list[list[str]]
    clips: int
    learning_rate: float
    _values: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        step: int,
        steps: list[Step],
        norm: Tensor,
        micro_batches: list[dict[str, Any]],
        learning_rate: float,
    ) -> StepMetrics:
        names = list(steps[0].metrics)
        metrics = [
            torch.stack([part.metrics[name].detach().double() for part in steps]).mean()
            for name in names
        ]
        losses = [part.loss.detach().double() for part in steps]
        numbers = torch.stack([*losses, norm.detach().double(), *metrics])
        copied = None
        if numbers.is_cuda:
            numbers = numbers.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        keys = [list(map(str, batch.get("key", ()))) for batch in micro_batches]
        clips = sum(clips_of(batch) for batch in micro_batches)
        return cls(step, names, numbers, copied, keys, clips, learning_rate)

    def read(self) -> list[float]:
        """Wait for the copy to end and return ``numbers`` as a list."""
        if self.copied is not None:
            self.copied.synchronize()
        self._values = self.numbers.tolist()
        return self._values

    def split(self, values: list[float]) -> tuple[list[float], float, dict[str, float]]:
        """Split a list ordered like ``numbers`` into losses, gradient norm and metrics by name.

        Args:
            values: the list that :meth:`read` returned, or its mean over processes.
        """
        count = len(self.keys)
        metrics = dict(zip(self.names, values[count + 1 :], strict=True))
        return values[:count], values[count], metrics

    def suspects(self) -> list[str]:
        """Return the keys of samples in those micro-batches whose loss is not finite."""
        losses = self._values[: len(self.keys)]
        return [
            key
            for keys, loss in zip(self.keys, losses, strict=True)
            if not math.isfinite(loss)
            for key in keys
        ]


def clips_of(batch: dict[str, Any]) -> int:
    """Count the clips of a batch.

    A tensor (b, views, C, T, H, W) has b · views clips. In other batches the count is the length of
    the first tensor, or the number of keys.
    """
    clips = batch.get("clips")
    if isinstance(clips, Tensor) and clips.ndim == 6:
        return clips.shape[0] * clips.shape[1]
    return next(
        (len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim),
        len(batch.get("key", ())),
    )
