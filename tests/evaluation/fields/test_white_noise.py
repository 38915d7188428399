"""White noise, and its correlation with rates of units with known filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.fields.white_noise import WhiteNoise, at_peak, reverse_correlation

SIZE, LAGS = (12, 20), 5
NOISE = WhiteNoise(SIZE, check=2, grey=100.0, contrast=0.5)


def kernel() -> torch.Tensor:
    """Return a kernel (lags, rows, columns) that is strongest at lag 2, row 1 and column 6."""
    y, x = torch.arange(6)[:, None] - 1.0, torch.arange(10)[None] - 6.0
    image = torch.exp(-(x**2 + y**2) / 4) * torch.cos(0.7 * x)
    return torch.tensor([0.1, 0.4, 1.0, 0.3, 0.0])[:, None, None] * image


def rates(videos):
    """Return rates of a linear unit, an energy unit and a constant unit, for squares of 2×2 pixels."""
    contrast = (videos[:, :, ::2, ::2] - 100.0) / 50.0
    padded = torch.nn.functional.pad(contrast, (0, 0, 0, 0, LAGS - 1, 0)).unfold(1, LAGS, 1)
    drive = torch.einsum("bthwl,lhw->bt", padded.flip(-1), kernel())
    noise = torch.rand(drive.shape, generator=torch.Generator().manual_seed(1))
    return torch.stack([2 + drive, drive.square(), noise], 2)


@pytest.fixture(scope="module")
def found():
    return reverse_correlation(rates, NOISE, [0, 1, 2], lags=LAGS, frames=12000, clip=60)


def test_squares_have_three_levels_and_names_decide_them():
    draws = NOISE.draws(3, 300)
    assert draws.shape == (300, 6, 10)
    assert np.unique(draws).tolist() == [-1, 0, 1]
    assert (draws.astype(float) ** 2).mean() == pytest.approx(2 / 3, abs=0.02)
    assert np.array_equal(draws[:50], NOISE.draws(3, 50))
    assert not np.array_equal(draws[:50], NOISE.draws(4, 50))
    pixels = NOISE.pixels(draws)
    assert pixels.shape == (300, *SIZE)
    assert pixels.unique().tolist() == [50, 100, 150]
    assert (pixels[7, 4:6, 6:8] == 100 + 50 * int(draws[7, 2, 3])).all()
    held = WhiteNoise(SIZE, check=5, hold=3).draws(0, 7)
    assert held.shape == (7, 3, 4)
    assert (held[0] == held[2]).all()
    assert (held[2] != held[3]).any()


def test_the_filter_of_a_linear_unit_is_found(found):
    true = kernel().numpy()
    assert np.corrcoef(found.linear[0].ravel(), true.ravel())[0, 1] > 0.95
    assert found.is_linear.tolist()[:2] == [True, False]
    assert found.significant.tolist() == [True, True, False]
    course = found.kernels[0] / np.abs(found.kernels[0]).max()
    assert course == pytest.approx([0.1, 0.4, 1.0, 0.3, 0.0], abs=0.12)
    assert np.isnan(found.kernels[2]).all()


def test_correlations_are_those_of_a_loop():
    found = reverse_correlation(rates, NOISE, [1, 0], lags=3, frames=120, clip=40, batch_size=2)
    means, shown = [], []
    for clip in range(3):
        draws = NOISE.draws(clip, 40)
        own = rates(NOISE.pixels(draws)[None])[0, :, 0].double().numpy()
        for t in range(3, 37):
            means.append(own[t])
            shown.append([draws[t - lag].astype(float) for lag in range(-3, 3)])
    means, shown = np.array(means), np.array(shown)
    covariance = np.einsum("t,tlhw->lhw", means - means.mean(), shown) / len(means)
    # Index 0 to 2: later frames.
    chance = np.sqrt((covariance[:3] ** 2).mean())
    assert found.linear[1] == pytest.approx(covariance[3:] / chance, abs=1e-5)
    largest = np.abs(covariance[:3]).max() / chance
    assert found.threshold[1, 0] == pytest.approx(max(5.0, largest))


def test_fields_of_linear_and_of_energy_units_are_where_they_look(found):
    ellipses = found.ellipses(NOISE)
    expected = [2 * 13 / 20 - 1, 2 * 3 / 12 - 1]
    for unit in (0, 1):
        assert ellipses.centres[unit] == pytest.approx(expected, abs=0.1)
    assert np.isnan(ellipses.centres[2]).all()
    # The envelope exp(−x²/4) has a standard deviation of √2 squares; the cosine narrows it in x.
    assert ellipses.axes[0, 0] == pytest.approx(2 * 2**0.5, rel=0.2)
    assert ellipses.angles[0] == pytest.approx(90, abs=15)


def test_squares_may_be_wider_than_a_field():
    noise = WhiteNoise(SIZE, check=5, grey=100.0, contrast=0.5)
    found = reverse_correlation(
        lambda videos: (videos[:, :, 7, 12, None] - 100) / 50,
        noise,
        [0],
        lags=4,
        frames=3000,
        clip=60,
    )
    # Row 1 and column 2 of squares, whose centres are at 7.5 and 12.5 pixels.
    ellipses = found.ellipses(noise)
    assert ellipses.centres[0] == pytest.approx([2 * 12.5 / 20 - 1, 2 * 7.5 / 12 - 1], abs=0.02)
    assert 1 < ellipses.size[0] < 3


def test_chance_is_not_measured_in_frames_that_show_the_held_draw():
    held = WhiteNoise(SIZE, check=2, hold=3, grey=100.0, contrast=0.5)
    # Its rate follows the present frame, so correlations with the next two frames are no chance.
    found = reverse_correlation(
        lambda videos: (videos[:, :, 2, 2, None] - 100) / 50,
        held,
        [0],
        lags=6,
        frames=3000,
        clip=60,
    )
    assert np.abs(found.linear[0, 0]).max() > 10
    assert found.threshold[0, 0] == 5


def test_the_time_course_is_that_of_the_peak():
    maps, power = np.random.default_rng(0).normal(size=(2, 3, 4, 5)), np.zeros((2, 4, 5))
    power[0, 2, 3] = power[1, 0, 4] = 1
    assert np.array_equal(at_peak(maps, power), np.stack([maps[0, :, 2, 3], maps[1, :, 0, 4]]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check": 7}, "--check 7 must be from 1 to 6 pixels"),
        ({"hold": 0}, "--hold 0 must be at least 1 frame"),
        ({"contrast": 1.2}, "--contrast 1.2 must be above 0 and at most 1"),
    ],
)
def test_noise_that_cannot_be_shown_is_refused(settings, message):
    with pytest.raises(NeuralModelError, match=message):
        WhiteNoise(SIZE, **settings)


def test_clips_shorter_than_the_lags_are_refused():
    with pytest.raises(ValueError, match="clip 10 must be above twice lags 5"):
        reverse_correlation(rates, NOISE, [0], lags=5, clip=10)
