"""Indices, compared with numbers computed by hand; fits, with the parameters of their curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssl_vivit.evaluation.tuning import fits, indices

DEGREES = np.arange(8) * 45.0
EIGHT = np.array([[1.0, 4.0, 1.0, 0.0, 0.5, 2.0, 0.5, -3.0], [-1.0] * 8])


def test_vector_sums_are_those_of_a_loop():
    for period in (180, 360):
        total = sum(
            max(r, 0) * np.exp(2j * np.pi * d / period)
            for r, d in zip(EIGHT[0], DEGREES, strict=True)
        )
        found = indices.vector_sum(EIGHT, DEGREES, period=period)
        assert found[0] == pytest.approx(total / 9)
        assert np.isnan(found[1])
        expected = math.degrees(math.atan2(total.imag, total.real)) % 360 * period / 360
        assert indices.angle_of(found, period=period)[0] == pytest.approx(expected)


def test_a_unit_of_one_direction_has_indices_of_one_and_one_of_all_of_zero():
    one, all_ = np.eye(8)[[3]], np.ones((1, 8))
    assert abs(indices.vector_sum(one, DEGREES, period=360)[0]) == pytest.approx(1)
    assert abs(indices.vector_sum(all_, DEGREES, period=180)[0]) == pytest.approx(0, abs=1e-12)
    opposite = indices.at_angle(EIGHT, EIGHT.argmax(1), 180, period=360)
    assert opposite[0] == 2.0
    assert indices.contrast_index(EIGHT.max(1), opposite)[0] == pytest.approx((4 - 2) / (4 + 2))
    assert np.isnan(indices.contrast_index(np.array([-1.0]), np.array([-2.0]))[0])
    # Negative responses count as 0.
    assert indices.contrast_index(np.array([2.0]), np.array([-2.0]))[0] == 1


def test_suppression_compares_the_largest_size_with_the_best():
    sizes = np.array([[1.0, 4.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, -1.0], [-1.0, -1.0, -2.0]])
    found = indices.suppression_index(sizes)
    assert found[:3] == pytest.approx([0.25, 0, 1])
    assert np.isnan(found[3])


CURVES = {
    "direction": (np.arange(12) * 30.0, (0.2, 3.0, 1.1, 70.0, 2.5)),
    "orientation": (np.arange(8) * 22.5, (0.3, 2.0, 100.0, 3.0)),
    "spatial_frequency": (0.03 * 2 ** (np.arange(7) / 2), (0.1, 2.0, 0.09, 0.8)),
    "temporal_frequency": (2.0 ** np.arange(5), (0.0, 5.0, 3.0, 1.1)),
    "contrast": (np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0]), (4.0, 0.3, 2.2)),
    "size": (4.5 * 2 ** (np.arange(8) / 2), (6.0, 11.0, 3.0, 20.0)),
}


def test_functions_are_those_of_their_sources():
    curves = {name: function.curve for name, function in fits.FUNCTIONS.items()}

    def bump(degrees, centre, concentration, period):
        turn = math.radians((degrees - centre) * 360 / period)
        return math.exp(concentration * (math.cos(turn) - 1))

    for x in (0.04, 0.3, 0.9):
        here, there = bump(100 * x, 70, 2.5, 360), bump(100 * x, 250, 2.5, 360)
        assert curves["direction"](100 * x, 0.2, 3, 1.1, 70, 2.5) == pytest.approx(
            0.2 + 3 * here + 1.1 * there
        )
        orientation = 0.2 + 3 * bump(100 * x, 70, 2.5, 180)
        assert curves["orientation"](100 * x, 0.2, 3, 70, 2.5) == pytest.approx(orientation)
        gaussian = 0.1 + 2 * math.exp(-((math.log2(x) - math.log2(0.2)) ** 2) / (2 * 0.8**2))
        for name in ("spatial_frequency", "temporal_frequency"):
            assert curves[name](x, 0.1, 2, 0.2, 0.8) == pytest.approx(gaussian)
        saturating = 4 * x**2.2 / (x**2.2 + 0.3**2.2)
        assert curves["contrast"](x, 4, 0.3, 2.2) == pytest.approx(saturating)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_parameters_of_noiseless_curves_are_found(name, scale):
    pytest.importorskip("scipy")
    x, parameters = CURVES[name]
    function = fits.FUNCTIONS[name]
    y = scale * function.curve(x, *parameters)
    found = fits.fit(function, x, y)
    assert found.r2 > 0.9999
    assert found(x) == pytest.approx(y, rel=0.02, abs=0.01 * y.max())
    named = dict(zip(function.names, parameters, strict=True))
    for key in ("preferred", "concentration", "octaves", "c50", "exponent"):
        if key in named:
            assert found.parameters[key] == pytest.approx(named[key], rel=0.05), key
    if name == "contrast":
        assert found.parameters["amplitude"] == pytest.approx(scale * 4, rel=0.05)


def test_the_size_function_is_the_difference_of_integrals():
    pytest.importorskip("scipy")
    excitation, centre, inhibition, extra = 6.0, 11.0, 3.0, 20.0
    for size in (3.0, 12.0, 50.0):
        y = np.linspace(-size / 2, size / 2, 20001)
        # Gaussians whose integrals over the whole axis are the two weights.
        gains = [
            w * 2 / (s * math.sqrt(math.pi))
            for w, s in ((excitation, centre), (inhibition, centre + extra))
        ]
        slow = sum(
            sign * np.trapezoid(gain * np.exp(-((2 * y / width) ** 2)), y)
            for sign, gain, width in ((1, gains[0], centre), (-1, gains[1], centre + extra))
        )
        fast = fits.FUNCTIONS["size"].curve(np.array([size]), excitation, centre, inhibition, extra)
        assert fast[0] == pytest.approx(slow, rel=1e-6)


def test_r2_is_the_share_of_explained_variance_and_flat_curves_have_no_fit():
    pytest.importorskip("scipy")
    x, parameters = CURVES["contrast"]
    function = fits.FUNCTIONS["contrast"]
    y = function.curve(x, *parameters) + np.random.default_rng(0).normal(0, 0.3, len(x))
    found = fits.fit(function, x, y)
    error = ((found(x) - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert found.r2 == pytest.approx(1 - error, abs=1e-9)
    assert fits.fit(function, x, np.zeros(7)) is None
    assert fits.fit(function, x, -y) is None
    assert fits.fit(function, x, np.full(7, 2.0)) is None
