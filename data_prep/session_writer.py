"""Write a session of recorded or simulated neurons (see ``ssl_vivit.data.sessions.layout``).

- Trials are written one by one to a hidden folder beside ``OUT``, which is renamed to ``OUT`` when
  it is complete.
- Arrays are passed with time first, as everywhere in the project, and stored with time last, as in
  Sensorium.
- Statistics are exact and computed from the tier ``train`` only. They are in
  ``meta/statistics/NAME/all/{mean,std,min,max}.npy`` for the arrays of the folder ``data/NAME``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from einops import rearrange

from data_prep.output_files import writing
from ssl_vivit.data.sessions.layout import (
    BEHAVIOUR,
    COORDINATES,
    PUPIL,
    RESPONSES,
    SENSORIUM_TIERS,
    SETTINGS,
    TIER_NAMES,
    TRUE_RATES,
    UNIT_IDS,
    VIDEOS,
)
from ssl_vivit.errors import DataError
from ssl_vivit.files import temporary_beside, write_json
from ssl_vivit.moments import Moments

# Names of arrays in the layout → names of their arguments in `SessionWriter.add`, if different.
_ARGUMENTS = {VIDEOS: "video", BEHAVIOUR: "behaviour", PUPIL: "pupil_centre"}
_AXES = {
    VIDEOS: "(T, H, W), the grey frames of one trial",
    RESPONSES: "(T, N), a column for each neuron",
    BEHAVIOUR: "(T, K), a column for each channel",
    PUPIL: "(T, 2), x and y",
    TRUE_RATES: "(T, N), a column for each neuron",
}


class SessionWriter:
    """Context manager that writes a session, and removes it after an exception.

        with SessionWriter("sessions/a", frames_per_second=30, kind="spikes", unit_ids=ids) as session:
            session.add("train", video, spikes, behaviour=behaviour)

    Args:
        out: the session's folder; it must not exist.
        frames_per_second: rate of videos, responses and behaviour.
        kind: "spikes" if responses are spike counts per frame, "calcium" for any other signal.
        unit_ids: one unique integer per neuron.
        coordinates: (N, 3) positions in the brain in micrometres; None writes zeros, which mean
            that positions were not measured.
        facts: further values for ``meta/session.json`` by name, such as the origin of the session.

    Attributes:
        path: the folder that is being written, for additional files; finally ``out``.
        trials: number of trials written so far.

    Raises:
        DataError: if ``out`` exists or cannot be written, or an argument does not fit; at the end
            of ``with``, if no trial has the tier ``train``.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        frames_per_second: float,
        kind: Literal["spikes", "calcium"],
        unit_ids: Sequence[int] | np.ndarray,
        coordinates: np.ndarray | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.out = Path(out)
        if kind not in ("spikes", "calcium"):
            raise DataError(f"session {out}: kind {kind!r} is unknown; give 'spikes' or 'calcium'")
        self._kind = kind
        units = np.asarray(unit_ids)
        if units.ndim != 1 or units.dtype.kind not in "iu" or not len(units):
            raise DataError(
                f"session {out}: unit_ids must be one integer for each neuron; give "
                "range(number of neurons) if ids are names"
            )
        self._units = units.astype(np.int64)
        count = len(self._units)
        if len(np.unique(self._units)) != count:
            raise DataError(f"session {out}: unit_ids must be unique")
        self._coordinates = np.zeros((count, 3)) if coordinates is None else np.asarray(coordinates)
        if self._coordinates.shape != (count, 3):
            raise DataError(
                f"session {out}: coordinates have shape {self._coordinates.shape}; give ({count}, "
                "3)"
            )
        is_number = isinstance(frames_per_second, Real) and np.isfinite(frames_per_second)
        if not is_number or frames_per_second <= 0:
            raise DataError(
                f"session {out}: frames_per_second is {frames_per_second!r}; it must be a number "
                "above 0"
            )
        self._facts = {
            "frames_per_second": float(frames_per_second),
            "responses": kind,
            **(facts or {}),
        }
        self._tiers: list[str] = []
        # Kind of data → its shape without time, from the first trial.
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._statistics: dict[str, _Statistics] = {}
        self._refuse_existing()
        self._place = ExitStack()
        with writing(f"session {out}"):
            self.path = self._place.enter_context(temporary_beside(self.out))
            (self.path / "meta").mkdir(parents=True)
        self._closed = False

    def __enter__(self) -> SessionWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        with self._place:
            if error is None:
                self.finish()

    def __del__(self) -> None:
        # Without a ``with`` block the hidden folder would be removed without a message.
        if not getattr(self, "_closed", True) and self._tiers:
            warnings.warn(
                f"session {self.out} was not written; use `with SessionWriter(…) as session:`",
                stacklevel=2,
            )

    @property
    def trials(self) -> int:
        return len(self._tiers)

    def add(
        self,
        tier: str,
        video: np.ndarray,
        responses: np.ndarray,
        *,
        behaviour: np.ndarray | None = None,
        pupil_centre: np.ndarray | None = None,
        true_rates: np.ndarray | None = None,
    ) -> int:
        """Write the next trial.

        Args:
            tier: one of ``SENSORIUM_TIERS``.
            video: (T, H, W), uint8 or float in [0, 255]; floats are refused if all are at most 1.
            responses: (T, N); NaN is unknown. Spikes must be whole numbers of 0 or more.
            behaviour: (T, K). ``behaviour``, ``pupil_centre`` and ``true_rates`` must each be given
                for all trials or for none.
            pupil_centre: (T, 2) in the recording's units.
            true_rates: (T, N), expected responses, if they are known.

        Returns:
            The trial's number.

        Raises:
            DataError: if the tier is unknown, or an array does not fit the other arrays or the
                earlier trials; the message names the trial.
        """
        trial = self.trials
        if not isinstance(tier, str) or tier not in SENSORIUM_TIERS:
            tier = tier if isinstance(tier, str) else type(tier).__name__
            raise DataError(
                f"trial {trial}: tier {tier!r} is unknown; use {', '.join(SENSORIUM_TIERS)}"
            )
        given = {
            VIDEOS: video,
            RESPONSES: responses,
            BEHAVIOUR: behaviour,
            PUPIL: pupil_centre,
            TRUE_RATES: true_rates,
        }
        arrays = {
            name: _stored(trial, name, array) for name, array in given.items() if array is not None
        }
        self._check(trial, arrays)
        for name, array in arrays.items():
            with writing(f"session {self.out}"):
                _save(
                    self.path / "data" / name / f"{trial}.npy", rearrange(array, "t ... -> ... t")
                )
            if tier == "train" and name != TRUE_RATES:
                found, before = _Statistics.of(name, array), self._statistics.get(name)
                self._statistics[name] = found if before is None else before.merged(found)
        self._tiers.append(tier)
        return trial

    def finish(self) -> Path:
        """Write the files of the whole session and rename the folder to ``out``.

        Returns:
            ``out``.

        Raises:
            DataError: if no trial of tier ``train`` was written, or ``out`` was created in the
                meantime.
        """
        if not self._tiers:
            raise DataError(f"session {self.out} has no trials; add one")
        if "train" not in self._tiers:
            raise DataError(
                f"session {self.out} has no trial of tier 'train', which training needs; add one"
            )
        arrays: dict[str, np.ndarray] = {
            UNIT_IDS: self._units,
            COORDINATES: self._coordinates.astype(np.float32),
            TIER_NAMES: np.array(self._tiers),
        }
        for kind, statistics in self._statistics.items():
            for name, value in statistics.values().items():
                arrays[f"meta/statistics/{kind}/all/{name}.npy"] = np.asarray(value, np.float32)
        with writing(f"session {self.out}"):
            for file, array in arrays.items():
                _save(self.path / file, array)
            write_json(self.path / SETTINGS, self._facts)
            self._refuse_existing()
            os.rename(self.path, self.out)
        self.path, self._closed = self.out, True
        return self.out

    def _refuse_existing(self) -> None:
        if self.out.exists():
            raise DataError(f"session {self.out} already exists; give another out, or remove it")

    def _check(self, trial: int, arrays: dict[str, np.ndarray]) -> None:
        frames = len(arrays[VIDEOS])
        for name, array in arrays.items():
            told = f"trial {trial}: {_ARGUMENTS.get(name, name)}"
            axes = 3 if name == VIDEOS else 2
            if array.ndim != axes or not array.size:
                raise DataError(f"{told} has shape {array.shape}; give {_AXES[name]}")
            if len(array) != frames:
                raise DataError(
                    f"{told} has {len(array)} frames, but the video has {frames}; the first axis "
                    "of each array must be time"
                )
            if name in (RESPONSES, TRUE_RATES) and array.shape[1] != len(self._units):
                raise DataError(
                    f"{told} has {array.shape[1]} neurons, but there are {len(self._units)} "
                    "unit_ids"
                )
            if name == PUPIL and array.shape[1] != 2:
                raise DataError(f"{told} has {array.shape[1]} columns; give two, x and y")
            finite = array if name != RESPONSES else array[~np.isnan(array)]
            if not np.isfinite(finite).all():
                fix = "interpolate them (only responses may be NaN)"
                if name == RESPONSES:
                    fix = "give NaN for unknown responses"
                raise DataError(f"{told} has numbers that are not finite; {fix}")
            if name == RESPONSES and self._kind == "spikes":
                _check_counts(told, finite)
        _check_pixels(trial, arrays[VIDEOS])
        shapes = {name: array.shape[1:] for name, array in arrays.items()}
        if self._tiers and shapes != self._shapes:
            odd = next(
                n for n in {**self._shapes, **shapes} if shapes.get(n) != self._shapes.get(n)
            )
            now, before = (
                f"has {' × '.join(map(str, each[odd]))} numbers per frame" if odd in each
                else "is missing"
                for each in (shapes, self._shapes)
            )  # fmt: skip
            raise DataError(
                f"trial {trial}: {_ARGUMENTS.get(odd, odd)} {now}, but {before} in earlier "
                "trials; this must be equal in all trials"
            )
        self._shapes = shapes


def _check_counts(told: str, known: np.ndarray) -> None:
    wrong = known[(known < 0) | (known % 1 != 0)]
    if wrong.size:
        raise DataError(
            f"{told} has {wrong[0]:g}, which is not a spike count; give whole numbers of 0 or "
            "more, or kind='calcium' for another signal"
        )


def _check_pixels(trial: int, video: np.ndarray) -> None:
    low, high = float(video.min()), float(video.max())
    if low < 0 or high > 255:
        raise DataError(
            f"trial {trial}: video has values from {low:g} to {high:g}; give pixels from 0 to 255"
        )
    if video.dtype != np.uint8 and 0 < high <= 1:
        raise DataError(
            f"trial {trial}: video has values up to {high:g}, but pixels must be from 0 to 255; "
            "give video * 255, or uint8 if the frames are that dark"
        )


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _stored(trial: int, name: str, array: np.ndarray) -> np.ndarray:
    try:
        array = np.asarray(array)
        return array if name == VIDEOS and array.dtype == np.uint8 else array.astype(np.float32)
    except (TypeError, ValueError):
        raise DataError(
            f"trial {trial}: {_ARGUMENTS.get(name, name)} is not an array of numbers; give "
            f"{_AXES[name]}"
        ) from None


@dataclass(frozen=True)
class _Statistics:
    """Statistics of an array over time: mean, variance, minimum and maximum of each column.

    The statistics of videos are those of all pixels together.
    """

    moments: Moments
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> _Statistics:
        """Compute the statistics of one trial's array, whose first axis is time; NaN is ignored."""
        if name == VIDEOS:
            return cls(Moments.of_pixels(array), array.min(), array.max())
        return cls(Moments.of(array), np.fmin.reduce(array), np.fmax.reduce(array))

    def merged(self, other: _Statistics) -> _Statistics:
        """Return the statistics of the trials of ``self`` and ``other`` together."""
        moments = Moments.merged([self.moments, other.moments])
        return _Statistics(moments, np.fmin(self.low, other.low), np.fmax(self.high, other.high))

    def values(self) -> dict[str, np.ndarray]:
        """Return mean, std, min and max by these names.

        A column without known values has NaN.
        """
        known = self.moments.count > 0
        return {
            "mean": np.where(known, self.moments.mean, np.nan),
            "std": np.where(known, self.moments.std, np.nan),
            "min": self.low,
            "max": self.high,
        }
