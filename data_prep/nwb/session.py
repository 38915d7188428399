"""From an opened NWB file to a session on disk: trials cut, spikes counted, movies split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.nwb.file import NwbFile, ShownFrames, Signal, Unit
from data_prep.nwb.frame_clock import bin_means, observed, spike_counts
from data_prep.nwb.grey_frames import GreyFrames
from data_prep.nwb.movie_split import frame_prints, movies, split_movies
from data_prep.nwb.stimulus_trials import TrialFrames, cut_by_table, cut_evenly, join
from data_prep.session_writer import SessionWriter
from ssl_vivit.data.sessions.layout import SENSORIUM_TIERS
from ssl_vivit.data.sessions.split import shared_movies
from ssl_vivit.errors import DataError

_STALE_SECONDS = 1.0
_UNEVEN = 0.1


@dataclass(frozen=True)
class NwbReport:
    """The session that was made of a file.

    Attributes:
        path: the session's folder.
        neurons: units written.
        tiers: tier → number of trials.
        frames_per_second: of the bins.
        notes: lines on what was left out or is unusual.
    """

    path: Path
    neurons: int
    tiers: dict[str, int]
    frames_per_second: float
    notes: list[str]


def convert(
    path: str | Path,
    out: str | Path,
    *,
    stimuli: Sequence[str] = (),
    running: str | None = None,
    pupil: Sequence[str] = (),
    behaviour: Sequence[str] = (),
    rate: float | None = None,
    size: tuple[int, int] = (36, 64),
    trials: str | None = None,
    trial_seconds: float | None = None,
    tiers: str | None = None,
    held_out: float = 0.2,
    transpose: bool = False,
    progress: bool = True,
) -> NwbReport:
    """Write a session in the Sensorium layout.

    Args:
        path: the NWB file.
        out: the session's folder; appears whole.
        stimuli: names of the stimuli; empty for the only one.
        running: TimeSeries of running speed, a channel of behaviour.
        pupil: TimeSeries of the pupil: one of two columns is its centre, one of one column its
            size, a channel of behaviour.
        behaviour: further TimeSeries, each column a channel.
        rate: bins per second; None for one bin a frame.
        size: (H, W) of the frames.
        trials: table of intervals with ``start_time`` and ``stop_time``; None for ``trials`` where
            the file has it and ``trial_seconds`` is not given.
        trial_seconds: length of trials cut without a table, by default 10.
        tiers: column of the table that holds each trial's tier; None to split by movie.
        held_out: share of the trials that are not for training, where they are split here.
        transpose: whether frames are stored (frame, column, row).
        progress: whether to show a bar.

    Raises:
        DataError: if the file cannot be used as asked; the message names the option.
    """
    _check_settings(rate, size, trial_seconds, held_out, trials)
    notes: list[str] = []
    with NwbFile(path) as file:
        units = file.units()
        shown = _choose(file, stimuli)
        signals, centre = _signals(file, running, pupil, behaviour)
        cut, given, left_out = _cut(file, shown, rate, trials, trial_seconds, tiers)
        cut, given = _with_signals(cut, given, [*signals, *centre], left_out, notes)
        if not cut:
            raise DataError(_no_trials(path, left_out))
        frames = [_Shown(stimulus, size, transpose) for stimulus in shown]
        bins = np.concatenate([np.diff(trial.edges) for trial in cut])
        frames_per_second = rate if rate is not None else round(float(1 / bins.mean()), 4)
        notes += _clock_notes(bins)
        if any(_squeezed(f.source_size, size) for f in frames):
            notes.append(
                f"frames of {frames[0].source_size[0]}×{frames[0].source_size[1]} pixels become "
                f"{size[0]}×{size[1]}, another aspect"
            )
        with SessionWriter(
            out,
            frames_per_second=frames_per_second,
            kind="spikes",
            unit_ids=[unit.number for unit in units],
            facts={
                "source": Path(path).name,
                "identifier": file.identifier,
                "stimuli": [stimulus.name for stimulus in shown],
                "behaviour": [signal.name for signal in signals],
            },
        ) as session:
            bar = tqdm(cut, desc="frames", unit="trial", disable=not progress)
            prints = [frame_prints(_video(trial, frames)) for trial in bar]
            chosen = given if given is not None else split_movies(prints, held_out)
            shown_in: dict[str, set[int]] = {"train": set()}
            for movie, tier in zip(movies(prints), chosen, strict=True):
                shown_in.setdefault(tier, set()).add(movie)
            for tier, (count, _) in sorted(shared_movies(shown_in).items()):
                notes.append(f"{count} movies of {tier} are shown in train, too")
            total = np.zeros(len(units), np.int64)
            bar = tqdm(cut, desc="trials", unit="trial", disable=not progress)
            for trial, tier in zip(bar, chosen, strict=True):
                responses = _responses(units, trial.edges)
                total += np.nansum(responses, axis=0).astype(np.int64)
                session.add(
                    tier,
                    _video(trial, frames),
                    responses,
                    behaviour=_columns(signals, trial.edges),
                    pupil_centre=_columns(centre, trial.edges),
                )
    if silent := int((total == 0).sum()):
        notes.append(f"{silent} of {len(units)} units have no spike in any trial")
    notes += [f"left out: {count} {why}" for why, count in left_out.items()]
    return NwbReport(Path(out), len(units), dict(Counter(chosen)), frames_per_second, notes)


class _Shown:
    """A stimulus with its pixels at hand, grey and small."""

    def __init__(self, shown: ShownFrames, size: tuple[int, int], transpose: bool) -> None:
        if isinstance(shown.pixels, list):
            images = [GreyFrames(p, size, shown.name, transpose=transpose) for p in shown.pixels]
            self._all: np.ndarray | None = np.concatenate([image.read(0, 1) for image in images])
            self._frames = images[0]
        else:
            self._frames = GreyFrames(shown.pixels, size, shown.name, transpose=transpose)
            # A template is shown over and over; a film that was shown once may be hours long.
            indexed = (
                len(shown.positions) != len(self._frames)
                or (shown.positions != np.arange(len(shown.positions))).any()
            )
            self._all = self._frames.read(0, len(self._frames)) if indexed else None
        self.source_size = self._frames.source_size

    def read(self, positions: np.ndarray) -> np.ndarray:
        if self._all is not None:
            return self._all[positions]
        first = int(positions.min())
        return self._frames.read(first, int(positions.max()) + 1)[positions - first]


def _check_settings(
    rate: float | None,
    size: tuple[int, int],
    trial_seconds: float | None,
    held_out: float,
    trials: str | None,
) -> None:
    if rate is not None and not 0 < rate < 1e4:
        raise DataError(f"--rate {rate:g}: give bins per second, such as 30")
    if min(size) < 1 or max(size) > 4096:
        raise DataError(f"--size {size[0]}x{size[1]}: give rows and columns, such as 36x64")
    if trial_seconds is not None and not 0 < trial_seconds < np.inf:
        raise DataError(f"--trial-seconds {trial_seconds:g} must be above 0")
    if trial_seconds is not None and trials is not None:
        raise DataError("--trials and --trial-seconds exclude each other; give one")
    if not 0 < held_out < 1:
        raise DataError(f"--held-out {held_out:g} must lie between 0 and 1")


def _choose(file: NwbFile, names: Sequence[str]) -> list[ShownFrames]:
    usual = file.usual_stimuli()
    if not names:
        if not usual:
            raise DataError(
                f"{file.path} has no stimulus with frames (ImageSeries or IndexSeries); add it to the "
                "file's stimuli"
            )
        if len(usual) > 1:
            raise DataError(
                f"{file.path} has {len(usual)} stimuli; choose by --stimulus: {', '.join(usual)}"
            )
    shown = [file.stimulus(name) for name in names or usual]
    if len({stimulus.name for stimulus in shown}) < len(shown):
        raise DataError("--stimulus names one stimulus twice; name each once")
    return shown


def _signals(
    file: NwbFile, running: str | None, pupil: Sequence[str], behaviour: Sequence[str]
) -> tuple[list[Signal], list[Signal]]:
    """Channels of behaviour, and the pupil's centre (none or one)."""
    signals, centre = [], []
    for name in pupil:
        signal = file.signal(name, "--pupil")
        columns = signal.values.shape[1]
        if columns > 2:
            raise DataError(f"--pupil {name} has {columns} columns; x and y, or one for its size")
        (signals if columns == 1 else centre).append(signal)
    if len(centre) > 1:
        raise DataError(f"--pupil names two centres, {centre[0].name} and {centre[1].name}")
    if running is not None:
        signals.append(file.signal(running, "--running"))
    signals += [file.signal(name, "--behaviour") for name in behaviour]
    return signals, centre


def _cut(
    file: NwbFile,
    shown: list[ShownFrames],
    rate: float | None,
    trials: str | None,
    trial_seconds: float | None,
    tiers: str | None,
) -> tuple[list[TrialFrames], list[str] | None, Counter[str]]:
    timeline = join(shown, rate)
    if trials is None and trial_seconds is None and "trials" in file.tables():
        trials = "trials"
    if trials is None:
        if tiers is not None:
            raise DataError(f"--tiers {tiers} is a column of a table; name the table by --trials")
        return cut_evenly(timeline, trial_seconds or 10.0, rate), None, Counter()
    starts = file.column(trials, "start_time").astype(np.float64)
    stops = file.column(trials, "stop_time").astype(np.float64)
    cut, left_out = cut_by_table(timeline, starts, stops, rate)
    if tiers is None:
        return cut, None, left_out
    column = [str(name) for name in file.column(trials, tiers)]
    unknown = sorted(
        {column[trial.row] for trial in cut if trial.row is not None} - {*SENSORIUM_TIERS}
    )
    if unknown:
        raise DataError(
            f"--tiers {tiers} holds {', '.join(map(repr, unknown[:5]))}; use {', '.join(SENSORIUM_TIERS)}"
        )
    return cut, [column[trial.row] for trial in cut if trial.row is not None], left_out


def _with_signals(
    cut: list[TrialFrames],
    given: list[str] | None,
    signals: list[Signal],
    left_out: Counter[str],
    notes: list[str],
) -> tuple[list[TrialFrames], list[str] | None]:
    """Leave out trials that begin before a signal does; say where signals have holes."""
    keep = []
    stale: Counter[str] = Counter()
    for trial in cut:
        missing = False
        for signal in signals:
            missing |= bool(np.isnan(bin_means(signal.times, signal.values, trial.edges)).any())
            stale[signal.name] += not missing and _is_stale(signal, trial.edges)
        keep.append(not missing)
    if not all(keep):
        left_out["trials begin before the first sample of a signal"] += keep.count(False)
    notes += [
        f"{name} has no sample for more than {_STALE_SECONDS:g} s in {count} trials; its last value "
        "is kept"
        for name, count in stale.items()
        if count
    ]
    chosen = None if given is None else [t for t, k in zip(given, keep, strict=True) if k]
    return [trial for trial, k in zip(cut, keep, strict=True) if k], chosen


def _is_stale(signal: Signal, edges: np.ndarray) -> bool:
    known = signal.times[~np.isnan(signal.values).all(1)]
    last = known[np.searchsorted(known, edges[1:], side="left") - 1]
    return bool((edges[1:] - last > _STALE_SECONDS).any())


def _no_trials(path: str | Path, left_out: Counter[str]) -> str:
    why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    return (
        f"{path} gives no trial"
        + (f": {why}" if why else "")
        + "; compare its clocks with --list, or cut without a table by --trial-seconds"
    )


def _clock_notes(bins: np.ndarray) -> list[str]:
    usual = float(np.median(bins))
    odd = float((np.abs(bins - usual) > _UNEVEN * usual).mean())
    if not odd:
        return []
    return [
        f"{odd:.1%} of the frames last {bins.min():.4f} to {bins.max():.4f} s where {usual:.4f} is "
        f"usual; --rate {1 / bins.mean():.4g} gives even bins"
    ]


def _squeezed(source: tuple[int, int], size: tuple[int, int]) -> bool:
    return abs(source[0] * size[1] / (source[1] * size[0]) - 1) > 0.05


def _video(trial: TrialFrames, frames: list[_Shown]) -> np.ndarray:
    video = None
    for number in np.unique(trial.stimulus):
        here = trial.stimulus == number
        shown = frames[number].read(trial.position[here])
        if video is None:
            video = np.empty((len(here), *shown.shape[1:]), np.uint8)
        video[here] = shown
    assert video is not None
    return video


def _responses(units: list[Unit], edges: np.ndarray) -> np.ndarray:
    responses = np.empty((len(edges) - 1, len(units)), np.float32)
    for column, unit in enumerate(units):
        responses[:, column] = spike_counts(unit.spike_times, edges)
        if unit.intervals is not None:
            responses[~observed(unit.intervals, edges), column] = np.nan
    return responses


def _columns(signals: list[Signal], edges: np.ndarray) -> np.ndarray | None:
    if not signals:
        return None
    return np.concatenate([bin_means(s.times, s.values, edges) for s in signals], axis=1)
