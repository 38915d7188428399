"""Curves over movies with controls; measured tuning, compared with parameters of simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.population import Filters, causal, draw_population
from ssl_vivit.evaluation.tuning.recorded import compare_curves, correlation
from ssl_vivit.evaluation.tuning.truth import (
    agreement,
    angular_correlation,
    angular_difference,
    true_tuning,
)


def recording(units=40, movies=8, trials=6, noise=0.5, seed=0):
    draw = np.random.default_rng(seed)
    true = draw.normal(size=(units, movies))
    recorded = [true[:, [k]].T + noise * draw.normal(size=(trials, units)) for k in range(movies)]
    return true, recorded


def test_correlations_are_numpys():
    true, recorded = recording()
    found = compare_curves(true, recorded, true + 1.0, shuffles=3)
    for unit in (0, 17):
        curve = [trials[:, unit].mean() for trials in recorded]
        assert found.model[unit] == pytest.approx(np.corrcoef(true[unit], curve)[0, 1])
    assert found.training == pytest.approx(found.model)
    flat = np.stack([np.ones(4), np.arange(4.0)])
    assert np.isnan(correlation(flat, flat)[0])


def test_halves_of_trials_correlate_as_expected_from_their_noise():
    true, recorded = recording(units=400, noise=1.0, trials=8)
    found = compare_curves(true, recorded, shuffles=40)
    # Signal variance 1, noise variance 1 / 4 in the mean of four trials.
    assert found.reliability.mean() == pytest.approx(1 / 1.25, abs=0.04)
    assert np.isnan(found.training).all()


def test_controls_keep_what_units_share_and_nothing_else():
    draw = np.random.default_rng(1)
    shared = 2.0 * draw.normal(size=8)
    own, recorded = recording(units=60, noise=0.1)
    predicted = own + shared
    recorded = [trials + shared[k] for k, trials in enumerate(recorded)]
    found = compare_curves(predicted, recorded, shuffles=200)
    assert found.model.mean() > 0.99
    # Shared variance 4 of 5 in each curve, about.
    assert 0.5 < found.other_units.mean() < 0.9
    assert found.other_units.std() < 0.05
    # All units move alike, so this control spreads widely about 0.
    assert abs(found.other_movies.mean()) < 0.1
    told = found.to_json()
    assert told["units"] == 60
    assert told["other_units"]["range"][1] < told["model"]["mean"]


def test_one_trial_or_one_unit_leave_out_what_cannot_be_known():
    true, recorded = recording(units=1, trials=1)
    found = compare_curves(true, recorded, shuffles=5)
    assert np.isfinite(found.model).all()
    assert np.isnan(found.reliability).all()
    assert "other_units" not in found.to_json()
    recorded[2][:] = np.nan
    assert np.isnan(compare_curves(true, recorded, shuffles=2).model).all()


def test_seeds_decide_the_shuffles():
    true, recorded = recording()
    one, two = (compare_curves(true, recorded, shuffles=5, seed=s).other_units for s in (0, 1))
    assert np.array_equal(one, compare_curves(true, recorded, shuffles=5, seed=0).other_units)
    assert not np.array_equal(one, two)


def test_angular_correlation_is_that_of_all_pairs():
    draw = np.random.default_rng(2)
    one = draw.uniform(0, 180, 30)
    two = (one + draw.normal(0, 20, 30)) % 180
    above = one_square = two_square = 0.0
    for i in range(30):
        for j in range(i):
            a, b = (math.sin(math.radians(2 * (each[i] - each[j]))) for each in (one, two))
            above, one_square, two_square = above + a * b, one_square + a * a, two_square + b * b
    expected = above / math.sqrt(one_square * two_square)
    assert angular_correlation(one, two, period=180) == pytest.approx(expected)
    # Neither turning all angles nor a pair that is not known changes it.
    moved = np.append((two + 77) % 180, 5.0)
    assert angular_correlation(np.append(one, np.nan), moved, period=180) == pytest.approx(expected)
    assert angular_correlation(one, -one, period=180) == pytest.approx(-1)
    assert math.isnan(angular_correlation(one, np.zeros(30), period=180))
    assert angular_difference(
        np.array([1.0, 90.0]), np.array([179.0, 0.0]), period=180
    ).tolist() == [2, 90]


def truth_of(population, filters):
    return {name: each.numpy() for name, each in population.tensors().items()} | {
        "fast_kernel": filters.fast.numpy(), "slow_kernel": filters.slow.numpy(),
    }  # fmt: skip


def test_the_true_temporal_frequency_has_the_largest_drive():
    population = draw_population(12, (24, 40), 30.0, seed=3)
    filters = Filters(population)
    true = true_tuning(truth_of(population, filters), 30.0)
    t = torch.arange(120) / 30
    gains = []
    frequencies = np.arange(1.0, 8.0, 0.25)
    for frequency in frequencies:
        # A grating that drifts in the preferred direction, as the Gabor pair sees it.
        angle = 2 * math.pi * frequency * t[:, None]
        even, odd = torch.cos(angle).repeat(1, 12), torch.sin(angle).repeat(1, 12)
        drive = causal(even, filters.slow) + causal(odd, filters.fast)
        gains.append(drive[60:].square().mean(0).numpy())
    best = frequencies[np.array(gains).argmax(0)]
    assert np.abs(best - true.temporal_frequency).max() <= 0.25


def test_agreement_of_the_truth_with_itself_is_one():
    population = draw_population(30, (24, 40), 30.0, seed=3)
    true = true_tuning(truth_of(population, Filters(population)), 30.0)
    table = {
        "vector_direction": true.direction, "preferred_orientation": (true.direction + 5) % 180,
        "best_spatial_frequency": 2 * true.spatial_frequency,
        "best_temporal_frequency": true.temporal_frequency, "dsi": true.selectivity,
    }  # fmt: skip
    found = agreement(table, true)
    assert all(each["correlation"] == pytest.approx(1) for each in found.values())
    assert found["orientation"]["median_difference"] == pytest.approx(5)
    assert found["direction"]["units"] == (true.selectivity >= 0.5).sum() < 30
    assert "suppression_index" not in found
