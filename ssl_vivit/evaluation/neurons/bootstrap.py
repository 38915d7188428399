"""Confidence intervals from bootstraps of few units: test movies, neurons or sessions.

An interval is the estimate ± Student's t times the standard deviation over resamples. For n
independent units t has n − 1 degrees of freedom, and the variance is scaled by n / (n − 1) (Efron &
Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 12). Percentile intervals are
biased and too narrow with few units, since a resample contains fewer distinct movies. In
simulations (12 neurons, 4 to 20 movies) the true score was measured on many movies. These 95 %
intervals contained it in 77 to 97 % of cases, and percentile intervals in 15 to 90 %.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.randomness import named_generator

Interval = tuple[float, float]


def movie_counts(
    movies: int, resamples: int, seed: int, *names: str
) -> Float[Tensor, "resamples movies"] | None:
    """Draw how often each movie occurs in each resample.

    Args:
        movies: number of movies. Each resample draws this number of movies with replacement.
        resamples: number of resamples.
        seed: seed of the draws, combined with ``names``.
        names: name of the session and name of the tier.

    Returns:
        Counts (resamples, movies); None if ``movies`` or ``resamples`` is below 2.
    """
    if movies < 2 or resamples < 2:
        return None
    draw = named_generator(seed, *names, "movies")
    counts = draw.multinomial(movies, np.full(movies, 1 / movies), resamples)
    return torch.from_numpy(counts).double()


def resampled_means(
    values: Float[np.ndarray, " n"], shape: tuple[int, int], draw: np.random.Generator
) -> Float[np.ndarray, "resamples times"]:
    """Return means of bootstrap resamples; each resample is n values drawn with replacement.

    Args:
        values: values of the n neurons.
        shape: shape of the result; a new resample is drawn for each of its elements.
        draw: random generator.
    """
    size = (shape[1], len(values))
    rows = [values[draw.integers(len(values), size=size)].mean(1) for _ in range(shape[0])]
    return np.stack(rows)


def interval(
    estimate: float, resampled: Float[np.ndarray, " resamples"], units: int
) -> Interval | None:
    """Return the 95 % confidence interval of an estimate.

    Args:
        estimate: estimate from all units.
        resampled: estimates from resampled units; NaN if undefined.
        units: number of units.

    Returns:
        Lower and upper end. None for fewer than two units, for an undefined estimate, and if more
        than a tenth of the resampled estimates are undefined.
    """
    finite = resampled[np.isfinite(resampled)]
    if units < 2 or len(finite) < max(2, 0.9 * len(resampled)) or not math.isfinite(estimate):
        return None
    error = float(finite.std()) * math.sqrt(units / (units - 1))
    reach = student_t(units - 1) * error
    return estimate - reach, estimate + reach


def student_t(degrees: int, probability: float = 0.975) -> float:
    """Return a quantile of Student's t distribution.

    It is computed by numerical integration over θ, where t = √degrees · tan θ. The density of θ is
    proportional to cos(θ) ** (degrees − 1).

    Args:
        degrees: degrees of freedom.
        probability: probability of a smaller value; must be above 0.5.
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(degrees) * math.tan(np.interp(2 * probability - 1, mass / mass[-1], angles))
