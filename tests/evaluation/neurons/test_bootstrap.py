"""Bootstrap intervals, compared with tables of Student's t and textbook formulas."""

import math

import numpy as np
import pytest
import torch

from ssl_vivit.evaluation.neurons.bootstrap import (
    interval,
    movie_counts,
    resampled_means,
    student_t,
)


@pytest.mark.parametrize(
    ("degrees", "probability", "expected"),
    [
        (1, 0.975, 12.7062), (2, 0.975, 4.30265), (4, 0.95, 2.13185), (5, 0.975, 2.57058),
        (30, 0.975, 2.04227), (100_000, 0.975, 1.95999),
    ],
)  # fmt: skip
def test_quantiles_of_student_are_those_of_tables(degrees, probability, expected):
    assert student_t(degrees, probability) == pytest.approx(expected, rel=1e-4)


def test_the_interval_of_a_mean_is_students():
    values = np.random.default_rng(0).normal(3, 2, 7)
    counts = movie_counts(7, 10_000, 0, "a")
    assert counts.shape == (10_000, 7)
    assert (counts.sum(1) == 7).all()
    means = (counts @ torch.from_numpy(values) / 7).numpy()
    low, high = interval(values.mean(), means, 7)
    reach = 2.44691 * values.std(ddof=1) / math.sqrt(7)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.05)
    assert (high + low) / 2 == pytest.approx(values.mean())
    drawn = resampled_means(values, (10_000, 2), np.random.default_rng(1))
    assert drawn.std(0) == pytest.approx([values.std() / math.sqrt(7)] * 2, rel=0.05)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.04


def test_draws_depend_only_on_seed_and_names():
    one = movie_counts(5, 50, 0, "a", "live")
    assert one.equal(movie_counts(5, 50, 0, "a", "live"))
    others = [(1, "a", "live"), (0, "b", "live"), (0, "a", "oracle")]
    assert not any(one.equal(movie_counts(5, 50, *names)) for names in others)


def test_too_little_has_no_interval():
    assert movie_counts(1, 100, 0) is None
    assert movie_counts(4, 0, 0) is None
    known = np.linspace(0, 1, 100)
    assert interval(0.5, known, 1) is None
    assert interval(math.nan, known, 4) is None
    known[:11] = math.nan
    assert interval(0.5, known, 4) is None
    known[10] = math.inf
    known[0:10] = 0.5
    low, high = interval(0.5, known, 4)
    assert 0 > low > -2
    assert high < 3
