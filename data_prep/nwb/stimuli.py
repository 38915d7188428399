"""Stimuli shown in an NWB file: series of frames, and tables that show templates.

A template is a set of pictures without times of presentation. Presentations are a series of frames,
a series of indices into a template, or a table of intervals with a column for the picture of each
row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.nwb.external_movies import MovieFile
from data_prep.nwb.file import NwbFile
from data_prep.nwb.frame_clock import frame_ends
from data_prep.nwb.grey_frames import FrameArray
from data_prep.nwb.presentations import PICTURE_COLUMNS, picture_numbers, place
from ssl_vivit.errors import DataError

_NOT_STIMULI = ("TwoPhotonSeries", "OnePhotonSeries", "ImageMaskSeries")
_PRESENTATIONS = "_presentations"
_TEMPLATES = "stimulus/templates/"


@dataclass(frozen=True)
class ShownFrames:
    """A stimulus as it was shown.

    Attributes:
        name: path of the stimulus in the file.
        onsets: (F,) seconds, strictly increasing.
        ends: (F,) seconds, after the onset and not after the next onset.
        positions: (F,) index of the shown frame in the joined ``pieces``; −1 for a grey screen.
        pieces: successive arrays of frames, not yet read.
        left_out: number of rows of a table of presentations that give no frame, by reason.
    """

    name: str
    onsets: np.ndarray
    ends: np.ndarray
    positions: np.ndarray
    pieces: Sequence[FrameArray]
    left_out: Counter[str] = field(default_factory=Counter)


class Stimuli:
    """The stimuli of a file.

    Args:
        file: the opened file.
        template: name of the pictures that a table of presentations shows; None uses the table's
            name or its column ``stimulus_name``.
        frame_column: column of the table that says which picture a row shows; None uses the only
            column with a name in ``PICTURE_COLUMNS``.
        external_movies: read movies from files in the NWB file's folder.
    """

    def __init__(
        self,
        file: NwbFile,
        *,
        template: str | None = None,
        frame_column: str | None = None,
        external_movies: bool = False,
    ) -> None:
        self._file = file
        self._template = template
        self._frame_column = frame_column
        self._external_movies = external_movies

    def names(self) -> list[str]:
        """Return the paths of all stimuli that can be chosen."""
        series = [
            path
            for path, series in self._file.series.items()
            if self._has_frames(series) and not path.startswith(_TEMPLATES)
        ]
        return series + self._tables()

    def usual(self) -> list[str]:
        """Return the paths of the stimuli that the file lists as presented.

        Acquired images may come from a camera, so they must be chosen by name.
        """
        shown = [path for path in self.names() if path.startswith("stimulus/presentation/")]
        return shown + self._tables()

    def templates(self) -> list[str]:
        """Return the paths of the templates: sets of pictures without times of presentation."""
        series = [
            path
            for path, series in self._file.series.items()
            if path.startswith(_TEMPLATES) and self._has_frames(series)
        ]
        return series + list(self._file.images)

    def read(self, name: str) -> ShownFrames:
        """Return a stimulus by its path or name.

        Raises:
            DataError: if there is no such stimulus, or it cannot be used.
        """
        file, names = self._file, self.names()
        is_template = any(t == name or t.endswith(f"/{name}") for t in self.templates())
        if is_template and not any(n == name or n.endswith(f"/{name}") for n in names):
            raise DataError(
                f"--stimulus {name} is a template, which has no times of presentation; "
                f"{self._what_to_give()}"
            )
        path = file.find(name, "--stimulus", names)
        if path not in file.series:
            return self._shown_by_table(path)
        series = file.series[path]
        if isinstance(series, file.kinds.image.IndexSeries):
            onsets = file.times(path)
            pieces, positions = self._indexed(path, series)
        else:
            pieces = self._frames(path, series)
            positions = np.arange(sum(piece.shape[0] for piece in pieces))
            onsets = file.times(path, len(positions))
        file.check_times(path, onsets, repeats=False)
        self._refuse_few(path, onsets)
        return ShownFrames(path, onsets, frame_ends(onsets), positions, pieces)

    def none_found(self) -> str:
        """Return the error message for a file without a stimulus with times of presentation."""
        return (
            f"{self._file.path} has no stimulus with times of presentation; {self._what_to_give()}"
        )

    def _what_to_give(self) -> str:
        if usual := self.usual():
            return f"give --stimulus {', '.join(usual)}"
        if others := self.names():
            return f"if one of these was the stimulus, name it by --stimulus: {', '.join(others)}"
        return (
            "add an ImageSeries or IndexSeries to the file's stimuli, or a table of intervals with "
            f"start_time, stop_time and {PICTURE_COLUMNS[0]}"
        )

    def _tables(self) -> list[str]:
        """Return the names of tables whose rows show pictures."""
        return [
            name
            for name, table in self._file.tables().items()
            if (self._frame_column or "") in table.colnames
            or (name not in ("trials", "epochs") and set(PICTURE_COLUMNS) & set(table.colnames))
        ]

    def _shown_by_table(self, table: str) -> ShownFrames:
        file = self._file
        starts, stops = file.interval_times(table, "--stimulus")
        template, told = self._template_of(table)
        column = self._frame_column or self._picture_column(table)
        values = file.column(table, column, "--stimulus")
        if template in file.images:
            collection = file.images[template]
            by_name = values.dtype.kind == "U"
            images = (
                list(collection.images.values()) if by_name else self._in_order(table, collection)
            )
            pieces: Sequence[FrameArray] = [_Picture(image) for image in images]
            names = [image.name for image in images]
        else:
            pieces, names = self._frames(template, file.series[template]), None
        count = sum(piece.shape[0] for piece in pieces)
        if told is not None:  # ignore rows of other stimuli, whose numbers mean other pictures
            mine = told == template.rpartition("/")[2]
            values = np.where(mine, values, "" if values.dtype.kind == "U" else np.nan)
        if values.dtype.kind != "U":
            values = values.astype(np.float64)
        pictures = picture_numbers(values, count, names, f"{file.path}: {column} of {table}")
        placed = place(f"{file.path}: {table}", starts, stops, pictures, self._others(table))
        self._refuse_few(table, placed.onsets)
        return ShownFrames(
            table, placed.onsets, placed.ends, placed.positions, pieces, placed.left_out
        )

    def _refuse_few(self, name: str, onsets: np.ndarray) -> None:
        if len(onsets) < 2:
            raise DataError(
                f"{self._file.path}: {name} shows {len(onsets)} frames; a stimulus needs two or "
                "more"
            )

    def _picture_column(self, table: str) -> str:
        columns = self._file.tables()[table].colnames
        found = [name for name in PICTURE_COLUMNS if name in columns]
        if len(found) != 1:
            raise DataError(
                f"{self._file.path}: {table} has {len(found)} columns that may say which picture a "
                f"row shows; choose one by --frame-column: {', '.join(found or columns)}"
            )
        return found[0]

    def _template_of(self, table: str) -> tuple[str, np.ndarray | None]:
        """Return the path of a table's template, and the table's column ``stimulus_name``.

        The column is returned as None if the table does not have it, or if it does not tell which
        rows show the template.
        """
        file, templates = self._file, self.templates()
        told = None
        if "stimulus_name" in file.tables()[table].colnames:
            told = file.column(table, "stimulus_name", "--stimulus").astype(str)
        names = {table.removesuffix(_PRESENTATIONS), *([] if told is None else told.tolist())}
        if self._template is not None:
            frames = [path for path, series in file.series.items() if self._has_pixels(series)]
            template = file.find(self._template, "--template", [*frames, *file.images])
        else:
            found = [path for path in templates if path.rpartition("/")[2] in names]
            if len(found) != 1:
                choice = ", ".join(found or templates)
                raise DataError(
                    f"{file.path}: {table} does not say which pictures it shows; "
                    + (
                        f"choose by --template: {choice}"
                        if choice
                        else "the file has no templates; add the pictures as an ImageSeries"
                    )
                )
            template = found[0]
        own = template.rpartition("/")[2]
        if told is not None and own not in told:
            if len(stimuli := np.unique(told)) > 1:
                raise DataError(
                    f"{file.path}: rows of {table} show {len(stimuli)} stimuli "
                    f"({', '.join(stimuli[:8])}), but none with the name of the template, {own}; set "
                    "--template to one of these names, or --stimulus to a table with one stimulus"
                )
            told = None
        return template, told

    def _others(self, table: str) -> np.ndarray:
        """Return start and stop of the rows of all tables of presentations except ``table``.

        Returns:
            (O, 2) seconds.
        """
        found = [np.zeros((0, 2))]
        for name in self._file.tables():
            if name != table and (name.endswith(_PRESENTATIONS) or name in self._tables()):
                rows = np.stack(self._file.interval_times(name), axis=1)
                found.append(rows[np.isfinite(rows).all(1)])
        return np.concatenate(found)

    def _indexed(self, path: str, series: Any) -> tuple[Sequence[FrameArray], np.ndarray]:
        file = self._file
        if series.indexed_timeseries is not None:
            pieces = self._frames(path, series.indexed_timeseries)
        elif series.indexed_images is not None:
            pieces = [_Picture(image) for image in self._in_order(path, series.indexed_images)]
        else:
            raise DataError(
                f"{file.path}: {path} refers to no template; add the template that it indexes"
            )
        numbers = file.numbers(series.data, f"the indices of {path}")
        positions = numbers.astype(np.int64)
        count = sum(piece.shape[0] for piece in pieces)
        if (
            wrong := np.flatnonzero((positions != numbers) | (positions < 0) | (positions >= count))
        ).size:
            raise DataError(
                f"{file.path}: {path} refers to frame {numbers[wrong[0]]:g} at index {wrong[0]}, "
                f"but its template has {count} frames; indices must be 0 to {count - 1}"
            )
        return pieces, positions

    def _in_order(self, path: str, collection: Any) -> list[Any]:
        if (order := collection.order_of_images) is None:
            raise DataError(
                f"{self._file.path}: images of {collection.name} have no order_of_images, so the "
                f"numbers of {path} are ambiguous; add order_of_images, or a table with a column "
                "image_name"
            )
        return list(order.data[:])

    def _frames(self, path: str, series: Any) -> Sequence[FrameArray]:
        file = self._file
        if (movies := getattr(series, "external_file", None)) is None:
            return [series.data]
        if not (names := [str(name) for name in movies[:]]):
            raise DataError(
                f"{file.path}: {path} has an empty external_file; set external_file to the movie's "
                "path"
            )
        if not self._external_movies:
            raise DataError(
                f"{file.path}: the frames of {path} are in another file ({names[0]}); set "
                "--external-movies to read it from the folder of the NWB file"
            )
        pieces = [MovieFile(file.path, name) for name in names]
        starts = np.cumsum([0, *(piece.shape[0] for piece in pieces)])[:-1]
        given = series.starting_frame
        if len(pieces) > 1 and (given is None or list(given[:]) != starts.tolist()):
            raise DataError(
                f"{file.path}: starting_frame of {path} is "
                f"{'none' if given is None else list(map(int, given[:]))}, but its movies begin at "
                f"frames {starts.tolist()}; fix starting_frame"
            )
        stated, held = getattr(series, "num_samples", None), sum(p.shape[0] for p in pieces)
        if stated and stated != held:
            raise DataError(
                f"{file.path}: {path} states {stated} frames, but its movies have {held}; "
                "fix num_samples or the timestamps"
            )
        return pieces

    def _has_frames(self, series: Any) -> bool:
        image = self._file.kinds.image
        return type(series).__name__ not in _NOT_STIMULI and isinstance(
            series, image.ImageSeries | image.IndexSeries
        )

    def _has_pixels(self, series: Any) -> bool:
        return self._has_frames(series) and not isinstance(
            series, self._file.kinds.image.IndexSeries
        )


class _Picture:
    """An image on disk as an array of one frame."""

    def __init__(self, image: Any) -> None:
        self._data = image.data
        self.shape = (1, *np.shape(image.data))
        self.dtype = np.dtype(getattr(image.data, "dtype", np.float64))

    def __getitem__(self, key: slice, /) -> np.ndarray:
        return np.asarray(self._data[:])[None][key]
