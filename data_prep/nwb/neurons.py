"""Responses of recorded neurons in the bins of a trial: spike counts or calcium signals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from data_prep.nwb.frame_clock import observed, sample_means, spike_counts


class Neurons(Protocol):
    """Neurons whose responses can be read for any bins.

    Attributes:
        kind: "spikes" or "calcium".
        ids: (N,) int64, ids of the chosen neurons in the file.
        available: number of neurons in the file.
    """

    kind: Literal["spikes", "calcium"]
    ids: np.ndarray
    available: int

    def responses(self, edges: np.ndarray) -> np.ndarray:
        """Return the responses of all neurons in the bins between successive edges.

        Args:
            edges: (bins + 1,) seconds, increasing.

        Returns:
            (bins, N) float32; NaN in bins in which a neuron was not recorded.
        """


@dataclass(frozen=True)
class Unit:
    """A unit from spike sorting.

    Attributes:
        number: id of the unit in the file.
        spike_times: (S,) seconds, sorted.
        intervals: (I, 2) start and stop in seconds of the recorded intervals; None if unknown.
    """

    number: int
    spike_times: np.ndarray
    intervals: np.ndarray | None


class SpikingUnits:
    """Units from spike sorting; their responses are spike counts.

    Args:
        units: the chosen units.
        available: number of units in the file.
    """

    kind: Literal["spikes", "calcium"] = "spikes"

    def __init__(self, units: list[Unit], available: int) -> None:
        self._units = units
        self.available = available
        self.ids = np.array([unit.number for unit in units], np.int64)

    def responses(self, edges: np.ndarray) -> np.ndarray:
        """Return spike counts in [edge, next edge).

        Args:
            edges: (bins + 1,) seconds, increasing.

        Returns:
            (bins, N) float32; NaN in bins that are not completely within a recorded
                interval of the unit.
        """
        responses = np.empty((len(edges) - 1, len(self._units)), np.float32)
        for column, unit in enumerate(self._units):
            responses[:, column] = spike_counts(unit.spike_times, edges)
            if unit.intervals is not None:
                responses[~observed(unit.intervals, edges), column] = np.nan
        return responses


class RoiSignals:
    """Regions of interest of calcium imaging; their responses are means over each bin.

    Args:
        name: path of the series in the file.
        ids: (N,) ids of the chosen regions.
        times: (S,) times of the samples in seconds, increasing.
        samples: array (S, R) or (S,), in memory or on disk.
        columns: (N,) column of each chosen region in ``samples``.
        available: number R of regions in the file.
        scale: factor that converts samples to the series' unit.
        shift: number added after the multiplication.
    """

    kind: Literal["spikes", "calcium"] = "calcium"

    def __init__(
        self,
        name: str,
        ids: np.ndarray,
        times: np.ndarray,
        samples: Any,
        columns: np.ndarray,
        available: int,
        scale: float,
        shift: float,
    ) -> None:
        self.name = name
        self.ids = ids
        self.times = times
        self.interval = float(np.median(np.diff(times)))
        self._samples = samples
        self._columns = columns
        self.available = available
        self._scale = scale
        self._shift = shift

    def responses(self, edges: np.ndarray) -> np.ndarray:
        """Return the mean of each region's samples in [edge, next edge).

        A bin without samples has the last sample before it if that is at most 1.5 sampling
        intervals old, else NaN.

        Args:
            edges: (bins + 1,) seconds, increasing.

        Returns:
            (bins, N) float32.
        """
        first, last = np.searchsorted(self.times, edges[[0, -1]], side="left").tolist()
        first = max(0, first - 1)
        block = np.asarray(self._samples[first:last], np.float64)
        block = block[:, None] if block.ndim == 1 else block
        block = block[:, self._columns] * self._scale + self._shift
        means = sample_means(self.times[first:last], block, edges, 1.5 * self.interval)
        return means.astype(np.float32)
