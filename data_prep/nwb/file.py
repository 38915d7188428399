"""An NWB file opened for reading: its series, tables of intervals and neurons.

Objects are named by the path that ``python -m data_prep.nwb FILE --list`` prints. The last part of
the path is enough if only one object has that name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_prep.nwb.hdf5_check import check_hdf5
from data_prep.nwb.neurons import RoiSignals, SpikingUnits, Unit
from data_prep.nwb.unit_selection import UnitSelection
from ssl_vivit.errors import DataError

# Limit for series, columns and times, which are read at once; frames and calcium signals are not.
_MOST_BYTES = 2**31


@dataclass(frozen=True)
class Signal:
    """A TimeSeries in its unit, after conversion and offset.

    Attributes:
        name: path of the series in the file.
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

    Attributes:
        kinds: the package pynwb, which defines the types of the file's objects.
        series: each TimeSeries of the file, by its path.
        images: each Images object (a collection of pictures), by its path.

    Raises:
        DataError: if pynwb is not installed, or the file is missing, is not an NWB file, or is
            refused by :func:`check_hdf5`.
    """

    def __init__(self, path: str | Path) -> None:
        # pynwb would write a pickle to the user's cache, and fail if this pickle is damaged.
        os.environ.setdefault("PYNWB_NO_CACHE_DIR", "1")
        try:
            import h5py
            import pynwb
        except ImportError as error:
            raise DataError(
                f"reading NWB files needs {error.name}; run `pip install 'ssl_vivit[neural]'`"
            ) from error
        self.path = Path(path)
        self.kinds = pynwb
        if not self.path.is_file():
            raise DataError(f"{path} is not a file; give a session's .nwb file")
        if not h5py.is_hdf5(self.path):
            raise DataError(
                f"{path} is not an HDF5 file, as NWB files must be; check that the download is "
                "complete"
            )
        with self._reading():
            check_hdf5(self.path)
            with warnings.catch_warnings(), ExitStack() as opened:
                # These warnings concern the schema version of the file.
                warnings.simplefilter("ignore")
                self._io = opened.enter_context(pynwb.NWBHDF5IO(str(self.path), mode="r"))
                self._file = self._io.read()
                opened.pop_all()
        found = dict(self._all_data())
        self.series = {p: thing for p, thing in found.items() if not self._is_images(thing)}
        self.images = {p: thing for p, thing in found.items() if self._is_images(thing)}

    def __enter__(self) -> NwbFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._io.close()
        # h5py raises OSError for a truncated array or a missing decoder.
        if isinstance(error, OSError):
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.path} cannot be read to the end: {why}; copy the file again, or install "
                "the missing HDF5 filter"
            ) from error

    @property
    def identifier(self) -> str:
        """The session's identifier in the file."""
        return str(self._file.identifier)

    @property
    def units_table(self) -> Any:
        """The table of units from spike sorting; None if the file has no such table."""
        return self._file.units

    def units(self, selection: UnitSelection | None = None) -> SpikingUnits:
        """Return units from spike sorting, with their spike times.

        Args:
            selection: condition on the units; None for all.

        Raises:
            DataError: if there are no units, ids repeat or a spike time is not a number.
        """
        table = self._file.units
        if table is None or not len(table):
            rois = self.roi_names()
            fix = (
                f"for calcium imaging give --responses, one of {_names(rois)}"
                if rois
                else "sort the spikes and add them as `units` with spike_times"
            )
            raise DataError(f"{self.path} has no units; {fix}")
        if "spike_times" not in table.colnames:
            raise DataError(f"{self.path}: the units have no column spike_times; add spike times")
        ids = self._ids(table, "unit")
        index = table["spike_times"]
        stops = self.numbers(index.data, "the index of spike_times").astype(np.int64)
        if (
            not hasattr(index, "target")
            or not _are_numbers(index.target.data)
            or len(stops) != len(table)
            or (np.diff(stops, prepend=0) < 0).any()
            or int(stops[-1]) != len(index.target)
        ):
            raise DataError(
                f"{self.path}: the index of spike_times is invalid; write the units again"
            )
        known = "obs_intervals" in table.colnames
        units = []
        for row in self._chosen(table, "units", selection).tolist():
            number = int(ids[row])
            spikes = np.sort(np.asarray(table.get_unit_spike_times(row), np.float64))
            if not np.isfinite(spikes).all():
                raise DataError(
                    f"{self.path}: unit {number} has spike times that are not finite; remove these "
                    "spikes"
                )
            intervals = np.asarray(table.get_unit_obs_intervals(row)) if known else None
            if intervals is not None and (
                intervals.shape[1:] != (2,) or intervals.dtype.kind not in "fiu"
            ):
                raise DataError(
                    f"{self.path}: obs_intervals of unit {number} must be pairs of start and stop "
                    "in seconds"
                )
            units.append(Unit(number, spikes, intervals))
        return SpikingUnits(units, len(table))

    def rois(self, name: str, selection: UnitSelection | None = None) -> RoiSignals:
        """Return regions of interest with their calcium signals.

        Args:
            name: path or name of a RoiResponseSeries.
            selection: condition on the regions; None for all.

        Raises:
            DataError: if there is no such series, or it cannot be used.
        """
        path = self.find(name, "--responses", self.roi_names())
        series = self.series[path]
        times = self.times(path)
        self.check_times(path, times, repeats=False)
        if len(times) < 2:
            raise DataError(f"{self.path}: {path} has one sample; responses need two or more")
        region = series.rois
        rows = self.numbers(region.data, f"the regions of {path}").astype(np.int64)
        shape = np.shape(series.data)
        columns = shape[1] if len(shape) == 2 else 1
        if len(shape) not in (1, 2) or columns != len(rows) or series.data.dtype.kind not in "fiu":
            raise DataError(
                f"{self.path}: {path} has shape {shape} for {len(rows)} regions; the data must be "
                "numbers of shape (samples, regions)"
            )
        ids = self._ids(region.table, "region")
        if len(np.unique(rows)) != len(rows) or (
            len(rows) and (rows.min() < 0 or rows.max() >= len(ids))
        ):
            raise DataError(
                f"{self.path}: {path} refers to a region twice or to a missing region; fix its rois"
            )
        chosen = np.flatnonzero(np.isin(rows, self._chosen(region.table, "regions", selection)))
        if not len(chosen):
            raise DataError(
                f"{self.path}: {path} contains none of the chosen regions; change --units"
            )
        return RoiSignals(
            path,
            ids[rows[chosen]],
            times,
            series.data,
            chosen,
            columns,
            float(series.conversion),
            float(series.offset),
        )

    def roi_names(self) -> list[str]:
        """Return the paths of all calcium signals."""
        kind = self.kinds.ophys.RoiResponseSeries
        return [path for path, series in self.series.items() if isinstance(series, kind)]

    def signal(self, name: str, option: str) -> Signal:
        """Return a TimeSeries of numbers by its path or name.

        Args:
            name: path or name as printed by ``--list``.
            option: the option that gave the name, for messages.

        Raises:
            DataError: if there is no such series, or it is not a series of numbers.
        """
        path = self.find(name, option, self.signal_names())
        series = self.series[path]
        times = self.times(path)
        self.check_times(path, times, repeats=True)
        values = self.values(series.data, path).astype(np.float64)
        values = values.reshape(len(values), -1)
        return Signal(path, times, values * series.conversion + series.offset)

    def signal_names(self) -> list[str]:
        """Return the paths of all numeric series whose data have one row per time."""
        pictures = self.kinds.image.ImageSeries | self.kinds.image.IndexSeries
        return [
            name
            for name, series in self.series.items()
            if not isinstance(series, pictures)
            and len(np.shape(series.data)) in (1, 2)
            and np.asarray(series.data[:1]).dtype.kind in "fiub"
        ]

    def tables(self) -> dict[str, Any]:
        """Return all tables of time intervals by name, including ``trials``."""
        tables = dict(self._file.intervals or {})
        for name in ("trials", "epochs"):
            if (table := getattr(self._file, name)) is not None:
                tables[name] = table
        return tables

    def column(self, table: str, column: str, option: str = "--trials") -> np.ndarray:
        """Return a column of a table of intervals.

        Args:
            table: name of the table.
            column: name of the column.
            option: the option that gave the table, for messages.

        Returns:
            (R,) numbers, booleans or texts.

        Raises:
            DataError: if there is no such table or column, or the column does not have one value
                per row.
        """
        tables = self.tables()
        if table not in tables:
            raise DataError(
                f"{option} {table} is not in {self.path}, which has the tables of intervals "
                f"{_names(list(tables), '(none)')}"
            )
        return self._column(tables[table], table, column)

    def interval_times(self, table: str, option: str = "--trials") -> tuple[np.ndarray, np.ndarray]:
        """Return start and stop of each row of a table of intervals, as two arrays (R,) in seconds.

        A missing time is NaN.
        """
        found = [self.column(table, name, option) for name in ("start_time", "stop_time")]
        if any(times.dtype.kind == "U" for times in found):
            raise DataError(
                f"{self.path}: {table} has times that are texts; times must be numbers in seconds"
            )
        return found[0].astype(np.float64), found[1].astype(np.float64)

    def times(self, path: str, samples: int | None = None) -> np.ndarray:
        """Return the times of a series' samples in seconds, as stored (they may be unsorted).

        Args:
            path: path of the series.
            samples: number of samples; None is the length of its data.

        Raises:
            DataError: if the series has neither timestamps nor a rate, or not one time per sample.
        """
        series = self.series[path]
        if samples is None:
            shape = np.shape(series.data)
            if not shape or not shape[0]:
                raise DataError(
                    f"{self.path}: {path} has no data; choose another series or add data"
                )
            samples = int(shape[0])
        if series.timestamps is not None:
            times = self.numbers(series.timestamps, f"the timestamps of {path}").astype(np.float64)
        elif series.rate is not None and np.isfinite(series.rate) and series.rate > 0:
            times = (series.starting_time or 0.0) + np.arange(samples) / float(series.rate)
        else:
            raise DataError(
                f"{self.path}: {path} has neither timestamps nor a rate above 0; add one of them"
            )
        if len(times) != samples:
            raise DataError(
                f"{self.path}: {path} has {samples} samples and {len(times)} times; there must "
                "be one time per sample"
            )
        return times

    def check_times(self, path: str, times: np.ndarray, *, repeats: bool) -> None:
        """Check that no time is missing and that times increase.

        Args:
            path: path of the series.
            times: (S,) seconds.
            repeats: allow equal successive times.

        Raises:
            DataError: if a time is missing or not increasing; the message gives the index of the
                first one, from 0.
        """
        if (at := np.flatnonzero(~np.isfinite(times))).size:
            told = f"time {at[0]} is {times[at[0]]:g}"
        elif (at := np.flatnonzero(np.diff(times) < 0 if repeats else np.diff(times) <= 0)).size:
            k = int(at[0])
            how = "repeats" if times[k + 1] == times[k] else "is before"
            told = f"time {k + 1} ({times[k + 1]:.6f} s) {how} time {k} ({times[k]:.6f} s)"
        else:
            return
        more = f", further wrong times: {len(at) - 1}" if len(at) > 1 else ""
        raise DataError(f"{self.path}: {path}: {told}{more}; fix the timestamps")

    def values(self, array: Any, what: str) -> np.ndarray:
        """Read a whole array.

        Args:
            array: an array on disk.
            what: name of the array, for messages.

        Raises:
            DataError: if the array is too large.
        """
        shape = np.shape(array)
        size = int(np.prod(shape, dtype=np.float64)) * getattr(
            getattr(array, "dtype", None), "itemsize", 8
        )
        if size > _MOST_BYTES:
            raise DataError(
                f"{self.path}: {what} has {size / 2**30:.1f} GiB, but at most "
                f"{_MOST_BYTES / 2**30:g} GiB are supported; write fewer samples"
            )
        return np.asarray(array[:])

    def numbers(self, array: Any, what: str) -> np.ndarray:
        """Read a whole one-dimensional array of numbers.

        Args:
            array: an array on disk.
            what: name of the array, for messages.

        Raises:
            DataError: if the array is not one-dimensional, not numeric or too large.
        """
        if not _are_numbers(array):
            raise DataError(f"{self.path}: {what} must be a one-dimensional array of numbers")
        return self.values(array, what)

    def find(self, name: str, option: str, among: list[str]) -> str:
        """Return the path that a name stands for.

        Args:
            name: a path, or its last part.
            option: the option that gave the name, for messages.
            among: the paths to search.

        Raises:
            DataError: if no path or several paths match.
        """
        if name in among:
            return name
        found = [path for path in among if path.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{option} {name} matches several objects; give one of {_names(found)}")
        raise DataError(f"{option} {name} is not in {self.path}, which has {_names(among, 'none')}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:
            # pynwb and hdmf raise many errors for files that violate the schema. One kind of error
            # has the object as its first argument.
            where = getattr(error.args[0], "path", "") if error.args else ""
            why = error.args[-1] if where else error
            told = " ".join(f"{where}: {why}".removeprefix(": ").split())[:300]
            raise DataError(f"{self.path} cannot be read as NWB: {told}") from error

    def _chosen(self, table: Any, what: str, selection: UnitSelection | None) -> np.ndarray:
        if selection is None:
            return np.arange(len(table))
        columns = {name: self._column(table, what, name) for name in selection.columns}
        chosen = np.flatnonzero(selection.rows(columns))
        if not len(chosen):
            held = "; ".join(
                f"{name} has the values {_names([str(v) for v in np.unique(values)])}"
                for name, values in columns.items()
            )
            raise DataError(f"--units {selection.text!r} selects none of the {what}: {held}")
        return chosen

    def _ids(self, table: Any, what: str) -> np.ndarray:
        ids = self.numbers(table.id.data, f"the {what} ids").astype(np.int64)
        if len(np.unique(ids)) != len(ids):
            raise DataError(f"{self.path}: {what} ids repeat; give every {what} a unique id")
        return ids

    def _column(self, table: Any, name: str, column: str) -> np.ndarray:
        if column not in table.colnames:
            raise DataError(
                f"{self.path}: {name} has no column {column!r}; it has {', '.join(table.colnames)}"
            )
        data = table[column]
        # Refuse columns that are indexes or references to another table.
        if hasattr(data, "target") or hasattr(data, "table") or len(np.shape(data.data)) != 1:
            raise DataError(
                f"{self.path}: {column} of {name} does not have one number or text per row; choose "
                "another column"
            )
        values = self.values(data, f"{column} of {name}")
        if values.dtype.kind in "OS":
            values = np.array([v.decode() if isinstance(v, bytes) else v for v in values.tolist()])
        if values.dtype.kind not in "fiubU" or values.shape != (len(table),):
            raise DataError(
                f"{self.path}: {column} of {name} does not have one number or text per row; choose "
                "another column"
            )
        return values

    def _all_data(self) -> Iterator[tuple[str, Any]]:
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
        if isinstance(thing, self.kinds.TimeSeries) or self._is_images(thing):
            yield path, thing
            return
        for child in sorted(thing.children, key=lambda child: child.name):
            if hasattr(child, "children"):
                yield from self._below(f"{path}/{child.name}", child)

    def _is_images(self, thing: Any) -> bool:
        return isinstance(thing, self.kinds.base.Images)


def _are_numbers(array: Any) -> bool:
    """Return True if an array is one-dimensional and numeric."""
    return len(np.shape(array)) == 1 and np.asarray(array[:1]).dtype.kind in "fiub"


def _names(names: list[str], none: str = "") -> str:
    """List names for a message, at most the first eight."""
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or none
