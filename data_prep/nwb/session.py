"""Convert an NWB file to a session: cut trials, bin responses, split movies into tiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.nwb.file import NwbFile, Signal
from data_prep.nwb.frame_clock import bin_means
from data_prep.nwb.grey_frames import GREY, GreyFrames
from data_prep.nwb.movie_split import frame_prints, movies, split_movies
from data_prep.nwb.neurons import Neurons, RoiSignals
from data_prep.nwb.stimuli import ShownFrames, Stimuli
from data_prep.nwb.stimulus_trials import TrialFrames, cut_by_table, cut_evenly, join
from data_prep.nwb.unit_selection import UnitSelection
from data_prep.session_writer import SessionWriter
from ssl_vivit.data.sessions.layout import SENSORIUM_TIERS
from ssl_vivit.data.sessions.split import shared_movies
from ssl_vivit.errors import DataError

_STALE_SECONDS = 1.0
_UNEVEN = 0.1


@dataclass(frozen=True)
class NwbReport:
    """Result of :func:`convert`.

    Attributes:
        path: the session's folder.
        neurons: number of units or regions of interest written.
        tiers: number of trials of each tier, by tier name.
        frames_per_second: rate of the bins.
        notes: lines on skipped or unusual data.
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
    template: str | None = None,
    frame_column: str | None = None,
    external_movies: bool = False,
    responses: str | None = None,
    units: str | None = None,
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
        out: the session's folder, written atomically.
        stimuli: names of the stimuli (series or tables of presentations); empty uses the file's
            only stimulus.
        template: name of the pictures that a table of presentations shows.
        frame_column: column of a table of presentations that says which picture a row shows.
        external_movies: read movies from files in the NWB file's folder.
        responses: RoiResponseSeries to use as responses; None uses spike counts of the units.
        units: condition on columns of the units' or regions' table, see :class:`UnitSelection`.
        running: TimeSeries of running speed, a channel of behaviour.
        pupil: TimeSeries of the pupil. A series of two columns is the pupil's centre. A series of
            one column is the pupil's size, which becomes a channel of behaviour.
        behaviour: further TimeSeries; each column is a channel of behaviour.
        rate: bins per second; None for one bin per frame.
        size: (H, W) of the frames.
        trials: table of intervals with ``start_time`` and ``stop_time``. None uses ``trials`` if
            the file has it and ``trial_seconds`` is None.
        trial_seconds: length of trials in seconds, if no table is used; None is 10.
        tiers: column of the table ``trials`` with the tiers; None splits trials by movie.
        held_out: fraction of the trials that a split by movie does not use for training.
        transpose: the file stores frames as (frame, column, row).
        progress: show a progress bar.

    Raises:
        DataError: if the file or an option cannot be used; the message names the option.
    """
    _check_settings(rate, size, trial_seconds, held_out, trials)
    notes: list[str] = []
    selection = None if units is None else UnitSelection(units)
    with NwbFile(path) as file:
        neurons: Neurons = (
            file.units(selection) if responses is None else file.rois(responses, selection)
        )
        shown = _choose(
            Stimuli(
                file,
                template=template,
                frame_column=frame_column,
                external_movies=external_movies,
            ),
            stimuli,
        )
        signals, centre = _signals(file, running, pupil, behaviour)
        cut, given, left_out = _cut(file, shown, rate, trials, trial_seconds, tiers)
        for stimulus in shown:
            left_out += stimulus.left_out
        if units is not None:
            notes.append(f"--units selects {len(neurons.ids)} of {neurons.available} neurons")
        cut, given = _with_signals(cut, given, [*signals, *centre], left_out, notes)
        if isinstance(neurons, RoiSignals):
            cut, given = _with_responses(cut, given, neurons, left_out)
        if not cut:
            raise DataError(_no_trials(path, left_out))
        frames = [_Shown(stimulus, size, transpose) for stimulus in shown]
        bins = np.concatenate([np.diff(trial.edges) for trial in cut])
        frames_per_second = rate if rate is not None else round(float(1 / bins.mean()), 4)
        notes += _clock_notes(bins)
        if isinstance(neurons, RoiSignals) and neurons.interval > 1.5 * bins.mean():
            notes.append(
                f"{neurons.name} has {1 / neurons.interval:.4g} samples per second, fewer than "
                "bins per second, so samples are repeated; "
                f"--rate {1 / neurons.interval:.4g} gives one bin per sample"
            )
        grey = np.concatenate([trial.position for trial in cut]) < 0
        if grey.any():
            notes.append(
                f"{grey.mean():.1%} of the frames are a grey screen (pixel value {GREY}): gaps "
                "between rows of the table, and rows that show grey"
            )
        if any(_squeezed(f.source_size, size) for f in frames):
            notes.append(
                f"frames of {frames[0].source_size[0]}×{frames[0].source_size[1]} pixels are "
                f"resized to {size[0]}×{size[1]}, which changes the aspect ratio"
            )
        with SessionWriter(
            out,
            frames_per_second=frames_per_second,
            kind=neurons.kind,
            unit_ids=neurons.ids,
            facts={
                "source": Path(path).name,
                "identifier": file.identifier,
                "stimuli": [stimulus.name for stimulus in shown],
                "behaviour": [signal.name for signal in signals],
                **({"units": units} if units is not None else {}),
                **({"series": neurons.name} if isinstance(neurons, RoiSignals) else {}),
            },
        ) as session:
            with tqdm(cut, desc="frames", unit="trial", disable=not progress) as bar:
                prints = [frame_prints(_video(trial, frames)) for trial in bar]
            chosen = given if given is not None else split_movies(prints, held_out)
            shown_in: dict[str, set[int]] = {"train": set()}
            for movie, tier in zip(movies(prints), chosen, strict=True):
                shown_in.setdefault(tier, set()).add(movie)
            for tier, (count, _) in sorted(shared_movies(shown_in).items()):
                notes.append(f"{count} movies of {tier} are also shown in train")
            totals = _Totals(len(neurons.ids))
            with tqdm(cut, desc="trials", unit="trial", disable=not progress) as bar:
                for trial, tier in zip(bar, chosen, strict=True):
                    values = neurons.responses(trial.edges)
                    totals.add(values)
                    session.add(
                        tier,
                        _video(trial, frames),
                        values,
                        behaviour=_columns(signals, trial.edges),
                        pupil_centre=_columns(centre, trial.edges),
                    )
            totals.refuse_silence(path, neurons.kind, cut)
    notes += totals.notes(neurons.kind)
    notes += [f"left out: {count} {why}" for why, count in left_out.items()]
    return NwbReport(Path(out), len(neurons.ids), dict(Counter(chosen)), frames_per_second, notes)


class _Shown:
    """A stimulus whose frames can be read, grey and resized."""

    def __init__(self, shown: ShownFrames, size: tuple[int, int], transpose: bool) -> None:
        self._frames = GreyFrames(shown.pieces, size, shown.name, transpose=transpose)
        self._size = size
        self.source_size = self._frames.source_size
        # Cache a template, which is shown repeatedly, but not a film, which may be hours long.
        self._template: np.ndarray | None = None
        pictures = shown.positions[shown.positions >= 0]
        self._numbers = np.unique(pictures)
        if len(self._numbers) < len(pictures):
            self._template = self._frames.read(self._numbers)

    def read(self, positions: np.ndarray) -> np.ndarray:
        video = np.full((len(positions), *self._size), GREY, np.uint8)
        seen = positions >= 0
        if self._template is not None:
            video[seen] = self._template[np.searchsorted(self._numbers, positions[seen])]
        elif seen.any():
            video[seen] = self._frames.read(positions[seen])
        return video


class _Totals:
    """Sums over the responses of all trials, for notes on silent, unknown or negative responses."""

    def __init__(self, neurons: int) -> None:
        self._sum = np.zeros(neurons)
        self._silent_trials: list[int] = []
        self._trials = 0
        self._negative = self._known = self._unknown = 0

    def add(self, responses: np.ndarray) -> None:
        self._sum += np.nansum(responses, axis=0, dtype=np.float64)
        if not np.nan_to_num(responses).any():
            self._silent_trials.append(self._trials)
        self._trials += 1
        self._negative += int((responses < 0).sum())
        unknown = int(np.isnan(responses).sum())
        self._known += responses.size - unknown
        self._unknown += unknown

    def refuse_silence(self, path: str | Path, kind: str, trials: Sequence[TrialFrames]) -> None:
        """Raise if no trial has a spike or another response.

        Raises:
            DataError: if all responses are 0 or NaN; the message names possible causes.
        """
        if self._sum.any():
            return
        what = "spike" if kind == "spikes" else "response other than 0 or NaN"
        raise DataError(
            f"{path}: there is no {what} in any of the {self._trials} trials, which are between "
            f"{trials[0].edges[0]:.6g} and {trials[-1].edges[-1]:.6g} s; check that responses and "
            "stimulus are on one clock, or choose other neurons by --units or another --stimulus"
        )

    def notes(self, kind: str) -> list[str]:
        notes = []
        silent = int((self._sum == 0).sum())
        if kind == "spikes" and silent:
            notes.append(f"{silent} of {len(self._sum)} units have no spike in any trial")
        if kind == "spikes" and self._silent_trials and silent < len(self._sum):
            notes.append(
                f"{len(self._silent_trials)} of {self._trials} trials have no spike of any unit, "
                f"the first is trial {self._silent_trials[0]}; check that the recording was on"
            )
        if self._unknown:
            notes.append(
                f"{self._unknown / (self._known + self._unknown):.1%} of the responses are NaN: "
                "the file has no sample in the bin, or the unit was not recorded in the bin"
            )
        if self._negative:
            notes.append(
                f"{self._negative / self._known:.1%} of the responses are below 0, which the "
                "Poisson loss does not allow; use deconvolved events or fluorescence"
            )
        return notes


def _check_settings(
    rate: float | None,
    size: tuple[int, int],
    trial_seconds: float | None,
    held_out: float,
    trials: str | None,
) -> None:
    if rate is not None and not 0 < rate < 1e4:
        raise DataError(f"--rate {rate:g} must be above 0, in bins per second, such as 30")
    if min(size) < 1 or max(size) > 4096:
        raise DataError(
            f"--size {size[0]}x{size[1]} must be rows and columns from 1 to 4096, such as 36x64"
        )
    if trial_seconds is not None and not 0 < trial_seconds < np.inf:
        raise DataError(f"--trial-seconds {trial_seconds:g} must be above 0")
    if trial_seconds is not None and trials is not None:
        raise DataError("--trials and --trial-seconds cannot be combined; give one of them")
    if not 0 < held_out < 1:
        raise DataError(f"--held-out {held_out:g} must lie between 0 and 1")


def _choose(stimuli: Stimuli, names: Sequence[str]) -> list[ShownFrames]:
    usual = stimuli.usual()
    if not names:
        if not usual:
            raise DataError(stimuli.none_found())
        if len(usual) > 1:
            raise DataError(
                f"the file has {len(usual)} stimuli; choose by --stimulus: {', '.join(usual)}"
            )
    shown = [stimuli.read(name) for name in names or usual]
    if len({stimulus.name for stimulus in shown}) < len(shown):
        raise DataError("--stimulus lists a stimulus twice; list each once")
    return shown


def _signals(
    file: NwbFile, running: str | None, pupil: Sequence[str], behaviour: Sequence[str]
) -> tuple[list[Signal], list[Signal]]:
    """Return the series that are channels of behaviour, and those of the pupil's centre.

    The second list has at most one series.
    """
    signals: list[Signal] = []
    centre: list[Signal] = []
    for name in pupil:
        signal = file.signal(name, "--pupil")
        columns = signal.values.shape[1]
        if columns > 2:
            raise DataError(
                f"--pupil {name} has {columns} columns; it must have two (x and y of the centre) "
                "or one (size)"
            )
        (signals if columns == 1 else centre).append(signal)
    if len(centre) > 1:
        raise DataError(
            f"--pupil has two series of the centre, {centre[0].name} and {centre[1].name}; give "
            "only one of them"
        )
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
            raise DataError(
                f"--tiers {tiers} must be a column of a table of trials; give the table by --trials"
            )
        cut, left_out = cut_evenly(timeline, trial_seconds or 10.0, rate)
        return cut, None, left_out
    starts, stops = file.interval_times(trials)
    cut, left_out = cut_by_table(timeline, starts, stops, rate)
    if tiers is None:
        return cut, None, left_out
    column = [str(name) for name in file.column(trials, tiers)]
    unknown = sorted(
        {column[trial.row] for trial in cut if trial.row is not None} - {*SENSORIUM_TIERS}
    )
    if unknown:
        raise DataError(
            f"--tiers {tiers} has unknown tiers {', '.join(map(repr, unknown[:5]))}; use "
            f"{', '.join(SENSORIUM_TIERS)}"
        )
    return cut, [column[trial.row] for trial in cut if trial.row is not None], left_out


def _with_signals(
    cut: list[TrialFrames],
    given: list[str] | None,
    signals: list[Signal],
    left_out: Counter[str],
    notes: list[str],
) -> tuple[list[TrialFrames], list[str] | None]:
    """Drop trials that begin before a signal's first sample; add notes on gaps in signals."""
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
        f"{name} has no sample for more than {_STALE_SECONDS:g} s in {count} trials; its last "
        "value is kept"
        for name, count in stale.items()
        if count
    ]
    chosen = None if given is None else [t for t, k in zip(given, keep, strict=True) if k]
    return [trial for trial, k in zip(cut, keep, strict=True) if k], chosen


def _with_responses(
    cut: list[TrialFrames],
    given: list[str] | None,
    neurons: RoiSignals,
    left_out: Counter[str],
) -> tuple[list[TrialFrames], list[str] | None]:
    """Drop trials without any sample of the responses."""
    edges = np.array([trial.edges[[0, -1]] for trial in cut]).reshape(-1, 2)
    within = np.diff(np.searchsorted(neurons.times, edges), axis=1)[:, 0] > 0
    if not within.all():
        left_out[f"trials contain no sample of {neurons.name}"] += int((~within).sum())
    chosen = None if given is None else [t for t, k in zip(given, within, strict=True) if k]
    return [trial for trial, k in zip(cut, within, strict=True) if k], chosen


def _is_stale(signal: Signal, edges: np.ndarray) -> bool:
    known = signal.times[~np.isnan(signal.values).all(1)]
    last = known[np.searchsorted(known, edges[1:], side="left") - 1]
    return bool((edges[1:] - last > _STALE_SECONDS).any())


def _no_trials(path: str | Path, left_out: Counter[str]) -> str:
    why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
    return (
        f"{path} gives no trial"
        + (f": {why}" if why else "")
        + "; compare the times printed by --list, or cut trials without a table by --trial-seconds"
    )


def _clock_notes(bins: np.ndarray) -> list[str]:
    usual = float(np.median(bins))
    odd = float((np.abs(bins - usual) > _UNEVEN * usual).mean())
    if not odd:
        return []
    return [
        f"{odd:.1%} of the frames do not last the usual {usual:.4f} s; durations are "
        f"{bins.min():.4f} to {bins.max():.4f} s; --rate {1 / bins.mean():.4g} gives even bins"
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


def _columns(signals: list[Signal], edges: np.ndarray) -> np.ndarray | None:
    if not signals:
        return None
    return np.concatenate([bin_means(s.times, s.values, edges) for s in signals], axis=1)
