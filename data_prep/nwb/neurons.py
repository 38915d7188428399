"""Responses of recorded neurons in the bins of a trial: spike counts or a calcium signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from data_prep.nwb.frame_clock import observed, sample_means, spike_counts


class Neurons(Protocol):
    """Neurons whose responses can be read in any bins.

    Attributes:
        kind: of the responses.
        ids: (N,) int64, of the neurons in the file.
        available: neurons that could have been chosen.
    """

    kind: Literal["spikes", "calcium"]
    ids: np.ndarray
    available: int

    def responses(self, edges: np.ndarray) -> np.ndarray:
        """Return (bins, N) float32; NaN where a neuron was not recorded."""


@dataclass(frozen=True)
class Unit:
    """A sorted unit.

    Attributes:
        number: its id in the file.
        spike_times: (S,) seconds, sorted.
        intervals: (I, 2) seconds in which it was recorded; None if the file does not say.
    """

    number: int
    spike_times: np.ndarray
    intervals: np.ndarray | None


class SpikingUnits:
    """Sorted units, whose responses are spike counts.

    Args:
        units: the chosen ones.
        available: units that could have been chosen.
    """

    kind: Literal["spikes", "calcium"] = "spikes"

    def __init__(self, units: list[Unit], available: int) -> None:
        self._units = units
        self.available = available
        self.ids = np.array([unit.number for unit in units], np.int64)

    def responses(self, edges: np.ndarray) -> np.ndarray:
        """Spikes in [edge, next edge); NaN in bins in which a unit was not recorded."""
        responses = np.empty((len(edges) - 1, len(self._units)), np.float32)
        for column, unit in enumerate(self._units):
            responses[:, column] = spike_counts(unit.spike_times, edges)
            if unit.intervals is not None:
                responses[~observed(unit.intervals, edges), column] = np.nan
        return responses


class RoiSignals:
    """Regions of interest of calcium imaging, whose responses are means over each bin.

    Args:
        name: path of the series in the file.
        ids: (N,) of the chosen regions.
        times: (S,) seconds of the samples, increasing.
        samples: (S, R) or (S,) array, may lie on disk.
        columns: (N,) the chosen regions' columns of ``samples``.
        available: regions that could have been chosen, R.
        scale: factor to the series' unit.
        shift: added after the factor.
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
        """Mean of the samples in [edge, next edge).

        A bin without samples has the last one from before it, if that is not older than one and a
        half sampling intervals, else NaN.
        """
        first, last = np.searchsorted(self.times, edges[[0, -1]], side="left").tolist()
        first = max(0, first - 1)
        block = np.asarray(self._samples[first:last], np.float64)
        block = block[:, None] if block.ndim == 1 else block
        block = block[:, self._columns] * self._scale + self._shift
        means = sample_means(self.times[first:last], block, edges, 1.5 * self.interval)
        return means.astype(np.float32)
