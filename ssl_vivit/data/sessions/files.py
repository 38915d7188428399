"""A recorded session on disk, in the layout of Sensorium 2023, opened and checked.

    data/{videos,responses,behavior,pupil_center}/N.npy    (H, W, T), (N, T), (K, T), (2, T)
    meta/neurons/{unit_ids,cell_motor_coordinates}.npy
    meta/trials/tiers.npy
    meta/session.json                                      optional: frames_per_second, responses
    data/true_rates/N.npy                                  (N, T), simulated sessions only

Arrays stay on disk, memory-mapped; ``meta/statistics`` is not read.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from einops import rearrange

from ssl_vivit.data.sessions.scan import (
    BEHAVIOUR,
    PUPIL,
    RESPONSES,
    VIDEOS,
    TrialFacts,
    open_array,
    scan_trial,
    unreadable,
)
from ssl_vivit.errors import SessionError
from ssl_vivit.moments import Moments

TIERS = ("train", "validation", "test")
TRUE_RATES = "true_rates"
FRAMES_PER_SECOND = 30.0

_ALLOWED_TIERS = "train, oracle (or validation, val), live_*, final_*, test*, none"


def tier_of(name: str) -> str | None:
    """ "train", "validation" or "test" for a name in tiers.npy; None for trials not to be used.

    Raises:
        SessionError: if the name is unknown; the message has the allowed ones.
    """
    if name in ("oracle", "validation", "val"):
        return "validation"
    if name.startswith(("live_", "final_", "test")):
        return "test"
    if name in ("train", "none"):
        return None if name == "none" else name
    raise SessionError(f"tier {name!r} is unknown; allowed are {_ALLOWED_TIERS}")


class Session:
    """One session, checked whole when it is opened.

    Trials are known by the number in their files' names. Time comes first in what is read; frames
    of padding at the end of a trial are never given out.

    Args:
        path: the session's folder; its name is the session's.
        in_memory: whether to keep what was read in memory.

    Attributes:
        path: the session's folder.
        name: the session's name.
        frames_per_second: of video, responses and behaviour alike.
        kind: "spikes" if responses are counts, else "calcium"; ``meta/session.json`` may say
            which, else it is told by whether all training responses are counts.
        unit_ids: int64 (N,).
        coordinates: float64 (N, 3); None if absent or the same for all neurons.
        tier_names: the tier of each trial as it is written in tiers.npy.
        tiers: "train", "validation", "test" → numbers of their trials, int64, ascending.
        lengths: int64 (trials,), frames without the padding; 0 for trials that are not used.
        frame_size: (H, W).
        behaviour_channels: K; 0 if there is no behaviour.
        has_pupil: whether the centre of the pupil was measured: it is there and is not constant.
        has_true_rates: whether the session was simulated and knows its rates.
        trials: what the check found in each trial that is used.
        contents: int64 (trials,), equal for trials of the same movie; −1 for trials not used.
        notes: lines that a person who uses the session should read.

    Raises:
        SessionError: if something is missing or does not fit; one line that names the file.
    """

    def __init__(self, path: str | Path, *, in_memory: bool = False) -> None:
        self.path = Path(path)
        # The name that the user gave, where it is a link, too.
        self.name = os.path.basename(os.path.abspath(self.path))
        self._data, self._in_memory = self.path / "data", in_memory
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        # Opening a file takes longer than reading a window; a process may have 65,530 maps.
        self._mapped = lru_cache(maxsize=2048)(self._map)
        if not self.path.is_dir():
            raise SessionError(f"session {path} is no folder; give one in the Sensorium layout")
        for part in (VIDEOS, RESPONSES):
            if not (self._data / part).is_dir():
                raise SessionError(
                    f"session {path} has no data/{part}; a session needs data/videos, "
                    f"data/responses, meta/neurons/unit_ids.npy and meta/trials/tiers.npy"
                )
        self.unit_ids = self._read_unit_ids()
        self.coordinates = self._read_coordinates()
        self.frames_per_second, told_kind = self._read_settings()
        self.tier_names = self._read_tiers()
        self.tiers = self._numbers_by_tier()
        used = np.sort(np.concatenate([self.tiers[tier] for tier in TIERS]))

        behaviour = (self._data / BEHAVIOUR).is_dir()
        pupil = (self._data / PUPIL).is_dir()
        found = {
            int(trial): scan_trial(
                self._data,
                int(trial),
                neurons=len(self.unit_ids),
                behaviour=behaviour,
                pupil=pupil,
            )
            for trial in used
        }
        self.trials: dict[int, TrialFacts] = {
            number: trial for number, trial in found.items() if trial is not None
        }
        withheld = [number for number, trial in found.items() if trial is None]
        self.tiers = {tier: np.setdiff1d(self.tiers[tier], withheld) for tier in TIERS}
        if not len(self.tiers["train"]):
            raise SessionError(f"all responses of the training trials of session {path} are NaN")
        self.frame_size = self._same_frame_size()
        self.behaviour_channels = self._same_behaviour_channels() if behaviour else 0
        self.has_pupil = pupil and self._pupil_varies()
        self.has_true_rates = (self._data / TRUE_RATES).is_dir()
        self.lengths = np.zeros(len(self.tier_names), dtype=np.int64)
        self.contents = np.full(len(self.tier_names), -1, dtype=np.int64)
        movies: dict[str, int] = {}
        for number, trial in self.trials.items():
            self.lengths[number] = trial.length
            self.contents[number] = movies.setdefault(trial.content, len(movies))
        self.kind = self._kind(told_kind)
        self.notes = self._notes(withheld, pupil)

    def __repr__(self) -> str:
        return (
            f"Session({self.name}: {len(self.unit_ids)} neurons, {len(self.trials)} trials, "
            f"{self.frames_per_second:g} Hz, {self.kind})"
        )

    def video(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Pixels from 0 to 255, uint8 or float32 (T, H, W)."""
        frames = self._frames(VIDEOS, trial, start, stop)
        return frames if frames.dtype == np.uint8 else frames.astype(np.float32, copy=False)

    def responses(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Responses per frame, float32 (T, N); NaN where unknown."""
        return self._frames(RESPONSES, trial, start, stop).astype(np.float32, copy=False)

    def behaviour(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """All channels as recorded, float32 (T, K); (T, 0) where there is none."""
        if not self.behaviour_channels:
            start, stop, _ = slice(start, stop).indices(int(self.lengths[trial]))
            return np.zeros((max(0, stop - start), 0), dtype=np.float32)
        return self._frames(BEHAVIOUR, trial, start, stop).astype(np.float32, copy=False)

    def pupil_centre(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The pupil's centre as recorded, float32 (T, 2).

        Raises:
            SessionError: if it was not measured.
        """
        if not self.has_pupil:
            raise SessionError(f"session {self.name} has no measured pupil centre")
        return self._frames(PUPIL, trial, start, stop).astype(np.float32, copy=False)

    def true_rates(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray | None:
        """Expected responses per frame, float32 (T, N); None where no one knows them."""
        if not self.has_true_rates:
            return None
        return self._frames(TRUE_RATES, trial, start, stop).astype(np.float32, copy=False)

    def _frames(self, part: str, trial: int, start: int, stop: int | None) -> np.ndarray:
        """Frames [start, stop) of a part, time first, without the padding, in memory of its own."""
        length = int(self.lengths[trial])
        if not length:
            raise SessionError(
                f"trial {trial} of session {self.name} is not used: its tier is 'none', or it has "
                f"no responses"
            )
        kept = self._kept.get((part, trial))
        if kept is None:
            stored = self._mapped(part, trial)[..., :length]
            if not self._in_memory:
                return np.array(rearrange(stored[..., start:stop], "... t -> t ..."), order="C")
            kept = np.array(rearrange(stored, "... t -> t ..."), order="C")
            self._kept[part, trial] = kept
        return kept[start:stop].copy()

    def _map(self, part: str, trial: int) -> np.ndarray:
        return np.load(self._data / part / f"{trial}.npy", mmap_mode="r", allow_pickle=False)

    def _read_unit_ids(self) -> np.ndarray:
        path = self.path / "meta" / "neurons" / "unit_ids.npy"
        ids = _small_array(path)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
            raise SessionError(f"{path} holds {ids.dtype} {ids.shape}; expected one integer each")
        if len(np.unique(ids)) < len(ids):
            raise SessionError(f"{path} names some units twice; each needs an id of its own")
        return ids.astype(np.int64)

    def _read_coordinates(self) -> np.ndarray | None:
        path = self.path / "meta" / "neurons" / "cell_motor_coordinates.npy"
        if not path.exists():
            return None
        coordinates = _small_array(path)
        if coordinates.shape != (len(self.unit_ids), 3):
            raise SessionError(
                f"{path} has shape {coordinates.shape}; expected {(len(self.unit_ids), 3)}, or "
                f"no such file"
            )
        if not np.isfinite(coordinates).all():
            raise SessionError(f"{path} is not finite; delete it if positions are unknown")
        same = (coordinates == coordinates[:1]).all()
        return None if same else coordinates.astype(np.float64)

    def _read_settings(self) -> tuple[float, str | None]:
        path = self.path / "meta" / "session.json"
        if not path.exists():
            return FRAMES_PER_SECOND, None
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SessionError(f"{path} is no JSON: {error}") from None
        if not isinstance(settings, dict):
            raise SessionError(f"{path} must hold an object, as {{'frames_per_second': 30.0}}")
        rate, kind = settings.get("frames_per_second", FRAMES_PER_SECOND), settings.get("responses")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e5:
            raise SessionError(f"{path}: frames_per_second is {rate!r}; give a number of hertz")
        if kind not in (None, "spikes", "calcium"):
            raise SessionError(f"{path}: responses is {kind!r}; give 'spikes' or 'calcium'")
        return float(rate), kind

    def _read_tiers(self) -> np.ndarray:
        path = self.path / "meta" / "trials" / "tiers.npy"
        names = _small_array(path)
        if names.dtype.kind == "S":
            names = np.char.decode(names, "utf-8")
        if names.ndim != 1 or names.dtype.kind != "U":
            raise SessionError(f"{path} holds {names.dtype} {names.shape}; expected one name each")
        extra = [
            int(file.stem)
            for file in (self._data / VIDEOS).glob("*.npy")
            if file.stem.isdecimal() and int(file.stem) >= len(names)
        ]
        if extra:
            raise SessionError(
                f"{path} names the tiers of {len(names)} trials, data/{VIDEOS} holds trial "
                f"{max(extra)}, too; give every trial a tier"
            )
        return names

    def _numbers_by_tier(self) -> dict[str, np.ndarray]:
        try:
            known = {name: tier_of(str(name)) for name in np.unique(self.tier_names)}
        except SessionError as error:
            raise SessionError(f"session {self.path}, meta/trials/tiers.npy: {error}") from None
        tiers = np.array([known[name] or "" for name in self.tier_names])
        if "train" not in tiers:
            raise SessionError(f"session {self.path} has no trial of tier 'train' in tiers.npy")
        return {tier: np.flatnonzero(tiers == tier) for tier in TIERS}

    def _same_frame_size(self) -> tuple[int, int]:
        sizes: dict[tuple[int, int], int] = {}
        for number in self.trials:
            height, width, _ = open_array(self._data / VIDEOS / f"{number}.npy", 3).shape
            sizes.setdefault((height, width), number)
        if len(sizes) > 1:
            told = ", ".join(f"{h}×{w} (trial {trial})" for (h, w), trial in sizes.items())
            raise SessionError(f"session {self.path} has videos of several sizes: {told}")
        peak = max(trial.brightest for trial in self.trials.values())
        first = open_array(self._data / VIDEOS / f"{next(iter(self.trials))}.npy", 3)
        if first.dtype.kind == "f" and 0 < peak <= 1:
            raise SessionError(
                f"no pixel of session {self.path} is above {peak:g}; videos are stored from 0 to "
                f"255, so multiply them by 255"
            )
        return next(iter(sizes))

    def _same_behaviour_channels(self) -> int:
        counts: dict[int, int] = {}
        for number, trial in self.trials.items():
            assert trial.behaviour is not None
            counts.setdefault(len(trial.behaviour.mean), number)
        if len(counts) > 1:
            told = ", ".join(f"{count} (trial {trial})" for count, trial in counts.items())
            raise SessionError(f"session {self.path} has several numbers of behaviour rows: {told}")
        return next(iter(counts))

    def _pupil_varies(self) -> bool:
        found = [trial.pupil for trial in self.trials.values() if trial.pupil is not None]
        return bool(Moments.merged(found).varies.any())

    def _kind(self, told: str | None) -> Literal["spikes", "calcium"]:
        wrong = [number for number, trial in self.trials.items() if not trial.counts]
        if told == "spikes" and wrong:
            raise SessionError(
                f"meta/session.json of {self.path} says that responses are spikes, and those of "
                f"trial {wrong[0]} are no counts; mend it, or say 'calcium'"
            )
        counted = all(self.trials[int(trial)].counts for trial in self.tiers["train"])
        return "spikes" if told == "spikes" or (told is None and counted) else "calcium"

    def _notes(self, withheld: list[int], pupil: bool) -> list[str]:
        notes = []
        if withheld:
            notes.append(
                f"{self.name}: all responses of {len(withheld)} trials are NaN (first trial "
                f"{withheld[0]}); they are not used"
            )
        unknown = {number: trial.unknown for number, trial in self.trials.items() if trial.unknown}
        if unknown:
            notes.append(
                f"{self.name}: {sum(unknown.values()):,} responses of {len(unknown)} trials are "
                f"NaN within the trial (first in trial {next(iter(unknown))}); loss and scores "
                f"leave them out"
            )
        silent = self.unit_ids[self.silent_units()]
        if len(silent):
            shown = ", ".join(map(str, silent[:8])) + (" …" if len(silent) > 8 else "")
            notes.append(
                f"{self.name}: {len(silent)} of {len(self.unit_ids)} neurons never respond in "
                f"training trials (unit {shown})"
            )
        if pupil and not self.has_pupil:
            notes.append(f"{self.name}: the pupil's centre is constant and taken as unmeasured")
        return notes

    def silent_units(self) -> np.ndarray:
        """Neurons without a response other than 0 in the tier train: bool (N,)."""
        moments = [self.trials[int(trial)].responses for trial in self.tiers["train"]]
        return ~np.any([(m.mean != 0) | (m.deviation != 0) for m in moments], axis=0)


@dataclass(frozen=True)
class SessionFacts:
    """What a model must know of a session to be used without it; kept in checkpoints.

    Args:
        name: of the session.
        unit_ids: of its neurons, in the order of the readout.
        frames_per_second: of its frames.
        kind: "spikes" or "calcium".
        frame_size: (H, W) of its videos.
        video_mean: of pixel / 255, over the training trials of all sessions of the model.
        video_std: the same.
        behaviour_channels: those of the recorded channels that the model gets.
        behaviour_mean: of each of these, over the session's training trials.
        behaviour_std: the same; 1 for one that does not vary in this session.
        pupil_mean: of x and y over the session's training trials; None if unmeasured.
        pupil_std: the same.
        mean_response: of each neuron per frame, over the session's training trials.
        coordinates: (x, y, z) of each neuron; None if unmeasured.
        split: "train", "validation", "test" → numbers of the trials that were used so.
        held_out_units: ids of the neurons that were not trained on.
    """

    name: str
    unit_ids: tuple[int, ...]
    frames_per_second: float
    kind: Literal["spikes", "calcium"]
    frame_size: tuple[int, int]
    video_mean: float
    video_std: float
    behaviour_channels: tuple[int, ...]
    behaviour_mean: tuple[float, ...]
    behaviour_std: tuple[float, ...]
    pupil_mean: tuple[float, float] | None
    pupil_std: tuple[float, float] | None
    mean_response: tuple[float, ...]
    coordinates: tuple[tuple[float, ...], ...] | None
    split: dict[str, tuple[int, ...]]
    held_out_units: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What json.dumps takes, as a dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SessionFacts:
        """The facts of :meth:`to_json`, also after a way through a JSON file.

        Raises:
            SessionError: if entries are missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            wrong = ", ".join(sorted(values.keys() ^ names))
            raise SessionError(f"facts of a session lack or do not know: {wrong}")
        split = {tier: tuple(trials) for tier, trials in values["split"].items()}
        return cls(**{**{name: _tuples(value) for name, value in values.items()}, "split": split})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _small_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{path} is missing; the session needs it") from None
    except (OSError, ValueError, EOFError) as error:
        raise SessionError(unreadable(path, error)) from None
