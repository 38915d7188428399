"""Count, mean and sum of squared deviations, computed from parts of the data and then merged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of samples, for each of several variables.

    Unknown values (NaN) are left out. Merging uses deviations from the mean (Chan et al. 1979), so
    no digits are lost if the mean is large. The three arrays have one element for each variable.

    Args:
        count: number of known values, as a NumPy array or a tensor.
        mean: mean of the known values, float64; 0 for variables without known values.
        deviation: sum of squared deviations of the known values from the mean.
    """

    count: Any
    mean: Any
    deviation: Any

    @classmethod
    def of(cls, values: np.ndarray, axis: int = 0) -> Moments:
        """Return the moments of an array along one axis, the axis of samples; NaN is left out."""
        known = ~np.isnan(values)
        count = known.sum(axis)
        filled = np.where(known, values, 0).astype(np.float64)
        mean = filled.sum(axis) / np.maximum(count, 1)
        deviation = np.where(known, (filled - np.expand_dims(mean, axis)) ** 2, 0).sum(axis)
        return Moments(count, mean, deviation)

    @classmethod
    def of_pixels(cls, values: np.ndarray) -> Moments:
        """Return the moments of all values of an array, without a float copy of uint8 values."""
        if values.dtype != np.uint8:
            return cls.of(values.reshape(-1))
        numbers = np.bincount(values.reshape(-1), minlength=256).astype(np.float64)
        mean = numbers @ np.arange(256) / values.size
        return Moments(np.int64(values.size), mean, numbers @ (np.arange(256) - mean) ** 2)

    @classmethod
    def merged(cls, parts: Iterable[Self]) -> Self:
        """Return the moments of a data set from the moments of its parts."""
        first, *others = parts
        for other in others:
            count = first.count + other.count
            # Avoid a division by 0 for entries without known values.
            share = other.count / (count + (count == 0))
            shift = other.mean - first.mean
            deviation = first.deviation + other.deviation
            deviation = deviation + cls.squared(shift) * first.count * share
            first = cls(count, first.mean + shift * share, deviation)
        return first

    @staticmethod
    def squared(distance: Any) -> Any:
        """Square deviations elementwise.

        A subclass for several variables may return products of their deviations instead.
        """
        return distance * distance

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation; 0 for variables without known values."""
        return np.sqrt(self.deviation / np.maximum(self.count, 1))

    @property
    def varies(self) -> np.ndarray:
        """Mask of variables whose values differ by more than float32 rounding."""
        return self.std > np.finfo(np.float32).eps * np.abs(self.mean)
