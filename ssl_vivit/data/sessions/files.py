"""Open and check the folder of a recorded session.

The files of the folder are described in :mod:`ssl_vivit.data.sessions.layout`. Their arrays are
memory-mapped.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from einops import rearrange

from ssl_vivit.data.sessions.layout import (
    BEHAVIOUR,
    PUPIL,
    RESPONSES,
    TIER_NAMES,
    TIERS,
    TRUE_RATES,
    UNIT_IDS,
    VIDEOS,
)
from ssl_vivit.data.sessions.metadata import (
    read_coordinates,
    read_settings,
    read_tier_names,
    read_unit_ids,
    trials_by_tier,
)
from ssl_vivit.data.sessions.scan import TrialFacts, map_array, open_array, scan_trial
from ssl_vivit.errors import SessionError
from ssl_vivit.moments import Moments


class Session:
    """A recorded session on disk, which is checked completely when it is opened.

    Trials are identified by the number in their file names. In the returned arrays time is the
    first axis. Padding frames at the end of a trial are never returned.

    Args:
        path: the session's folder. The name of the folder is the name of the session.
        in_memory: whether to keep trials in memory after they were read.

    Attributes:
        path: the session's folder.
        name: the session's name.
        frames_per_second: frame rate of video, responses and behaviour.
        kind: kind of responses, "spikes" or "calcium", as given in ``meta/session.json``. If it is
            not given there, the kind is "spikes" if all training responses are whole numbers ≥ 0,
            else "calcium".
        unit_ids: int64 (N,) ids of the neurons.
        coordinates: float64 (N, 3) cortical coordinates; None if absent or equal for all neurons.
        tier_names: tier of each trial as written in tiers.npy.
        tiers: dictionary from "train", "validation" and "test" to the numbers of the used trials in
            this tier, int64, ascending.
        lengths: int64 (trials,) frames of each trial without padding; 0 for unused trials.
        frame_size: (H, W) in pixels.
        behaviour_channels: number of behaviour channels, K; 0 if there is no behaviour.
        has_pupil: whether the pupil's centre was measured: its files exist and it is not constant.
        has_true_rates: whether the session was simulated and its true rates are known.
        trials: dictionary from the number of each used trial to its ``TrialFacts``.
        withheld: dictionary from the name of a tier in tiers.npy to the numbers of its trials, for
            tiers other than train whose responses are all 0. Data sets contain zeros in place of
            withheld responses, so these trials are not used.
        contents: int64 (trials,) number of the movie of each trial, equal for trials of one movie;
            −1 for trials that are not used.
        notes: notes for the user, one line each.

    Raises:
        SessionError: if a file is missing or invalid, or files do not fit each other; the message
            names the file.
    """

    def __init__(self, path: str | Path, *, in_memory: bool = False) -> None:
        self.path = Path(path)
        # The name that the user gave, even if it is a symbolic link.
        self.name = os.path.basename(os.path.abspath(self.path))
        self._data, self._in_memory = self.path / "data", in_memory
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        # Keep files mapped: opening one takes longer than reading a window. Linux allows 65,530
        # maps per process.
        self._mapped = lru_cache(maxsize=2048)(self._map)
        if not self.path.is_dir():
            raise SessionError(
                f"session {path} is not a folder; give a folder in the Sensorium layout"
            )
        for part in (VIDEOS, RESPONSES):
            if not (self._data / part).is_dir():
                raise SessionError(
                    f"session {path} has no data/{part}; a session needs data/videos, "
                    f"data/responses, {UNIT_IDS} and {TIER_NAMES}"
                )
        self.unit_ids = read_unit_ids(self.path)
        self.coordinates = read_coordinates(self.path, len(self.unit_ids))
        self.frames_per_second, told_kind = read_settings(self.path)
        self.tier_names = read_tier_names(self.path)
        self.tiers = trials_by_tier(self.path, self.tier_names)
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
        unknown = [number for number, trial in found.items() if trial is None]
        self.tiers = {tier: np.setdiff1d(self.tiers[tier], unknown) for tier in TIERS}
        if not len(self.tiers["train"]):
            raise SessionError(
                f"all responses of the training trials of session {path} are NaN; give the tier "
                "'train' to trials that have responses"
            )
        self.withheld = self._tiers_of_zeros()
        for number in (number for trials in self.withheld.values() for number in trials):
            del self.trials[number]
        self.tiers = {
            tier: trials[np.isin(trials, [*self.trials])] for tier, trials in self.tiers.items()
        }
        if self.silent_units().all():
            raise SessionError(
                f"all responses of the training trials of session {path} are 0, so they seem to be "
                "withheld; give the tier 'train' to trials that have responses"
            )
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
        self.notes = self._notes(unknown, pupil)

    def __repr__(self) -> str:
        return (
            f"Session({self.name}: {len(self.unit_ids)} neurons, {len(self.trials)} trials, "
            f"{self.frames_per_second:g} Hz, {self.kind})"
        )

    def video(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return pixels from 0 to 255, uint8 or float32 (T, H, W)."""
        frames = self._frames(VIDEOS, trial, start, stop)
        return frames if frames.dtype == np.uint8 else frames.astype(np.float32, copy=False)

    def responses(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return responses per frame, float32 (T, N); NaN if unknown."""
        return self._frames(RESPONSES, trial, start, stop).astype(np.float32, copy=False)

    def behaviour(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return all behaviour channels as recorded, float32 (T, K); K is 0 without behaviour."""
        if not self.behaviour_channels:
            start, stop, _ = slice(start, stop).indices(int(self.lengths[trial]))
            return np.zeros((max(0, stop - start), 0), dtype=np.float32)
        return self._frames(BEHAVIOUR, trial, start, stop).astype(np.float32, copy=False)

    def pupil_centre(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the pupil's centre as recorded, float32 (T, 2).

        Raises:
            SessionError: if the pupil was not measured.
        """
        if not self.has_pupil:
            raise SessionError(f"session {self.name} has no measured pupil centre")
        return self._frames(PUPIL, trial, start, stop).astype(np.float32, copy=False)

    def true_rates(self, trial: int, start: int = 0, stop: int | None = None) -> np.ndarray | None:
        """Return expected responses per frame, float32 (T, N); None if they are unknown."""
        if not self.has_true_rates:
            return None
        return self._frames(TRUE_RATES, trial, start, stop).astype(np.float32, copy=False)

    def _frames(self, part: str, trial: int, start: int, stop: int | None) -> np.ndarray:
        """Return a copy of frames [start, stop) of one file of a trial; time is the first axis.

        Padding frames at the end of the trial are not included.

        Args:
            part: folder of the file, such as "videos" or "responses".
            trial: number of the trial.
            start: first frame.
            stop: end of the frames. None means the end of the trial.
        """
        length = int(self.lengths[trial])
        if not length:
            raise SessionError(
                f"trial {trial} of session {self.name} is not used: its tier is 'none', or its "
                f"responses are withheld"
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
        needed = "every used trial of the session needs this file"
        return map_array(self._data / part / f"{trial}.npy", needed)

    def _tiers_of_zeros(self) -> dict[str, list[int]]:
        used = np.concatenate([self.tiers["validation"], self.tiers["test"]])
        by_name = {
            str(name): used[self.tier_names[used] == name].tolist()
            for name in np.unique(self.tier_names[used])
        }
        return {
            name: trials
            for name, trials in by_name.items()
            if all(self.trials[number].silent for number in trials)
        }

    def _same_frame_size(self) -> tuple[int, int]:
        sizes: dict[tuple[int, int], int] = {}
        for number in self.trials:
            height, width, _ = open_array(self._data / VIDEOS / f"{number}.npy", 3).shape
            sizes.setdefault((height, width), number)
        if len(sizes) > 1:
            told = ", ".join(f"{h}×{w} (trial {trial})" for (h, w), trial in sizes.items())
            raise SessionError(
                f"session {self.path} has videos of different sizes: {told}; resize them to one "
                "size"
            )
        peak = max(trial.brightest for trial in self.trials.values())
        first = open_array(self._data / VIDEOS / f"{next(iter(self.trials))}.npy", 3)
        if first.dtype.kind == "f" and 0 < peak <= 1:
            raise SessionError(
                f"no pixel of session {self.path} is above {peak:g}, but pixels must range from 0 "
                "to 255; multiply the videos by 255"
            )
        return next(iter(sizes))

    def _same_behaviour_channels(self) -> int:
        counts: dict[int, int] = {}
        for number, trial in self.trials.items():
            assert trial.behaviour is not None
            counts.setdefault(len(trial.behaviour.mean), number)
        if len(counts) > 1:
            told = ", ".join(f"{count} (trial {trial})" for count, trial in counts.items())
            raise SessionError(
                f"trials of session {self.path} have different numbers of behaviour rows: {told}; "
                "write the same channels for all trials"
            )
        return next(iter(counts))

    def _pupil_varies(self) -> bool:
        found = [trial.pupil for trial in self.trials.values() if trial.pupil is not None]
        return bool(Moments.merged(found).varies.any())

    def _kind(self, told: str | None) -> Literal["spikes", "calcium"]:
        wrong = [number for number, trial in self.trials.items() if not trial.counts]
        if told == "spikes" and wrong:
            raise SessionError(
                f"meta/session.json of {self.path} says that responses are spikes, but trial "
                f"{wrong[0]} has responses that are not counts; fix the responses, or set "
                "responses to 'calcium'"
            )
        counted = all(self.trials[int(trial)].counts for trial in self.tiers["train"])
        return "spikes" if told == "spikes" or (told is None and counted) else "calcium"

    def _notes(self, unknown: list[int], pupil: bool) -> list[str]:
        notes = []
        if unknown:
            notes.append(
                f"{self.name}: all responses of {len(unknown)} trials are NaN (first trial "
                f"{unknown[0]}); they are not used"
            )
        for name, trials in self.withheld.items():
            notes.append(
                f"{self.name}: all responses of tier {name} are 0 ({len(trials)} trials), so "
                f"they seem to be withheld and are not used"
            )
        cut = {number: trial.cut for number, trial in self.trials.items() if trial.cut}
        if cut:
            notes.append(
                f"{self.name}: video, behaviour or pupil centre of {len(cut)} trials end before "
                f"the responses (first trial {next(iter(cut))}); {sum(cut.values()):,} frames are "
                "not used"
            )
        parts = {number: trial.unknown for number, trial in self.trials.items() if trial.unknown}
        if parts:
            notes.append(
                f"{self.name}: {sum(parts.values()):,} responses of {len(parts)} trials are "
                f"NaN within the trial (first in trial {next(iter(parts))}); loss and scores "
                f"ignore them"
            )
        silent = self.unit_ids[self.silent_units()]
        if len(silent):
            shown = ", ".join(map(str, silent[:8])) + (" …" if len(silent) > 8 else "")
            notes.append(
                f"{self.name}: {len(silent)} of {len(self.unit_ids)} neurons never respond in "
                f"training trials (unit {shown})"
            )
        negative = (self._mean_responses() <= 0) & ~self.silent_units()
        if negative.any():
            notes.append(
                f"{self.name}: {negative.sum()} of {len(self.unit_ids)} neurons have a mean "
                "training response of 0 or less, but models predict positive rates; write signals "
                "without subtracting their mean"
            )
        if pupil and not self.has_pupil:
            notes.append(f"{self.name}: the pupil's centre is constant and treated as not measured")
        return notes

    def _mean_responses(self) -> np.ndarray:
        """Return each neuron's mean response over the training trials, (N,); NaN if unknown."""
        trials = [self.trials[int(trial)].responses for trial in self.tiers["train"]]
        moments = Moments.merged(trials)
        return np.where(moments.count > 0, moments.mean, np.nan)

    def silent_units(self) -> np.ndarray:
        """Return a boolean mask (N,) of neurons whose responses in the tier train are all 0."""
        moments = [self.trials[int(trial)].responses for trial in self.tiers["train"]]
        return ~np.any([(m.mean != 0) | (m.deviation != 0) for m in moments], axis=0)
