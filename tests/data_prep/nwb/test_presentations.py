"""Placement of table rows in time, compared with frames computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.nwb.presentations import (
    GREY_PICTURE,
    UNKNOWN_PICTURE,
    intervals,
    picture_numbers,
    place,
)
from ssl_vivit.errors import DataError

NOTHING_ELSE = np.zeros((0, 2))


def placed(rows, others=NOTHING_ELSE):
    starts, stops, pictures = (np.array(column) for column in zip(*rows, strict=True))
    return place("t", starts, stops, pictures, np.asarray(others))


def frames(made):
    return list(zip(made.onsets.round(6), made.ends.round(6), made.positions, strict=True))


def test_grey_between_images_and_for_blank_rows():
    made = placed([(1.0, 1.25, 3), (1.75, 2.0, 0), (2.0, 2.25, GREY_PICTURE), (2.25, 2.5, 1)])
    assert frames(made) == [
        (1.0, 1.25, 3),
        (1.25, 1.5, -1),
        (1.5, 1.75, -1),
        (1.75, 2.0, 0),
        (2.0, 2.25, -1),
        (2.25, 2.5, 1),
    ]
    assert not made.left_out


def test_long_gaps_pause():
    made = placed([(0.0, 0.5, 0), (0.5, 1.0, 1), (5.0, 5.5, 2)])
    assert frames(made) == [(0.0, 0.5, 0), (0.5, 1.0, 1), (5.0, 5.5, 2)]


def test_gaps_in_which_something_else_was_shown_pause():
    rows = [(0.0, 0.5, 0), (1.0, 1.5, 1), (2.0, 2.5, 2)]
    made = placed(rows, others=[(-9.0, -8.0), (1.5, 2.0)])
    assert made.positions.tolist() == [0, -1, 1, 2]
    # One interval may span many gaps.
    assert placed(rows, others=[(-9.0, 9.0)]).positions.tolist() == [0, 1, 2]
    # What only touches a gap is not in it.
    assert placed(rows, others=[(0.0, 0.5), (1.0, 1.5)]).positions.tolist() == [0, -1, 1, -1, 2]


def test_rows_left_out_are_counted_and_leave_no_grey():
    nan = np.nan
    made = placed(
        [(0.0, 0.5, 0), (nan, 1.0, 1), (1.0, 1.5, 2), (1.5, 2.0, UNKNOWN_PICTURE), (2.0, 2.5, 3)]
    )
    assert frames(made) == [(0.0, 0.5, 0), (1.0, 1.5, 2), (2.0, 2.5, 3)]
    assert sorted(made.left_out.values()) == [1, 1]
    assert any("not intervals" in why for why in made.left_out)
    assert any("show no picture" in why for why in made.left_out)


def test_a_picture_that_stays_longer_has_more_frames():
    made = placed([(0.0, 0.1, 0), (0.1, 0.4, 1), (0.4, 0.5, 2)])
    assert made.positions.tolist() == [0, 1, 1, 1, 2]
    np.testing.assert_allclose(made.onsets, [0, 0.1, 0.2, 0.3, 0.4])


def test_jitter_of_clocks_opens_no_gap():
    rng = np.random.default_rng(0)
    starts = np.arange(300) / 30 + rng.uniform(0, 0.004, 300)
    stops = np.arange(1, 301) / 30 + rng.uniform(-0.004, 0.004, 300)
    made = place("t", starts, stops, np.arange(300), NOTHING_ELSE)
    np.testing.assert_array_equal(made.onsets, starts)
    np.testing.assert_array_equal(made.ends[:-1], starts[1:])
    assert made.ends[-1] == stops[-1]
    np.testing.assert_array_equal(made.positions, np.arange(300))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0.0, 1.0, 0), (0.0, 1.0, 1)], r"t: row 1 \(0.000000 to .* does not start after row 0"),
        ([(2.0, 3.0, 0), (np.nan, 1.0, 0), (1.0, 2.0, 1)], "row 2 .* does not start after row 0"),
        ([(0.0, 1.0, 0), (0.2, 1.2, 1)], "row 1 .* overlaps row 0"),
        ([(0.0, 1.0, GREY_PICTURE), (np.nan, 1.0, 0)], "no row of t shows a picture"),
        ([(0.0, 1e-6, 0), (1.0, 1 + 1e-6, 0), (2.0, 500.0, 1)], "too long for one stimulus"),
    ],
)
def test_refusals(rows, expected):
    with pytest.raises(DataError, match=expected):
        placed(rows)


def test_numbers_and_names_of_pictures():
    numbers = picture_numbers(np.array([0.0, 2.0, -1.0, np.nan]), 3, None, "c")
    assert numbers.tolist() == [0, 2, GREY_PICTURE, UNKNOWN_PICTURE]
    named = picture_numbers(np.array(["b", "omitted", "a", "x", ""]), 2, ["a", "b"], "c")
    assert named.tolist() == [1, GREY_PICTURE, 0, UNKNOWN_PICTURE, UNKNOWN_PICTURE]
    # A picture may bear a name that otherwise stands for grey.
    assert picture_numbers(np.array(["grey"]), 1, ["grey"], "c").tolist() == [0]


@pytest.mark.parametrize("value", [3.0, -2.0, 0.5, np.inf])
def test_numbers_of_no_picture(value):
    with pytest.raises(
        DataError, match=r"c is .* in row 1, but there are 3 pictures; it must be 0 to 2"
    ):
        picture_numbers(np.array([0.0, value]), 3, None, "c")


def test_names_for_pictures_without_names():
    with pytest.raises(DataError, match="--frame-column"):
        picture_numbers(np.array(["a"]), 3, None, "c")


def test_what_is_an_interval():
    starts = np.array([0.0, 1.0, np.nan, 0.0, 2.0, -np.inf])
    stops = np.array([1.0, 1.0, 2.0, np.inf, 1.0, 0.0])
    rows, bad = intervals(starts, stops)
    assert rows.tolist() == [0]
    assert bad == 5
