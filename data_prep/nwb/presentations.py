"""Rows of a table of presentations made frames on a clock, with grey between them.

A row shows a picture from ``start_time`` to ``stop_time``. Between rows the screen is grey, unless
the gap is long or something else was shown in it: then nothing is known, and the frames pause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_vivit.errors import DataError

# Columns that say which picture a row shows, as the Allen Institute names them.
PICTURE_COLUMNS = ("frame", "movie_frame_index", "image_index", "image_name")
# Numbers of pictures that are none.
GREY_PICTURE = -1
UNKNOWN_PICTURE = -2
_GREY_NAMES = ("omitted", "blank", "gray", "grey")
# A longer gap may hold anything, such as another block of the session.
_MOST_GREY_SECONDS = 3.0
# Share of a usual row by which clocks of neighbouring rows may disagree.
_JITTER = 0.5
_MOST_FRAMES = 10**7


@dataclass(frozen=True)
class PlacedFrames:
    """Frames on the recording's clock.

    Attributes:
        onsets: (F,) seconds, strictly increasing.
        ends: (F,) seconds, not after the next onset.
        positions: (F,) number of the picture; ``GREY_PICTURE`` for grey.
        left_out: rows that gave no frame, by reason.
    """

    onsets: np.ndarray
    ends: np.ndarray
    positions: np.ndarray
    left_out: Counter[str]


def picture_numbers(
    column: np.ndarray, count: int, names: Sequence[str] | None, where: str
) -> np.ndarray:
    """Numbers of the pictures that a column names.

    Args:
        column: (R,) numbers from 0 on, −1 for grey and NaN for none; or names.
        count: of pictures.
        names: of the pictures; None where they have none.
        where: the column, for messages.

    Returns:
        (R,) int64, ``GREY_PICTURE`` for grey, ``UNKNOWN_PICTURE`` for what is no picture.

    Raises:
        DataError: if a number is no picture's, or names are given for pictures without names.
    """
    if column.dtype.kind == "U":
        if names is None:
            raise DataError(
                f"{where} holds names, and the pictures have none; give a column of numbers by "
                "--frame-column, or an Images container by --template"
            )
        number = {name: k for k, name in enumerate(names)}
        number = {**dict.fromkeys(_GREY_NAMES, GREY_PICTURE), **number}
        return np.array([number.get(name, UNKNOWN_PICTURE) for name in column.tolist()], np.int64)
    numbers = np.where(np.isnan(column), UNKNOWN_PICTURE, column)
    wrong = (numbers != np.floor(numbers)) | (numbers < GREY_PICTURE) | (numbers >= count)
    if (rows := np.flatnonzero(wrong & ~np.isnan(column))).size:
        raise DataError(
            f"{where} is {column[rows[0]]:g} in row {rows[0]}, and there are {count} pictures; give "
            f"0 to {count - 1}, or -1 for grey"
        )
    return numbers.astype(np.int64)


def place(
    table: str, starts: np.ndarray, stops: np.ndarray, pictures: np.ndarray, others: np.ndarray
) -> PlacedFrames:
    """Place the pictures of a table's rows, and grey frames between them.

    A picture that stays for several usual rows, and a grey gap, become as many frames of about the
    usual length.

    Args:
        table: name for messages.
        starts: (R,) seconds.
        stops: (R,) seconds.
        pictures: (R,), see :func:`picture_numbers`.
        others: (O, 2) seconds in which other tables show something.

    Raises:
        DataError: if rows are out of order or overlap, or none shows a picture.
    """
    rows, bad = intervals(starts, stops)
    left_out: Counter[str] = Counter()
    if bad:
        left_out[f"rows of {table} {NO_INTERVAL}"] = bad
    if unknown := int((pictures[rows] == UNKNOWN_PICTURE).sum()):
        left_out[f"rows of {table} show no picture of its template"] = unknown
    if not (pictures[rows] >= 0).any():
        told = "; ".join(f"{count} {why}" for why, count in left_out.items())
        raise DataError(f"no row of {table} shows a picture ({told or 'all are grey'})")
    start, stop, picture = starts[rows], stops[rows], pictures[rows]
    usual = float(np.median((stop - start)[picture >= 0]))
    following = np.append(start[1:], np.inf)
    for wrong, told in (
        (np.diff(start) <= 0, "does not start after"),
        (stop[:-1] - start[1:] > _JITTER * usual, "overlaps"),
    ):
        if (at := np.flatnonzero(wrong)).size:
            a, b = rows[at[0]], rows[at[0] + 1]
            raise DataError(
                f"{table}: row {b} ({starts[b]:.6f} to {stops[b]:.6f} s) {told} row {a} "
                f"({starts[a]:.6f} to {stops[a]:.6f} s); fix its times"
            )
    adjoins = following - stop < _JITTER * usual
    end = np.where(adjoins, following, stop)
    # Grey is what is known to have nothing else in it: no row left out, no other table's row.
    known = picture != UNKNOWN_PICTURE
    grey = known & np.append(known[1:] & (np.diff(rows) == 1), False) & ~adjoins
    grey &= following - stop <= _MOST_GREY_SECONDS
    grey[grey] = ~_touched(stop[grey], following[grey], others, _JITTER * usual)
    begins = np.concatenate([start[known], stop[grey]])
    stays = np.concatenate([end[known], following[grey]]) - begins
    shows = np.concatenate([picture[known], np.full(int(grey.sum()), GREY_PICTURE)])
    order = np.argsort(begins)
    begins, stays, shows = begins[order], stays[order], shows[order]
    parts = np.maximum(1, np.round(stays / usual))
    if parts.sum() > _MOST_FRAMES:
        raise DataError(
            f"{table}: a row usually lasts {usual:.3g} s and one lasts {stays.max():.3g} s, which "
            "are no frames of one stimulus; fix its times"
        )
    parts = parts.astype(np.int64)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    begins, stays, shows, parts = (np.repeat(a, parts) for a in (begins, stays, shows, parts))
    onsets = begins + stays * part / parts
    last = part == parts - 1
    ends = np.where(last, begins + stays, np.append(onsets[1:], np.inf))
    # A sum of floating-point numbers must not open a gap where a frame follows at once.
    touching = np.append(np.abs(onsets[1:] - ends[:-1]) < 1e-6 * usual, False)
    ends = np.where(touching, np.append(onsets[1:], np.inf), ends)
    return PlacedFrames(onsets, ends, shows, left_out)


NO_INTERVAL = "are no interval: a time is missing, or stop_time is not after start_time"


def intervals(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the numbers of rows that are intervals, and how many are none."""
    good = np.isfinite(starts) & np.isfinite(stops) & (starts < stops)
    return np.flatnonzero(good), int((~good).sum())


def _touched(begins: np.ndarray, ends: np.ndarray, others: np.ndarray, slack: float) -> np.ndarray:
    """Mark the gaps that share more than ``slack`` seconds with one of the other intervals."""
    touched = np.zeros(len(begins), bool)
    if len(others):
        others = others[np.argsort(others[:, 0])]
        latest = np.maximum.accumulate(others[:, 1])
        before = np.searchsorted(others[:, 0], ends - slack, side="left") - 1
        touched = (before >= 0) & (latest[before] > begins + slack)
    return touched
