"""Convert rows of a table of presentations to frames with times, and grey frames between them.

A row shows a picture from ``start_time`` to ``stop_time``. Between rows the screen is grey. If the
gap is long or another stimulus was shown in it, the screen is unknown and the gap gets no frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_vivit.errors import DataError

# The Allen Institute's names of columns that say which picture a row shows.
PICTURE_COLUMNS = ("frame", "movie_frame_index", "image_index", "image_name")
# Special picture numbers.
GREY_PICTURE = -1
UNKNOWN_PICTURE = -2
_GREY_NAMES = ("omitted", "blank", "gray", "grey")
# Longest gap in seconds in which the screen is grey. In longer gaps the screen is unknown.
_MOST_GREY_SECONDS = 3.0
# Fraction of a usual row's duration by which times of neighbouring rows may be inconsistent.
_JITTER = 0.5
_MOST_FRAMES = 10**7


@dataclass(frozen=True)
class PlacedFrames:
    """Frames of a table of presentations, with their times on the recording's clock.

    Attributes:
        onsets: (F,) seconds, strictly increasing.
        ends: (F,) seconds, not after the next onset.
        positions: (F,) number of the picture that each frame shows; ``GREY_PICTURE`` for grey.
        left_out: number of rows of the table from which no frame was made, by reason.
    """

    onsets: np.ndarray
    ends: np.ndarray
    positions: np.ndarray
    left_out: Counter[str]


def picture_numbers(
    column: np.ndarray, count: int, names: Sequence[str] | None, where: str
) -> np.ndarray:
    """Return the number of the picture that each row of a table of presentations shows.

    Args:
        column: column of the table, (R,): names of pictures, or numbers from 0 on, with −1 for
            grey and NaN for no picture.
        count: number of pictures.
        names: names of the pictures; None if they have no names.
        where: name of the column, for messages.

    Returns:
        (R,) int64; ``GREY_PICTURE`` for grey, ``UNKNOWN_PICTURE`` for rows without a picture.

    Raises:
        DataError: if a number is out of range, or the column has names and the pictures have none.
    """
    if column.dtype.kind == "U":
        if names is None:
            raise DataError(
                f"{where} has names, but the pictures have none; give a column of numbers by "
                "--frame-column, or an Images container by --template"
            )
        number = {name: k for k, name in enumerate(names)}
        number = {**dict.fromkeys(_GREY_NAMES, GREY_PICTURE), **number}
        return np.array([number.get(name, UNKNOWN_PICTURE) for name in column.tolist()], np.int64)
    numbers = np.where(np.isnan(column), UNKNOWN_PICTURE, column)
    wrong = (numbers != np.floor(numbers)) | (numbers < GREY_PICTURE) | (numbers >= count)
    if (rows := np.flatnonzero(wrong & ~np.isnan(column))).size:
        raise DataError(
            f"{where} is {column[rows[0]]:g} in row {rows[0]}, but there are {count} pictures; it "
            f"must be 0 to {count - 1}, or -1 for grey"
        )
    return numbers.astype(np.int64)


def place(
    table: str, starts: np.ndarray, stops: np.ndarray, pictures: np.ndarray, others: np.ndarray
) -> PlacedFrames:
    """Convert a table's rows to frames, and fill the gaps between rows with grey frames.

    A picture or gap that lasts longer than the median row is divided into several frames of about
    the median duration.

    Args:
        table: name of the table, for messages.
        starts: (R,) seconds.
        stops: (R,) seconds.
        pictures: (R,) picture numbers, see :func:`picture_numbers`.
        others: (O, 2) start and stop in seconds of rows of other tables. A gap that contains one of
            them is not filled.

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
        raise DataError(
            f"no row of {table} shows a picture ({told or 'all are grey'}); choose another table "
            "by --stimulus"
        )
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
                f"({starts[a]:.6f} to {stops[a]:.6f} s); fix the times of the table"
            )
    adjoins = following - stop < _JITTER * usual
    end = np.where(adjoins, following, stop)
    # A gap is grey only if it contains no skipped row and no row of another table.
    known = picture != UNKNOWN_PICTURE
    grey = known & np.append(known[1:] & (np.diff(rows) == 1), False) & ~adjoins
    grey &= following - stop <= _MOST_GREY_SECONDS
    grey[grey] = ~_overlapping(stop[grey], following[grey], others, _JITTER * usual)
    begins = np.concatenate([start[known], stop[grey]])
    stays = np.concatenate([end[known], following[grey]]) - begins
    shows = np.concatenate([picture[known], np.full(int(grey.sum()), GREY_PICTURE)])
    order = np.argsort(begins)
    begins, stays, shows = begins[order], stays[order], shows[order]
    parts = np.maximum(1, np.round(stays / usual))
    if parts.sum() > _MOST_FRAMES:
        raise DataError(
            f"{table}: a row usually lasts {usual:.3g} s, but one row lasts {stays.max():.3g} s, "
            "which is too long for one stimulus; fix the times of the table"
        )
    parts = parts.astype(np.int64)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    begins, stays, shows, parts = (np.repeat(a, parts) for a in (begins, stays, shows, parts))
    onsets = begins + stays * part / parts
    last = part == parts - 1
    ends = np.where(last, begins + stays, np.append(onsets[1:], np.inf))
    # Rounding errors must not create a gap between successive frames.
    touching = np.append(np.abs(onsets[1:] - ends[:-1]) < 1e-6 * usual, False)
    ends = np.where(touching, np.append(onsets[1:], np.inf), ends)
    return PlacedFrames(onsets, ends, shows, left_out)


NO_INTERVAL = "are not intervals: a time is missing, or stop_time is not after start_time"


def intervals(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the indices of a table's rows that are intervals, and the number of other rows.

    A row is an interval if both times are known and the start is before the stop.
    """
    good = np.isfinite(starts) & np.isfinite(stops) & (starts < stops)
    return np.flatnonzero(good), int((~good).sum())


def _overlapping(
    begins: np.ndarray, ends: np.ndarray, others: np.ndarray, slack: float
) -> np.ndarray:
    """Mark the gaps (G,) that overlap one of the intervals ``others`` (O, 2).

    Overlaps of up to ``slack`` seconds are ignored.
    """
    touched = np.zeros(len(begins), bool)
    if len(others):
        others = others[np.argsort(others[:, 0])]
        latest = np.maximum.accumulate(others[:, 1])
        before = np.searchsorted(others[:, 0], ends - slack, side="left") - 1
        touched = (before >= 0) & (latest[before] > begins + slack)
    return touched
