"""Join a recording's stimuli on one clock, and cut them into trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_prep.nwb.frame_clock import PAUSE, even_edges, frame_at, frame_rate
from data_prep.nwb.presentations import NO_INTERVAL, intervals
from data_prep.nwb.stimuli import ShownFrames
from ssl_vivit.errors import DataError

_SAME_RATE = 0.01
# Tolerance as a fraction of a frame, since trial tables and frame times are often written by
# different computers.
_EARLY = 0.01
_TOO_FEW = "rows show fewer than two frames of the stimulus"


@dataclass(frozen=True)
class Timeline:
    """All shown frames of a recording, in order of time.

    Attributes:
        onsets: (F,) seconds.
        ends: (F,) seconds: the next onset or, before a pause, the frame's onset + usual interval.
        stimulus: (F,) index of the frame's stimulus in the list of stimuli.
        position: (F,) index of the shown frame in its stimulus's pieces; −1 for a grey screen.
        interval: usual (median) seconds between frames.
    """

    onsets: np.ndarray
    ends: np.ndarray
    stimulus: np.ndarray
    position: np.ndarray
    interval: float


@dataclass(frozen=True)
class TrialFrames:
    """The bins of a trial and the frame shown in each.

    Attributes:
        edges: (T + 1,) seconds.
        stimulus: (T,) index of the frame's stimulus in the list of stimuli.
        position: (T,) index of the shown frame in its stimulus's pieces; −1 for a grey screen.
        row: index of the trial's row in the table of trials; None if no table was used.
    """

    edges: np.ndarray
    stimulus: np.ndarray
    position: np.ndarray
    row: int | None = None


def join(stimuli: Sequence[ShownFrames], rate: float | None) -> Timeline:
    """Join several stimuli to one timeline.

    Args:
        stimuli: the shown stimuli.
        rate: rate of the bins; None for one bin per frame, which requires equal frame rates.

    Raises:
        DataError: if two stimuli overlap, or their rates differ and ``rate`` is None.
    """
    usual = [float(np.median(np.diff(shown.onsets))) for shown in stimuli]
    rates = [frame_rate(shown.onsets) for shown in stimuli]
    if rate is None and max(rates) > min(rates) * (1 + _SAME_RATE):
        told = ", ".join(f"{s.name} at {r:.4g} Hz" for s, r in zip(stimuli, rates, strict=True))
        raise DataError(
            f"the stimuli have different frame rates ({told}); set the rate of bins by --rate"
        )
    onsets = np.concatenate([shown.onsets for shown in stimuli])
    ends = np.concatenate([shown.ends for shown in stimuli])
    # True if a frame lasted until the next frame of its stimulus.
    followed = np.concatenate([np.append(s.ends[:-1] >= s.onsets[1:], False) for s in stimuli])
    number = np.repeat(np.arange(len(stimuli)), [len(shown.onsets) for shown in stimuli])
    position = np.concatenate([shown.positions for shown in stimuli])
    order = np.argsort(onsets, kind="stable")
    onsets, ends, number, position = (a[order] for a in (onsets, ends, number, position))
    broken = followed[order][:-1] & (number[:-1] != number[1:])
    if (at_once := np.flatnonzero(broken | (np.diff(onsets) <= 0))).size:
        k = int(at_once[0])
        raise DataError(
            f"{stimuli[number[k]].name} and {stimuli[number[k + 1]].name} overlap at "
            f"{onsets[k + 1]:.3f} s; choose one of them by --stimulus"
        )
    return Timeline(
        onsets,
        np.minimum(ends, np.append(onsets[1:], np.inf)),
        number,
        position,
        float(np.median(usual)),
    )


def cut_by_table(
    timeline: Timeline, starts: np.ndarray, stops: np.ndarray, rate: float | None
) -> tuple[list[TrialFrames], Counter[str]]:
    """Cut a trial for each row of a table, with the frames whose onset is in [start, stop).

    Args:
        timeline: the shown frames.
        starts: (R,) start of each row in seconds.
        stops: (R,) stop of each row in seconds.
        rate: number of even bins per second; None for one bin per frame.

    Returns:
        The trials, and the number of rows without a trial, by reason.
    """
    early = _EARLY * timeline.interval
    trials, kept = [], []
    left_out: Counter[str] = Counter()
    rows, bad = intervals(starts, stops)
    if bad:
        left_out[f"rows {NO_INTERVAL}"] = bad
    for row in rows.tolist():
        span = [starts[row] - early, stops[row] - early]
        first, last = np.searchsorted(timeline.onsets, span).tolist()
        if last == first:
            left_out[_TOO_FEW] += 1
        elif _pauses(timeline, first, last):
            left_out["rows contain a pause between frames"] += 1
        elif len((trial := _trial(timeline, first, last, rate, row)).position) < 2:
            left_out[_TOO_FEW] += 1
        else:
            trials.append(trial)
            kept.append(row)
    in_order = np.array(sorted(kept, key=lambda row: starts[row]), dtype=np.int64)
    _refuse_overlap(in_order, starts, stops, early)
    return trials, left_out


def _refuse_overlap(rows: np.ndarray, starts: np.ndarray, stops: np.ndarray, early: float) -> None:
    """Raise if trials share frames, which could then be in train and in another tier."""
    together = np.flatnonzero(stops[rows[:-1]] - early > starts[rows[1:]])
    if together.size:
        one, other = rows[together[0]], rows[together[0] + 1]
        raise DataError(
            f"rows {one} and {other} of the trials overlap: {starts[one]:.6g} to {stops[one]:.6g} "
            f"s and {starts[other]:.6g} to {stops[other]:.6g} s; each frame must belong to one "
            "trial; fix the table, give another table by --trials, or set --trial-seconds to cut "
            "evenly"
        )


def cut_evenly(
    timeline: Timeline, seconds: float, rate: float | None
) -> tuple[list[TrialFrames], Counter[str]]:
    """Cut the timeline into trials of about equal length.

    Trials end at pauses, at the start of another stimulus, and where a movie starts again. Each
    stretch between such ends is divided evenly into trials of about ``seconds``, so that all frames
    are used and repeats of a movie are cut at equal frames. A grey screen belongs to the trial of
    the picture before it. Stretches with only grey are dropped.

    Args:
        timeline: the shown frames.
        seconds: target duration of a trial.
        rate: number of even bins per second; None for one bin per frame.

    Returns:
        The trials, and the number of pieces that are too short for a trial, by reason.

    Raises:
        DataError: if a frame lasts longer than ``seconds``.
    """
    if timeline.interval > seconds:
        raise DataError(
            f"frames last {timeline.interval:.4g} s, longer than --trial-seconds "
            f"{seconds:g}; check that times are in seconds, or raise --trial-seconds"
        )
    trials = []
    left_out: Counter[str] = Counter()
    for first, last in _stretches(timeline):
        seen = first + np.flatnonzero(timeline.position[first:last] >= 0)
        if not seen.size:
            continue
        pieces = max(1, round((timeline.ends[seen[-1]] - timeline.onsets[first]) / seconds))
        pieces = min(pieces, len(seen))
        # Cut by number of pictures, so that repeats with other grey gaps are cut at equal pictures.
        inner = np.linspace(0, len(seen), pieces + 1).round().astype(int)[1:-1]
        cuts = [first, *seen[inner].tolist(), last]
        for a, b in pairwise(cuts):
            trial = _trial(timeline, a, b, rate, None)
            if len(trial.position) >= 2:
                trials.append(trial)
            else:
                left_out["pieces of the stimulus are a single frame"] += 1
    return trials, left_out


def _stretches(timeline: Timeline) -> list[tuple[int, int]]:
    paused = timeline.ends[:-1] < timeline.onsets[1:]
    changed = timeline.stimulus[:-1] != timeline.stimulus[1:]
    starts = np.flatnonzero(paused | changed) + 1
    found = []
    for first, last in zip([0, *starts], [*starts, len(timeline.onsets)], strict=True):
        seen = first + np.flatnonzero(timeline.position[first:last] >= 0)
        steps = np.diff(timeline.position[seen])
        back = np.flatnonzero(steps < 0)
        # Images in random order often go back to a lower number, which is not a movie's restart.
        in_order = (np.delete(steps, back) <= 1).all() and len(back) < len(steps) / 4
        inner = seen[back + 1] if in_order else []
        found += list(zip([first, *inner], [*inner, last], strict=True))
    return [(int(a), int(b)) for a, b in found]


def _pauses(timeline: Timeline, first: int, last: int) -> bool:
    gaps = timeline.onsets[first + 1 : last] - timeline.ends[first : last - 1]
    return bool((gaps > (PAUSE - 1) * timeline.interval).any())


def _trial(
    timeline: Timeline, first: int, last: int, rate: float | None, row: int | None
) -> TrialFrames:
    onsets = timeline.onsets[first:last]
    if rate is None:
        edges = np.append(onsets, timeline.ends[last - 1])
        frames = np.arange(first, last)
    else:
        edges = even_edges(onsets[0], timeline.ends[last - 1], rate)
        frames = first + frame_at(onsets, edges)
    return TrialFrames(edges, timeline.stimulus[frames], timeline.position[frames], row)
