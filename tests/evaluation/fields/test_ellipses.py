"""Ellipses of maps with known moments, with and without noise."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.synthetic_neural.population import draw_population, spatial_filters
from ssl_vivit.evaluation.fields.agreement import compare, kernel_correlation, true_ellipses
from ssl_vivit.evaluation.fields.ellipses import Ellipses, ellipses_of

SIZE = (36, 64)


def gaussian(centre, covariance, size=SIZE):
    """Return a Gaussian filter; the centre is in pixels from the frame's corner."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    offset = np.stack([x - centre[0], y - centre[1]], -1)
    return np.exp(-0.5 * np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(covariance), offset))


COVARIANCE = np.array([[16.0, 4.0], [4.0, 6.0]])


@pytest.mark.parametrize("centre", [(20.0, 14.5), (50.3, 25.2)])
def test_a_gaussian_filter_has_its_own_ellipse(centre):
    found = ellipses_of(7.0 * gaussian(centre, COVARIANCE)[None] ** 2)
    expected = 2 * np.array(centre) / np.array(SIZE[::-1]) - 1
    assert found.centres[0] == pytest.approx(expected, abs=1e-3)
    assert found.covariances[0] == pytest.approx(COVARIANCE, rel=0.01)
    values, vectors = np.linalg.eigh(COVARIANCE)
    assert found.axes[0] == pytest.approx(np.sqrt(values[::-1]), rel=0.01)
    angle = np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180
    assert found.angles[0] == pytest.approx(angle, abs=0.5)
    assert found.size[0] == pytest.approx(np.linalg.det(COVARIANCE) ** 0.25, rel=0.01)


def test_noise_over_the_whole_frame_moves_ellipses_little():
    draw = np.random.default_rng(0)
    clean = gaussian((20.0, 14.5), COVARIANCE) ** 2
    noisy = np.stack([clean + 0.05 * draw.normal(size=SIZE) for _ in range(20)])
    found = ellipses_of(noisy)
    known = np.isfinite(found.centres).all(1)
    assert known.sum() >= 18
    pixels = (found.centres[known] + 1) / 2 * np.array(SIZE[::-1]) - [20.0, 14.5]
    assert np.linalg.norm(pixels, axis=1).max() < 1
    assert np.median(found.size[known]) == pytest.approx(np.linalg.det(COVARIANCE) ** 0.25, rel=0.1)


def test_maps_without_a_field_have_no_ellipse():
    draw = np.random.default_rng(1)
    maps = np.stack([np.zeros(SIZE), -np.ones(SIZE), np.full(SIZE, np.nan), np.ones(SIZE)])
    found = ellipses_of(maps)
    assert np.isnan(found.centres).all()
    assert np.isnan(found.axes).all()
    assert np.isnan(found.size).all()
    # A single pixel is as wide as a pixel.
    dot = np.zeros((1, *SIZE))
    dot[0, 5, 7] = 1.0
    assert ellipses_of(dot).axes[0] == pytest.approx([0.29 * 2**0.5] * 2, rel=0.01)
    assert len(ellipses_of(draw.normal(size=(3, *SIZE))).centres) == 3


def test_envelopes_of_gabor_functions_are_the_true_ones():
    population = draw_population(40, SIZE, 30.0, seed=1)
    even, odd, _ = spatial_filters(population)
    truth = {name: each.numpy() for name, each in population.tensors().items()}
    true = true_ellipses(truth)
    # The first axis of sigma is along the motion.
    along = np.stack([np.cos(truth["direction"]), np.sin(truth["direction"])], 1)
    variance = np.einsum("ni,nij,nj->n", along, true.covariances, along)
    assert variance == pytest.approx(truth["sigma"][:, 0] ** 2, rel=1e-4)
    pair = ellipses_of((even.square() + odd.square()).double().numpy())
    one = ellipses_of(even.square().double().numpy())
    found = compare({"pair": pair, "one": one, "truth": true}, SIZE)
    assert found["pair, truth"]["units"] == 40
    assert found["pair, truth"]["size"] > 0.95
    assert found["pair, truth"]["distance"] < 0.1
    assert found["one, truth"]["x"] > 0.999
    assert np.median(pair.size / true.size) == pytest.approx(1, abs=0.05)


def test_comparisons_leave_out_units_that_one_method_does_not_know():
    draw = np.random.default_rng(2)
    centres = draw.uniform(-0.5, 0.5, (6, 2))
    one = Ellipses(centres, np.tile(np.eye(2), (6, 1, 1)))
    moved = centres + np.array([2 * 3 / 64, 2 * 4 / 36])
    other = Ellipses(moved, 4 * one.covariances).masked(np.arange(6) != 2)
    found = compare({"a": one, "b": other}, SIZE)["a, b"]
    assert found["units"] == 5
    assert found["distance"] == pytest.approx(5)
    assert found["near"] == 0
    assert found["x"] == pytest.approx(1)
    assert np.isnan(found["size"])  # sizes that do not vary
    assert other.size[0] == pytest.approx(2)


def test_kernels_are_compared_with_the_nearest_sum_of_the_true_ones():
    draw = np.random.default_rng(3)
    fast, slow = draw.normal(size=(2, 4, 15))
    kernels = 0.3 * fast - 2.0 * slow
    kernels[1] += 0.5 * draw.normal(size=15)
    kernels[2] = np.nan
    kernels[3] = 0
    found = kernel_correlation(kernels, fast, slow)
    assert found[0] == pytest.approx(1)
    best, *_ = np.linalg.lstsq(np.stack([fast[1], slow[1]], 1), kernels[1], rcond=None)
    nearest = best[0] * fast[1] + best[1] * slow[1]
    cosine = nearest @ kernels[1] / np.linalg.norm(nearest) / np.linalg.norm(kernels[1])
    assert found[1] == pytest.approx(cosine)
    assert np.isnan(found[2:]).all()
