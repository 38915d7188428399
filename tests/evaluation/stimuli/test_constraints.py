"""Contrast and range of stimuli, compared with a bisection; smoothing, with a padded convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.stimuli.constraints import Constraints, smoothing
from ssl_vivit.evaluation.stimuli.references import random_stimuli

SHAPE = (5, 7, 9)


def heavy_tails(count: int) -> torch.Tensor:
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.standard_t(1.5, (count, *SHAPE)).astype(np.float32))


def by_bisection(deviations: np.ndarray, grey: float, contrast: float) -> np.ndarray:
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        cut = (middle * deviations).clip(-grey, 255 - grey)
        low, high = (middle, high) if np.sqrt(np.square(cut).mean()) < contrast else (low, middle)
    return (low * deviations).clip(-grey, 255 - grey)


@pytest.mark.parametrize(("grey", "contrast"), [(127.5, 10.0), (90.0, 60.0), (200.0, 50.0)])
def test_contrast_and_range_are_exact(grey, contrast):
    given = heavy_tails(4)
    found = Constraints(SHAPE, grey, contrast).projected(given)
    assert found.flatten(1).square().mean(1).sqrt().numpy() == pytest.approx(
        [contrast] * 4, rel=1e-6
    )
    pixels = found + grey
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    # Some pixels are cut off, so that a plain scaling does not do.
    if contrast > 10:
        assert ((pixels == 0) | (pixels == 255)).flatten(1).any(1).all()
    for one, other in zip(given.double().numpy(), found.numpy(), strict=True):
        assert other == pytest.approx(by_bisection(one, grey, contrast), rel=1e-4, abs=1e-4)


def test_a_stimulus_within_the_constraints_stays():
    constraints = Constraints(SHAPE, 127.5, 60.0)
    once = constraints.projected(heavy_tails(3))
    assert constraints.projected(once).numpy() == pytest.approx(once.numpy(), rel=1e-5)


def test_zeros_stay_zeros():
    assert not Constraints(SHAPE, 127.5, 20.0).projected(torch.zeros(2, *SHAPE)).any()


@pytest.mark.parametrize("contrast", [0.0, 55.0, 300.0])
def test_a_contrast_that_pixels_cannot_show_is_refused(contrast):
    with pytest.raises(NeuralModelError, match="must be above 0 and below 55; change --contrast"):
        Constraints(SHAPE, 200.0, contrast)


@pytest.mark.parametrize(("length", "sigma"), [(9, 1.0), (40, 2.5), (4, 3.0), (1, 1.0)])
def test_smoothing_is_a_gaussian_with_reflecting_ends(length, sigma):
    matrix = smoothing(length, sigma).double().numpy()
    assert matrix == pytest.approx(matrix.T, abs=1e-7)
    assert matrix.sum(1) == pytest.approx(np.ones(length), abs=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > -1e-6
    reach = 40
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    signal = np.random.default_rng(1).normal(size=length)
    padded = np.pad(signal, reach, mode="symmetric")
    assert matrix @ signal == pytest.approx(np.convolve(padded, kernel, "valid"), abs=1e-6)


def test_smoothing_acts_over_time_and_space():
    impulse = torch.zeros(1, *SHAPE)
    impulse[0, 2, 3, 4] = 1
    found = Constraints(SHAPE, 127.5, 20.0, blur=1.0, time_blur=0.5).smoothed(impulse)[0]
    expected = torch.einsum(
        "t,h,w->thw", smoothing(5, 0.5)[2], smoothing(7, 1.0)[3], smoothing(9, 1.0)[4]
    )
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-7)
    assert torch.equal(Constraints(SHAPE, 127.5, 20.0).smoothed(impulse), impulse)


def test_random_stimuli_repeat_and_keep_the_constraints():
    constraints = Constraints(SHAPE, 100.0, 30.0, blur=1.0)
    one, two = random_stimuli(constraints, 6, seed=3), random_stimuli(constraints, 6, seed=3)
    assert torch.equal(one, two)
    assert not torch.equal(one, random_stimuli(constraints, 6, seed=4))
    assert one.flatten(1).square().mean(1).sqrt().numpy() == pytest.approx([30.0] * 6, rel=1e-6)
