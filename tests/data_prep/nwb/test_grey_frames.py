"""Conversion of frames of all types to grey, compared with plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.nwb.grey_frames import GreyFrames
from ssl_vivit.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


@pytest.mark.parametrize(
    "frames",
    [
        GREY,
        GREY.astype(np.float64),
        GREY.astype(np.uint16),
        GREY / 255,
        GREY / 127.5 - 1,
        GREY[..., None],
    ],
    ids=["uint8", "float", "uint16", "unit", "signed", "one channel"],
)
def test_pixel_ranges(frames):
    np.testing.assert_array_equal(
        GreyFrames([frames], (8, 6), "a").read(np.arange(1, 4)), GREY[1:4]
    )


def test_black_and_white_of_one_bit_is_0_and_255():
    noise = (GREY > 127).astype(np.uint8)
    found = GreyFrames([noise], (8, 6), "a").read(np.arange(5))
    np.testing.assert_array_equal(found, 255 * noise)


def test_colour_is_luma_and_alpha_is_dropped():
    expected = np.round(COLOUR @ [0.2989, 0.587, 0.114])
    opaque = np.concatenate([COLOUR, COLOUR[..., :1]], axis=-1)
    for frames in (COLOUR, opaque):
        np.testing.assert_array_equal(
            GreyFrames([frames], (8, 6), "a").read(np.arange(0, 5)), expected
        )


def test_transposed_frames():
    made = GreyFrames([GREY.swapaxes(1, 2)], (8, 6), "a", transpose=True)
    np.testing.assert_array_equal(made.read(np.arange(0, 5)), GREY)
    assert made.source_size == (8, 6)


def test_shrinking_averages():
    """A checkerboard of single pixels becomes uniform grey, because resizing averages."""
    board = np.indices((40, 40)).sum(0) % 2 * 255
    small = GreyFrames([board[None].astype(np.uint8)], (10, 10), "a").read(np.arange(0, 1))
    assert np.abs(small.astype(int) - 127.5).max() < 3


def test_frames_across_chunks():
    many = np.random.default_rng(1).random((600, 2, 3))
    expected = np.round(many.astype(np.float32) * 255)
    np.testing.assert_array_equal(
        GreyFrames([many], (2, 3), "a").read(np.arange(3, 590)), expected[3:590]
    )


@pytest.mark.parametrize("frames", [GREY[0], COLOUR[..., :2], GREY[:0], GREY * 2.0, GREY - 300.0])
def test_invalid_frames_are_refused(frames):
    with pytest.raises(DataError, match=r"^film has"):
        GreyFrames([frames], (8, 6), "film")
