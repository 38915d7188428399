"""Summarise a session folder, and find all problems that prevent training on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from tqdm import tqdm

from data_prep.output_files import picture_file
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.layout import BEHAVIOUR, PUPIL, RESPONSES, VIDEOS, tier_of
from ssl_vivit.data.sessions.metadata import read_tier_names, read_unit_ids
from ssl_vivit.data.sessions.scan import open_array, scan_trial
from ssl_vivit.data.sessions.split import shared_movies
from ssl_vivit.errors import SessionError
from ssl_vivit.moments import Moments

_TRACES = 4


@dataclass(frozen=True)
class SessionCheck:
    """Result of :func:`check`.

    Attributes:
        session: the opened session; None if there are problems.
        facts: lines of the summary by heading; empty if there are problems.
        problems: error lines, each with the fix; empty if the session can be used.
        notes: lines on unusual properties that do not prevent training.
    """

    session: Session | None
    facts: dict[str, str]
    problems: list[str]
    notes: list[str]


def check(path: str | Path, *, progress: bool = True) -> SessionCheck:
    """Open a session with all checks of training, and summarise it.

    If the session has an error, all trials are checked, to find all errors.

    Args:
        path: the session's folder.
        progress: show a progress bar during the search for faulty trials.
    """
    try:
        session = Session(path)
    except SessionError as error:
        found = [str(error), *_trial_problems(Path(path), progress)]
        return SessionCheck(None, {}, list(dict.fromkeys(found)), [])
    facts = {
        "frames": f"{session.frame_size[0]}×{session.frame_size[1]} pixels, "
        f"{session.frames_per_second:g} per second, largest pixel "
        f"{max(trial.brightest for trial in session.trials.values()):g} of 255",
        "neurons": f"{len(session.unit_ids)}, {session.kind}, "
        + ("coordinates unmeasured" if session.coordinates is None else "with coordinates"),
        "trials": f"{len(session.tier_names)}, {_range(session.lengths[session.lengths > 0])} frames",
        "tiers": ", ".join(f"{name} {n}" for name, n in _raw_tiers(session).items()),
        "movies": _movies(session),
        "padding": _padding(session),
        "responses": _responses(session),
        "silent": f"{int(session.silent_units().sum())} neurons in training trials",
        "behaviour": _behaviour(session),
        "pupil centre": "measured" if session.has_pupil else "unmeasured",
    }
    notes = [*session.notes, *_notes_on_missing_tiers(session), *_notes_on_shared_movies(session)]
    return SessionCheck(session, facts, [], notes)


def sheet(session: Session, path: str | Path, *, trials: int = 6, frames: int = 6) -> None:
    """Draw frames and traces of some trials of every tier.

    Args:
        session: the session.
        path: the PNG file, written atomically.
        trials: number of trials, one per row.
        frames: number of frames of each trial.

    Raises:
        DataError: if the picture cannot be written.
    """
    figure = _figure(session, trials, frames)
    with picture_file("--sheet", path) as part:
        figure.savefig(part, format="png", dpi=100)


def _figure(session: Session, trials: int, frames: int) -> Figure:
    """Draw one row per trial: frames, responses, and behaviour with the pupil's centre."""
    chosen = _some_trials(session, trials)
    # 900 pixels wide, like a web page.
    figure = Figure(figsize=(9, 1.6 * len(chosen) + 1.2), layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False, width_ratios=(3, 2, 2))
    # Every row shows the neurons that vary most in training trials.
    deviations = [session.trials[int(t)].responses for t in session.tiers["train"]]
    busiest = np.argsort(-Moments.merged(deviations).deviation, kind="stable")[:_TRACES]
    for (film, neural, behaviour), trial in zip(axes, chosen, strict=True):
        length = int(session.lengths[trial])
        at = np.linspace(0, length - 1, min(frames, length)).round().astype(int)
        _film(film, at, np.stack([session.video(trial, t, t + 1)[0] for t in at]))
        film.set_ylabel(f"trial {trial}\n{session.tier_names[trial]}", fontsize=8)
        seconds = np.arange(length) / session.frames_per_second
        responses = session.responses(trial)
        labels = [f"unit {session.unit_ids[n]}" for n in busiest]
        _traces(neural, seconds, responses[:, busiest], labels)
        channels = session.behaviour(trial)
        _traces(behaviour, seconds, channels, [f"behaviour {k}" for k in range(channels.shape[1])])
        if session.has_pupil:
            _traces(behaviour, seconds, session.pupil_centre(trial), ["pupil x", "pupil y"])
    for axis, title in zip(axes[0, 1:], ("responses", "behaviour and pupil"), strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes[-1, 1:]:
        axis.set_xlabel("time in the trial (s)", fontsize=8)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=2,
                        frameon=False)  # fmt: skip
    return figure


def _film(axis: Axes, numbers: np.ndarray, frames: np.ndarray) -> None:
    """Draw frames in two rows, each frame with its number."""
    columns = -(-len(frames) // 2)
    height, width = frames.shape[1:]
    pictures = np.full((2 * columns, height, width), 255, dtype=frames.dtype)
    pictures[: len(frames)] = frames
    film = rearrange(pictures, "(line column) h w -> (line h) (column w)", line=2)
    axis.imshow(film, cmap="gray", vmin=0, vmax=255)
    axis.axhline(height - 0.5, color="white", lw=1)
    for place, number in enumerate(numbers):
        line, column = divmod(place, columns)
        if column and not line:
            axis.axvline(column * width - 0.5, color="white", lw=1)
        text = axis.text(column * width, line * height, f"frame {number}", fontsize=8, va="top",
                         color="white")  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axis.set(xticks=[], yticks=[])


def _trial_problems(path: Path, progress: bool) -> list[str]:
    """Return the errors of all trials; [] if the unit ids or tiers cannot be read."""
    there = {
        name: (path / "data" / name).is_dir() for name in (VIDEOS, RESPONSES, BEHAVIOUR, PUPIL)
    }
    try:
        neurons, tiers = len(read_unit_ids(path)), read_tier_names(path)
    except SessionError:
        return []
    if not (there[VIDEOS] and there[RESPONSES]):
        return []
    parts = {"behaviour": there[BEHAVIOUR], "pupil": there[PUPIL]}
    found = []
    for trial in tqdm(range(len(tiers)), desc="check", unit="trial", disable=not progress):
        try:
            if _may_be_used(str(tiers[trial])):
                scan_trial(path / "data", trial, neurons=neurons, **parts)
        except SessionError as error:
            found.append(str(error))
    return found


def _may_be_used(tier: str) -> bool:
    """Return True if training or scoring uses the trials of a tier.

    An unknown name also gives True, since it may be a misspelt tier.
    """
    try:
        return tier_of(tier) is not None
    except SessionError:
        return True


def _raw_tiers(session: Session) -> dict[str, int]:
    return dict(Counter(str(name) for name in session.tier_names).most_common())


def _range(numbers: np.ndarray) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low} to {high}"


def _movies(session: Session) -> str:
    shown = Counter(session.contents[session.contents >= 0].tolist())
    often = [count for count in shown.values() if count > 1]
    repeated = f", {len(often)} of them repeated {_range(np.array(often))} times" if often else ""
    return f"{len(shown)} different{repeated}"


def _notes_on_missing_tiers(session: Session) -> list[str]:
    """Return notes on how training replaces validation and test trials that do not exist."""
    fallbacks = {
        "validation": "training uses a part of the training movies instead (data.validation_share)",
        "test": "trained models are scored on validation trials, which also select the model",
    }
    return [
        f"no trial has a tier for {tier}: {told}"
        for tier, told in fallbacks.items()
        if not len(session.tiers[tier])
    ]


def _notes_on_shared_movies(session: Session) -> list[str]:
    """Return notes on movies of the tier train that other tiers of tiers.npy also show."""
    shown = {
        name: {*session.contents[session.tier_names == name].tolist()} - {-1}
        for name in _raw_tiers(session)
        if tier_of(name) is not None
    }
    return [
        f"{count} of {total} movies of {name} are also shown in train: that tier does not test new "
        "movies"
        for name, (count, total) in shared_movies(shown).items()
    ]


def _padding(session: Session) -> str:
    padded = []
    for trial in session.trials:
        file = session.path / "data" / VIDEOS / f"{trial}.npy"
        stored = open_array(file, 3).shape[-1]
        padded.append(stored - int(session.lengths[trial]))
    cut = np.array([frames for frames in padded if frames])
    if not len(cut):
        return "none"
    return f"{_range(cut)} frames at the end of {len(cut)} trials"


def _responses(session: Session) -> str:
    means = []
    for tier in ("train", "validation", "test"):
        moments = [session.trials[int(t)].responses for t in session.tiers[tier]]
        if moments:
            merged = Moments.merged(moments)
            known = merged.mean[merged.count > 0]
            means.append(f"{known.mean():.4g} in {tier}" if len(known) else f"none in {tier}")
    scale = session.frames_per_second if session.kind == "spikes" else 1.0
    moments = [session.trials[int(t)].responses for t in session.tiers["train"]]
    rates = np.quantile(Moments.merged(moments).mean * scale, (0, 0.5, 1))
    unit = " spikes/s" if session.kind == "spikes" else ""
    low, middle, high = (f"{rate:.3g}" for rate in rates)
    return f"mean per frame {', '.join(means)}; neurons from {low} to {high}{unit}, median {middle}{unit}"


def _behaviour(session: Session) -> str:
    if not session.behaviour_channels:
        return "none"
    parts = [trial.behaviour for trial in session.trials.values() if trial.behaviour is not None]
    constant = np.flatnonzero(Moments.merged(parts).std == 0).tolist()
    without = ", ".join(map(str, constant))
    return f"{session.behaviour_channels} channels" + (
        f", without variance: {without}" if constant else ", all vary"
    )


def _some_trials(session: Session, count: int) -> list[int]:
    """Choose up to ``count`` trials: equally many from each tier, evenly spaced within the tier."""
    tiers = [session.tiers[t] for t in ("train", "validation", "test") if len(session.tiers[t])]
    share = -(-count // len(tiers))
    rows = [
        trials[np.unique(np.linspace(0, len(trials) - 1, share).astype(int))] for trials in tiers
    ]
    return [int(trial) for trials in rows for trial in trials][:count]


def _traces(axis: Axes, seconds: np.ndarray, values: np.ndarray, labels: list[str]) -> None:
    """Plot all columns of ``values`` together, each as standard deviations above its minimum."""
    for column, label in zip(values.T, labels, strict=True):
        spread = float(np.nanstd(column)) if np.isfinite(column).any() else 0.0
        axis.plot(seconds, (column - np.nanmin(column)) / (spread or 1), lw=0.8, label=label)
    axis.set_ylabel("SDs above minimum", fontsize=8)
    axis.locator_params(nbins=4)
    axis.tick_params(labelsize=8)
