"""Bin spikes and behaviour by the frames of a stimulus.

A frame lasts from its onset to the next onset, [t_k, t_k+1), in seconds on the recording's clock,
float64. A spike or sample exactly on an edge belongs to the frame that begins there.
"""

from __future__ import annotations

import numpy as np

# An interval longer than this multiple of the usual interval contains a pause without frames.
PAUSE = 2.5
# Fraction of a bin by which two times may differ and still count as one edge.
_TOLERANCE = 1e-6


def frame_ends(onsets: np.ndarray) -> np.ndarray:
    """Return each frame's end: the next onset or, before a pause, its onset + the median interval.

    Args:
        onsets: (F,) seconds, strictly increasing, at least two.

    Returns:
        (F,) seconds.
    """
    usual = float(np.median(np.diff(onsets)))
    lasts = np.append(np.diff(onsets), np.inf)
    ends = np.append(onsets[1:], np.inf)
    paused = lasts > PAUSE * usual
    ends[paused] = onsets[paused] + usual
    return ends


def frame_rate(onsets: np.ndarray) -> float:
    """Return frames per second, from the mean of all intervals except pauses.

    The median interval would be inexact if onsets are stored in whole milliseconds.

    Args:
        onsets: (F,) seconds, at least two.
    """
    lasts = np.diff(onsets)
    return float(1 / lasts[lasts <= PAUSE * np.median(lasts)].mean())


def even_edges(start: float, stop: float, rate: float) -> np.ndarray:
    """Return the edges of all whole bins of ``1 / rate`` seconds that fit between two times.

    Args:
        start: start of the first bin in seconds.
        stop: latest end of the last bin in seconds.
        rate: bins per second.

    Returns:
        (bins + 1,) seconds, ``start + k / rate``, without accumulated rounding errors.
    """
    bins = int(np.floor((stop - start) * rate + 1e-3))
    return start + np.arange(bins + 1) / rate


def frame_at(onsets: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the index of the frame that is on the screen at the start of each bin.

    A frame that begins within a bin counts from the next bin on, so that no response precedes its
    stimulus.

    Args:
        onsets: (F,) seconds.
        edges: (bins + 1,) seconds; the first must not be before ``onsets[0]``.

    Returns:
        (bins,) indices into ``onsets``.
    """
    slack = _TOLERANCE * np.diff(edges)
    return np.searchsorted(onsets, edges[:-1] + slack, side="right") - 1


def spike_counts(spike_times: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count the spikes in each bin [edge_k, edge_k+1), in float64 without a tolerance.

    Args:
        spike_times: (S,) seconds, sorted.
        edges: (bins + 1,) seconds, increasing.

    Returns:
        (bins,) int64.
    """
    return np.diff(np.searchsorted(spike_times, edges, side="left"))


def observed(intervals: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mark the bins that lie completely within an interval in which a unit was recorded.

    Args:
        intervals: (I, 2) seconds, start and stop.
        edges: (bins + 1,) seconds.

    Returns:
        (bins,) bool.
    """
    slack = _TOLERANCE * np.diff(edges)
    begins = edges[:-1, None] + slack[:, None] >= intervals[:, 0]
    ends = edges[1:, None] - slack[:, None] <= intervals[:, 1]
    return np.asarray((begins & ends).any(1))


def bin_means(times: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Average a signal over bins, without using later samples.

    A bin has the mean of the samples in [edge_k, edge_k+1). A bin without samples has the last
    value before it. Missing samples (NaN) are ignored.

    Args:
        times: (S,) seconds, sorted.
        values: (S, K).
        edges: (bins + 1,) seconds.

    Returns:
        (bins, K) float64; NaN before the first sample.
    """
    columns = []
    for column in np.asarray(values, np.float64).T:
        known = ~np.isnan(column)
        when, what = times[known], column[known]
        cuts = np.searchsorted(when, edges, side="left")
        count = np.diff(cuts)
        # Sum each bin separately: differences of cumulative sums would lose precision.
        bins = np.repeat(np.arange(len(count)), count)
        total = np.bincount(bins, what[cuts[0] : cuts[-1]], minlength=len(count))
        held = np.append(what, np.nan)[cuts[:-1] - 1]
        columns.append(np.where(count > 0, total / np.maximum(count, 1), held))
    return np.stack(columns, axis=1)


def sample_means(
    times: np.ndarray, values: np.ndarray, edges: np.ndarray, keep_seconds: float
) -> np.ndarray:
    """Average responses over bins, without using later samples and without filling long gaps.

    A bin has the mean of the samples in [edge_k, edge_k+1) that are not NaN. A bin without samples
    has the last sample before it, if that is at most ``keep_seconds`` old.

    Args:
        times: (S,) seconds, increasing.
        values: (S, N); NaN is unknown.
        edges: (bins + 1,) seconds.
        keep_seconds: largest age of a sample that is used for a later bin.

    Returns:
        (bins, N) float64; NaN for unknown responses.
    """
    means = np.full((len(edges) - 1, values.shape[1]), np.nan)
    cuts = np.searchsorted(times, edges, side="left")
    filled = np.diff(cuts) > 0
    if filled.any():
        inside = values[cuts[0] : cuts[-1]]
        starts = cuts[:-1][filled] - cuts[0]
        known = ~np.isnan(inside)
        count = np.add.reduceat(known.astype(np.int64), starts)
        total = np.add.reduceat(np.where(known, inside, 0.0), starts)
        means[filled] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    before = cuts[:-1] - 1
    held = np.flatnonzero(~filled & (before >= 0))
    held = held[edges[held] - times[before[held]] <= keep_seconds]
    means[held] = values[before[held]]
    return means
