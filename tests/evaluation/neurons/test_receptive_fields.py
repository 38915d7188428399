"""Receptive fields from gradients, for units with known filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vivit.evaluation.neurons.receptive_fields import (
    centres_of,
    position_correlation,
    receptive_fields,
    share_near,
)

H, W, LAGS = 12, 20, 5
CENTRES = torch.tensor([[-0.5, 0.3], [0.4, -0.4]])  # (x, y)


def gabor(centre: Tensor, phase: float) -> Tensor:
    """Return a filter (lags, H, W) that is strongest at lag 2."""
    y = ((2 * torch.arange(H) + 1) / H - 1)[:, None] - centre[1]
    x = ((2 * torch.arange(W) + 1) / W - 1)[None] - centre[0]
    image = torch.exp(-((x * 3) ** 2 + (y * 2) ** 2)) * torch.cos(7 * x + phase)
    return torch.tensor([0.0, 0.3, 1.0, 0.4, 0.1])[:, None, None] * image


def drive(video: Tensor, kernel: Tensor) -> Tensor:
    padded = F.pad(video[:, 0], (0, 0, 0, 0, LAGS - 1, 0)).unfold(1, LAGS, 1)
    return torch.einsum("bthwl,lhw->bt", padded, kernel)


def rates(video: Tensor) -> Tensor:
    """Return rates of a linear-nonlinear unit, and of an energy unit without gradient at a blank screen."""
    simple = F.softplus(drive(video, gabor(CENTRES[0], 0.4)))
    energy = sum(drive(video, gabor(CENTRES[1], phase)).square() for phase in (0.0, np.pi / 2))
    return torch.stack([simple, energy], 2)


@pytest.fixture
def videos() -> Tensor:
    return torch.randn(24, 1, 9, H, W, generator=torch.Generator().manual_seed(0))


def test_the_filter_of_a_linear_nonlinear_unit_is_found_with_its_sign(videos):
    found = receptive_fields(rates, videos, [0], lags=LAGS, batch_size=7)
    true = gabor(CENTRES[0], 0.4)
    # Every gradient is the filter times the slope of the nonlinearity.
    assert torch.corrcoef(torch.stack([found.filters[0].flatten(), true.flatten()]))[0, 1] > 0.99999
    slope = torch.sigmoid(drive(videos, true)[:, -1])
    scale = slope.square().mean().sqrt()
    torch.testing.assert_close(found.filters[0], true * scale, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found.energy[0], (true * scale).square().sum(0), rtol=1e-4, atol=1e-9
    )


def test_an_energy_unit_is_found_where_it_looks(videos):
    found = receptive_fields(rates, videos, [1, 0], lags=LAGS)
    torch.testing.assert_close(found.centres, CENTRES[[1, 0]], atol=0.05, rtol=0)
    # What is found lies in the plane of the two phases.
    basis = torch.stack([gabor(CENTRES[1], phase).flatten() for phase in (0.0, np.pi / 2)])
    q, _ = torch.linalg.qr(basis.T)
    direction = F.normalize(found.filters[0].flatten(), dim=0)
    assert (q.T @ direction).norm() > 0.9999
    blank = receptive_fields(rates, torch.zeros(2, 1, 9, H, W), [1], lags=LAGS)
    assert not blank.energy.any()
    assert blank.centres.isnan().all()


def test_neurons_do_not_depend_on_who_else_is_asked_for_or_on_batches(videos):
    both = receptive_fields(rates, videos, [0, 1], lags=LAGS, batch_size=5)
    alone = receptive_fields(rates, videos, [1], lags=LAGS, batch_size=24)
    torch.testing.assert_close(both.energy[1], alone.energy[0])


def test_centres_are_at_the_middles_of_pixels_and_faint_pixels_do_not_count():
    energy = torch.full((1, H, W), 0.1)
    energy[0, 3, 15] = 1.0
    expected = torch.tensor([[31 / W - 1, 7 / H - 1]])
    torch.testing.assert_close(centres_of(energy), expected)


def test_position_correlation_is_numpys_and_leaves_out_what_is_unknown():
    rng = np.random.default_rng(1)
    true = rng.normal(size=(30, 2))
    found = true @ np.array([[1.0, 0.2], [0.0, 0.5]]) + rng.normal(size=(30, 2))
    found[4] = np.nan
    known = np.arange(30) != 4
    expected = [np.corrcoef(true[known, i], found[known, i])[0, 1] for i in (0, 1)]
    assert position_correlation(found, true) == pytest.approx(expected)
    assert np.isnan(position_correlation(np.zeros((30, 2)), true)).all()


def test_short_clips_are_refused(videos):
    with pytest.raises(ValueError, match="shorter than lags 12; set lags to at most 9"):
        receptive_fields(rates, videos, [0])


def test_share_near_counts_recorded_pixels():
    true = np.zeros((4, 2))
    # 3.9 pixels to the right, 4.1 down, (3, 3) away, unknown.
    found = np.array([[3.9 / 32, 0], [0, 4.1 / 18], [3 / 32, 3 / 18], [np.nan, 0]])
    assert share_near(found, true, (36, 64)) == 0.25
    assert share_near(found[:3], true[:3], (72, 128)) == 0.0
