"""An NWB file opened for reading: units, stimuli, signals and tables of trials.

Everything is found under the path that ``python -m data_prep.nwb FILE --list`` prints, or under its
last part where that is the only one of the name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_prep.nwb.frame_clock import frame_rate
from ssl_vivit.errors import DataError

_NOT_STIMULI = ("TwoPhotonSeries", "OnePhotonSeries", "ImageMaskSeries")


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


@dataclass(frozen=True)
class ShownFrames:
    """A stimulus as it was shown.

    Attributes:
        name: its path in the file.
        onsets: (F,) seconds, strictly increasing.
        positions: (F,) which frame of ``pixels`` was shown.
        pixels: the array of frames, on disk, (P, H, W) or (P, H, W, C); or a list of such with one
            frame each, of any sizes.
    """

    name: str
    onsets: np.ndarray
    positions: np.ndarray
    pixels: Any


@dataclass(frozen=True)
class Signal:
    """A TimeSeries in its own unit: conversion and offset applied.

    Attributes:
        name: its path in the file.
        times: (S,) seconds, sorted.
        values: (S, K) float64.
    """

    name: str
    times: np.ndarray
    values: np.ndarray


class NwbFile:
    """An NWB file opened for reading; a context manager that closes it.

    Args:
        path: the file.

    Raises:
        DataError: if pynwb is not installed, or the file is missing or no NWB file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import h5py
            import pynwb
        except ImportError as error:
            raise DataError(
                f"reading NWB files needs {error.name}; run `pip install 'ssl_vivit[neural]'`"
            ) from error
        self.path = Path(path)
        self._kinds = pynwb
        if not self.path.is_file():
            raise DataError(f"{path} is no file; give a session's .nwb file")
        if not h5py.is_hdf5(self.path):
            raise DataError(f"{path} is no HDF5 file, as NWB files are; is it whole?")
        try:
            with warnings.catch_warnings():
                # They speak of the schema version that the file was written with.
                warnings.simplefilter("ignore")
                self._io = pynwb.NWBHDF5IO(str(self.path), mode="r")
                self._file = self._io.read()
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{path} cannot be read as NWB: {why}") from error
        self._series = dict(self._all_series())

    def __enter__(self) -> NwbFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._io.close()

    @property
    def identifier(self) -> str:
        """The session's own name in the file."""
        return str(self._file.identifier)

    def units(self) -> list[Unit]:
        """All units with their spike times.

        Raises:
            DataError: if there are none, ids repeat or a spike time is no number.
        """
        table = self._file.units
        if table is None or not len(table):
            raise DataError(
                f"{self.path} has no units; sort its spikes and add them as `units` with spike_times"
            )
        if "spike_times" not in table.colnames:
            raise DataError(f"{self.path}: its units have no spike_times column; add spike times")
        ids = np.asarray(table.id[:], np.int64)
        if len(np.unique(ids)) != len(ids):
            raise DataError(f"{self.path}: unit ids repeat; give every unit an id of its own")
        known = "obs_intervals" in table.colnames
        units = []
        for row, number in enumerate(ids.tolist()):
            spikes = np.sort(np.asarray(table.get_unit_spike_times(row), np.float64))
            if not np.isfinite(spikes).all():
                raise DataError(f"{self.path}: unit {number} has spike times that are no numbers")
            intervals = np.asarray(table.get_unit_obs_intervals(row)) if known else None
            units.append(Unit(number, spikes, intervals))
        return units

    def stimulus_names(self) -> list[str]:
        """Paths of what can be chosen as a stimulus."""
        return [name for name, series in self._series.items() if self._is_stimulus(series)]

    def usual_stimuli(self) -> list[str]:
        """Paths of presented stimuli, or of templates or acquired frames where there are none.

        A template is only what presentations point to, and acquired images may be a camera's, so
        both come after what the file itself calls a stimulus.
        """
        names = self.stimulus_names()
        for group in ("stimulus/presentation/", "stimulus/templates/", "acquisition/"):
            if found := [name for name in names if name.startswith(group)]:
                return found
        return names

    def stimulus(self, name: str) -> ShownFrames:
        """One stimulus by its path or name.

        Raises:
            DataError: if there is none of the name, or it cannot be used.
        """
        path = self._find(name, "--stimulus", self.stimulus_names())
        series = self._series[path]
        onsets = self._times(path)
        if len(onsets) < 2 or (np.diff(onsets) <= 0).any():
            raise DataError(
                f"{self.path}: {path} needs two frames or more whose times increase; mend its timestamps"
            )
        if not isinstance(series, self._kinds.image.IndexSeries):
            return ShownFrames(path, onsets, np.arange(len(onsets)), self._pixels(path, series))
        template = series.indexed_timeseries
        if template is not None:
            pixels = self._pixels(path, template)
        elif series.indexed_images is not None:
            collection = series.indexed_images
            if (order := collection.order_of_images) is None:
                raise DataError(
                    f"{self.path}: images of {collection.name} have no order_of_images, so {path} "
                    "points to none of them; add it"
                )
            pixels = [np.asarray(image.data)[None] for image in order.data[:]]
        else:
            raise DataError(f"{self.path}: {path} points to no template; add the one it indexes")
        positions = np.asarray(series.data[:], np.int64)
        if positions.min() < 0 or positions.max() >= len(pixels):
            raise DataError(
                f"{self.path}: {path} points to frames {positions.min()} to {positions.max()} of a "
                f"template that has {len(pixels)}"
            )
        return ShownFrames(path, onsets, positions, pixels)

    def signal(self, name: str, option: str) -> Signal:
        """One TimeSeries of numbers by its path or name.

        Args:
            name: as ``--list`` prints it.
            option: that named it, for messages.

        Raises:
            DataError: if there is none of the name, or it is no series of numbers.
        """
        path = self._find(name, option, self.signal_names())
        series = self._series[path]
        times = self._times(path)
        if not len(times) or (np.diff(times) < 0).any():
            raise DataError(f"{self.path}: {path} is empty or its times run backwards")
        values = np.asarray(series.data[:], np.float64)
        values = values.reshape(len(values), -1)
        return Signal(path, times, values * series.conversion + series.offset)

    def signal_names(self) -> list[str]:
        """Paths of series of numbers with a row for each time."""
        return [
            name
            for name, series in self._series.items()
            if not isinstance(series, self._kinds.image.ImageSeries | self._kinds.image.IndexSeries)
            and len(np.shape(series.data)) in (1, 2)
            and np.asarray(series.data[:1]).dtype.kind in "fiub"
        ]

    def tables(self) -> dict[str, list[str]]:
        """Tables of time intervals, ``trials`` among them, and their columns."""
        return {name: list(table.colnames) for name, table in self._tables().items()}

    def column(self, table: str, column: str) -> np.ndarray:
        """One column of a table of intervals.

        Raises:
            DataError: if there is no such table or column.
        """
        tables = self._tables()
        if table not in tables:
            raise DataError(
                f"--trials {table}: {self.path} has {_names(list(tables), 'no tables of intervals')}"
            )
        if column not in tables[table].colnames:
            raise DataError(
                f"{self.path}: {table} has no column {column!r}; it has "
                f"{', '.join(tables[table].colnames)}"
            )
        return np.asarray(tables[table][column][:])

    def listing(self) -> list[str]:
        """Lines that say what the file holds, for a person."""
        table = self._file.units
        columns = "" if table is None else f" ({', '.join(table.colnames)})"
        lines = [f"units     {0 if table is None else len(table)}{columns}"]
        for heading, names in (("stimuli", self.stimulus_names()), ("series", self.signal_names())):
            lines.append(heading)
            lines += [f"  {name}  {self._describe(name)}" for name in names]
        lines.append("trials")
        for name, columns in self.tables().items():
            rows = len(self._tables()[name])
            lines.append(f"  {name}  {rows} rows: {', '.join(columns)}")
        return lines

    def _describe(self, path: str) -> str:
        series = self._series[path]
        text = "×".join(map(str, np.shape(series.data)))
        if isinstance(series, self._kinds.image.IndexSeries):
            target = series.indexed_timeseries or series.indexed_images
            text += f" of template {target.name}" if target is not None else " of no template"
        times = self._times(path)
        if len(times) > 1:
            text += f", {frame_rate(times):.4g} Hz, {times[0]:.3f} to {times[-1]:.3f} s"
        return f"{text}, {series.unit}" if series.unit else text

    def _all_series(self) -> Iterator[tuple[str, Any]]:
        groups = {
            "stimulus/presentation": self._file.stimulus,
            "stimulus/templates": self._file.stimulus_template,
            "acquisition": self._file.acquisition,
            "processing": self._file.processing,
            "analysis": self._file.analysis,
        }
        for group, members in groups.items():
            for name in sorted(members):
                yield from self._below(f"{group}/{name}", members[name])

    def _below(self, path: str, thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, self._kinds.TimeSeries):
            yield path, thing
            return
        for child in sorted(thing.children, key=lambda child: child.name):
            if hasattr(child, "children"):
                yield from self._below(f"{path}/{child.name}", child)

    def _is_stimulus(self, series: Any) -> bool:
        if type(series).__name__ in _NOT_STIMULI:
            return False
        return isinstance(series, self._kinds.image.ImageSeries | self._kinds.image.IndexSeries)

    def _tables(self) -> dict[str, Any]:
        tables = dict(self._file.intervals or {})
        for name in ("trials", "epochs"):
            if (table := getattr(self._file, name)) is not None:
                tables[name] = table
        return tables

    def _find(self, name: str, option: str, among: list[str]) -> str:
        if name in among:
            return name
        found = [path for path in among if path.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{option} {name} may be {_names(found)}; give one of these")
        raise DataError(f"{option} {name}: {self.path} has {_names(among, 'none')}")

    def _times(self, path: str) -> np.ndarray:
        series = self._series[path]
        samples = int(np.shape(series.data)[0])
        if series.timestamps is not None:
            times = np.asarray(series.timestamps[:], np.float64)
        elif series.rate is not None and series.rate > 0:
            times = series.starting_time + np.arange(samples) / float(series.rate)
        else:
            raise DataError(
                f"{self.path}: {path} has neither timestamps nor a rate; add one of them"
            )
        external = getattr(series, "external_file", None) is not None
        if not external and len(times) != samples:
            raise DataError(f"{self.path}: {path} has {samples} samples and {len(times)} times")
        if not np.isfinite(times).all():
            raise DataError(f"{self.path}: {path} has times that are no numbers")
        return times

    def _pixels(self, path: str, series: Any) -> Any:
        if getattr(series, "external_file", None) is not None:
            raise DataError(
                f"{self.path}: the frames of {path} lie in another file "
                f"({series.external_file[0]}); write them into the NWB file as data"
            )
        return series.data


def _names(names: list[str], none: str = "") -> str:
    """Names in a row, the first of very many."""
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or none
