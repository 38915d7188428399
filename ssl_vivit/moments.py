"""Count, mean and sum of squared deviations of numbers, which merge exactly, whatever the split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Moments of the known numbers of each entry.

    Merging works on deviations from the mean (Chan et al. 1979), so no digits are lost where the
    mean is large.

    Args:
        count: known numbers; an array of NumPy or a tensor.
        mean: float64, 0 where nothing is known.
        deviation: sum of squared deviations from the mean.
    """

    count: Any
    mean: Any
    deviation: Any

    @classmethod
    def of(cls, values: np.ndarray, axis: int = 0) -> Moments:
        """Moments over an axis; NaN is unknown."""
        known = ~np.isnan(values)
        count = known.sum(axis)
        filled = np.where(known, values, 0).astype(np.float64)
        mean = filled.sum(axis) / np.maximum(count, 1)
        deviation = np.where(known, (filled - np.expand_dims(mean, axis)) ** 2, 0).sum(axis)
        return Moments(count, mean, deviation)

    @classmethod
    def of_pixels(cls, values: np.ndarray) -> Moments:
        """Moments of all values together; no float copy is made of uint8."""
        if values.dtype != np.uint8:
            return cls.of(values.reshape(-1))
        numbers = np.bincount(values.reshape(-1), minlength=256).astype(np.float64)
        mean = numbers @ np.arange(256) / values.size
        return Moments(np.int64(values.size), mean, numbers @ (np.arange(256) - mean) ** 2)

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """Moments of the numbers of all parts together."""
        first, *others = parts
        for other in others:
            count = first.count + other.count
            # Nothing is divided by 0 where nothing is known.
            share = other.count / (count + (count == 0))
            shift = other.mean - first.mean
            deviation = first.deviation + other.deviation
            deviation = deviation + cls.squared(shift) * first.count * share
            first = cls(count, first.mean + shift * share, deviation)
        return first

    @staticmethod
    def squared(distance: Any) -> Any:
        """The squares that ``deviation`` adds up."""
        return distance * distance

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of the population; 0 where nothing is known."""
        return np.sqrt(self.deviation / np.maximum(self.count, 1))

    @property
    def varies(self) -> np.ndarray:
        """Entries whose numbers differ by more than float32 rounds: bool."""
        return self.std > np.finfo(np.float32).eps * np.abs(self.mean)
