"""Intervals of scores; intervals of correlations are limited to [-1, 1]."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl_vivit.evaluation.neurons.bootstrap import interval
from ssl_vivit.evaluation.neurons.evaluation import interval_text, intervals


def test_intervals_of_correlations_end_at_the_ends_of_their_range():
    values = {
        "correlation_a": 0.4,
        "cc_norm_a": 1.2,
        "oracle_a": -0.9,
        "bps_a": 0.4,
        "bps_mean": 0.4,
    }
    drawn = np.array([-0.5, 0.5] * 50)
    scores = SimpleNamespace(
        compute=lambda units: values,
        resampled=lambda draws, units: {name: value + drawn for name, value in values.items()},
    )
    found = intervals(scores, {"a": torch.ones(100, 2)}, "trained")
    low, high = interval(0.4, 0.4 + drawn, 2)
    assert low < -1
    assert high > 1
    assert found["bps_a"] == found["bps_mean"] == pytest.approx((low, high))
    assert found["correlation_a"] == found["oracle_a"] == (-1.0, 1.0)
    # By chance CC_norm exceeds 1, and its interval holds it.
    assert found["cc_norm_a"] == (-1.0, 1.2)


@pytest.mark.parametrize(("movies", "mark"), [(2, " (2 movies)"), (4, " (4 movies)"), (5, "")])
def test_an_interval_over_few_movies_is_marked(movies, mark):
    assert interval_text((-0.5, 0.25), movies, "movies") == f"-0.500 to 0.250{mark}"
    assert interval_text(None, movies, "movies") == "–"
