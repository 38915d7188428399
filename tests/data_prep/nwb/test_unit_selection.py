"""Conditions on columns, compared with numpy, and invalid conditions."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.nwb.unit_selection import UnitSelection
from ssl_vivit.errors import DataError

QUALITY = np.array(["good", "mua", "good", "noise"])
SNR = np.array([1.0, 5.0, 3.0, np.nan])
DEPTH = np.array([-10, 20, 30, -40])
KEPT = np.array([True, False, True, True])
TABLE = {"quality": QUALITY, "snr": SNR, "depth": DEPTH, "kept": KEPT}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('quality == "good"', QUALITY == "good"),
        ("quality != 'noise'", QUALITY != "noise"),
        ("snr > 2", SNR > 2),
        ("snr <= 3", SNR <= 3),
        ("snr != 3", np.array([True, True, False, False])),
        ("depth < -10", DEPTH < -10),
        ("kept == True", KEPT),
        ("quality == 'good' and snr >= 3", (QUALITY == "good") & (SNR >= 3)),
        (
            "(quality == 'mua' or quality == 'good') and depth >= 20",
            np.array([False, True, True, False]),
        ),
        ("kept == 1 or snr > 4", KEPT | (SNR > 4)),
    ],
)
def test_conditions(text, expected):
    np.testing.assert_array_equal(UnitSelection(text).rows(TABLE), expected)


def test_columns_of_a_condition():
    assert UnitSelection("snr > 2 and (depth < 0 or snr < 9)").columns == ["snr", "depth"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "quality = 'good'",
        "quality",
        "snr > depth",
        "1 < snr < 3",
        "not kept == 1",
        "snr + 1 > 2",
        "quality in ['good']",
        "__import__('os').system('true') == 0",
        "quality.__class__ == 1",
        "snr > (lambda: 1)()",
        "snr > 1\x00",
        "(" * 500,
        "snr > 1j",
        "quality == b'good'",
    ],
)
def test_invalid_conditions_are_refused(text):
    with pytest.raises(DataError, match=r"--units.*give comparisons of a column with a value"):
        UnitSelection(text)


@pytest.mark.parametrize("text", ["quality == 1", "snr == 'good'", "quality > 'a'"])
def test_kinds_that_do_not_compare(text):
    with pytest.raises(DataError, match="--units"):
        UnitSelection(text).rows(TABLE)
