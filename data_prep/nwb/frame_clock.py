"""Spikes and behaviour binned by the frames of a stimulus.

A frame lasts from its onset to the next one's, [t_k, t_k+1), in seconds on the recording's clock,
float64. What falls exactly on an edge belongs to the frame that begins there.
"""

from __future__ import annotations

import numpy as np

# An interval this many times the usual one is a pause: no frame is shown in it.
PAUSE = 2.5
# Share of a bin by which two clocks may disagree and still mean the same edge.
_TOLERANCE = 1e-6


def frame_ends(onsets: np.ndarray) -> np.ndarray:
    """Return the end of each frame: the next onset, or before a pause one usual interval later.

    Args:
        onsets: (F,) seconds, strictly increasing, at least two.

    Returns:
        (F,) seconds; the usual interval is the median.
    """
    usual = float(np.median(np.diff(onsets)))
    lasts = np.append(np.diff(onsets), np.inf)
    ends = np.append(onsets[1:], np.inf)
    paused = lasts > PAUSE * usual
    ends[paused] = onsets[paused] + usual
    return ends


def frame_rate(onsets: np.ndarray) -> float:
    """Frames per second over all intervals that are no pauses.

    Args:
        onsets: (F,) seconds, at least two. Their mean interval counts, not the usual one, which a
            clock of whole milliseconds would round.
    """
    lasts = np.diff(onsets)
    return float(1 / lasts[lasts <= PAUSE * np.median(lasts)].mean())


def even_edges(start: float, stop: float, rate: float) -> np.ndarray:
    """Edges of as many whole bins of ``1 / rate`` seconds as lie between two times.

    Returns:
        (bins + 1,) seconds; each is ``start + k / rate``, nothing is summed up.
    """
    bins = int(np.floor((stop - start) * rate + 1e-3))
    return start + np.arange(bins + 1) / rate


def frame_at(onsets: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the frame on the screen at the start of each bin: the last whose onset is not after it.

    Args:
        onsets: (F,) seconds.
        edges: (bins + 1,) seconds, the first not before ``onsets[0]``.

    Returns:
        (bins,) positions in ``onsets``. A frame that begins within a bin is not seen before the
        next, so that no response precedes its stimulus.
    """
    slack = _TOLERANCE * np.diff(edges)
    return np.searchsorted(onsets, edges[:-1] + slack, side="right") - 1


def spike_counts(spike_times: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Spikes in each bin [edge_k, edge_k+1), compared in float64 without any tolerance.

    Args:
        spike_times: (S,) seconds, sorted.
        edges: (bins + 1,) seconds, increasing.

    Returns:
        (bins,) int64.
    """
    return np.diff(np.searchsorted(spike_times, edges, side="left"))


def observed(intervals: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mark the bins that lie wholly within one of the intervals in which a unit was recorded.

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
    """Resample a signal to bins without looking ahead.

    A bin has the mean of the samples in [edge_k, edge_k+1); one without samples has the last value
    from before it. Missing samples (NaN) count as not there.

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
        # Sums of one bin each: a difference of running sums would lose digits over a session.
        bins = np.repeat(np.arange(len(count)), count)
        total = np.bincount(bins, what[cuts[0] : cuts[-1]], minlength=len(count))
        held = np.append(what, np.nan)[cuts[:-1] - 1]
        columns.append(np.where(count > 0, total / np.maximum(count, 1), held))
    return np.stack(columns, axis=1)


def sample_means(
    times: np.ndarray, values: np.ndarray, edges: np.ndarray, keep_seconds: float
) -> np.ndarray:
    """Resample responses to bins without looking ahead and without filling gaps.

    A bin has the mean of the samples in [edge_k, edge_k+1) that are known. One without samples has
    the last sample from before it, if that is recent.

    Args:
        times: (S,) seconds, increasing.
        values: (S, N); NaN is unknown.
        edges: (bins + 1,) seconds.
        keep_seconds: how long before a bin its last sample may lie.

    Returns:
        (bins, N) float64; NaN where nothing is known.
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
