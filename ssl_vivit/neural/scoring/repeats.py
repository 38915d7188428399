"""Scores of neurons from repeats of movies: oracle, explainable variance, normalised correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.neural.scoring.metrics import PairedMoments, correlation, varying


@dataclass(frozen=True)
class Repeats:
    """Responses to the repeats of one movie and predictions of them, as sums that merge.

    Attributes:
        moments: over repeats, (bins, neurons).
        trial_variance: variance over the known bins of a trial, summed over trials (neurons).
    """

    moments: PairedMoments
    trial_variance: Tensor

    @classmethod
    def of(
        cls,
        responses: Float[Tensor, "repeats bins neurons"],
        rates: Float[Tensor, "repeats bins neurons"],
    ) -> Repeats:
        """Whole trials; NaN responses are unknown, and rates may differ between repeats."""
        responses, rates = responses.double(), rates.double()
        known = ~responses.isnan()
        bins = known.sum(1, keepdim=True).clamp(min=1)
        filled = responses.masked_fill(~known, 0)
        within = (filled - filled.sum(1, keepdim=True) / bins).masked_fill(~known, 0)
        trial_variance = (within.square().sum(1) / bins[:, 0]).sum(0)
        return cls(PairedMoments.of_pairs(responses, rates), trial_variance)

    def merged(self, other: Repeats) -> Repeats:
        """Both sets of trials; the shorter movie ends in unknown bins."""
        bins = max(len(self.moments.count), len(other.moments.count))
        moments = PairedMoments.merged(_padded(part.moments, bins) for part in (self, other))
        return Repeats(moments, self.trial_variance + other.trial_variance)


def _padded(moments: PairedMoments, bins: int) -> PairedMoments:
    missing = (0, 0, 0, bins - len(moments.count))
    parts = (moments.count, moments.mean, moments.deviation)
    return PairedMoments(*(F.pad(part, missing) for part in parts))


class NormalisedCorrelation(NamedTuple):
    """Schoppe et al. 2016 (Front. Comput. Neurosci. 10:10), each (neurons).

    Attributes:
        absolute: correlation of the prediction with the mean response of the repeats.
        maximum: what a perfect model would reach, given the noise left in that mean.
        normalised: the former by the latter.
    """

    absolute: Tensor
    maximum: Tensor
    normalised: Tensor


class RepeatScores:
    """Scores of neurons from the repeats of several movies.

    A bin of a movie counts for a neuron that has two known responses or more in it. Scores are NaN
    where they are not defined: no repeats, a neuron whose responses do not vary.

    Args:
        movies: moments of each.
    """

    def __init__(self, movies: Sequence[Repeats]) -> None:
        self.movies = movies
        moments = [movie.moments for movie in movies]
        count = torch.cat([each.count for each in moments])
        self.used = count > 1
        self.count = count.masked_fill(~self.used, 0)
        self.bins = self.used.sum(0).double()
        self.mean, self.predicted = torch.cat([each.mean for each in moments], dim=1)
        squares = torch.cat([each.deviation for each in moments], dim=1)
        self.deviation, of_rates, products = squares
        # Squared errors, summed over repeats.
        self.error = self.deviation + of_rates - 2 * products
        self.error = self.error + count * (self.mean - self.predicted).square()

    def oracle(self) -> Float[Tensor, " neurons"]:
        """Correlation of each response with the mean of the other repeats (jackknife)."""
        number, others = self.count, (self.count - 1).clamp(min=1)
        # Correlations do not depend on the origin; far from it, squares would lose digits.
        total = (self.mean - self._over_bins(self.mean)) * number
        squares = self.deviation + total.square() / number.clamp(min=1)
        entries = number.sum(0)
        left_out = ((number - 2) * total.square() + squares) / others.square()
        product = (total.square() - squares) / others
        mean = self._sum(total) / entries
        both = self._sum(product) / entries - mean.square()
        first = self._sum(squares) / entries - mean.square()
        second = self._sum(left_out) / entries - mean.square()
        return both / (first * second).sqrt()

    def explainable_variance(self) -> Float[Tensor, " neurons"]:
        """Share of the variance of single responses that repeats have in common (FEV)."""
        total = self._total_variance()
        return (total - self._noise_variance()) / total

    def explained(self) -> Float[Tensor, " neurons"]:
        """Share of the explainable variance that is explained (FEVE; Cadena et al. 2019)."""
        noise = self._noise_variance()
        error = self._sum(self.error) / self.count.sum(0)
        return 1 - (error - noise) / (self._total_variance() - noise)

    def correlation_to_average(self) -> Float[Tensor, " neurons"]:
        """Correlation over bins of the mean response and the mean prediction of the repeats."""
        mean, mean_rate = self._over_bins(self.mean), self._over_bins(self.predicted)
        response, predicted = self.mean - mean, self.predicted - mean_rate
        return correlation(
            varying(self._over_bins(response.square()), mean),
            varying(self._over_bins(predicted.square()), mean_rate),
            self._over_bins(response * predicted),
        )

    def normalised_correlation(self) -> NormalisedCorrelation:
        """CC_abs, CC_max and CC_norm; variances within movies, averaged over their bins.

        A movie does not count for a neuron that has more known repeats in some of its bins than in
        others. With one movie these are the paper's equations.
        """
        pooled = torch.stack([_powers(movie) for movie in self.movies])
        bins = pooled[:, :1]
        signal, response, predicted, shared = (pooled[:, 1:] * bins).sum(0) / bins.sum(0)
        signal = torch.where(signal > 0, signal, torch.nan)
        maximum = (signal / response).sqrt()
        absolute = correlation(response, predicted, shared)
        return NormalisedCorrelation(absolute, maximum, absolute / maximum)

    def _sum(self, values: Tensor) -> Tensor:
        return values.masked_fill(~self.used, 0).sum(0)

    def _over_bins(self, values: Tensor) -> Tensor:
        return self._sum(values) / self.bins

    def _noise_variance(self) -> Tensor:
        return self._over_bins(self.deviation / (self.count - 1).clamp(min=1))

    def _total_variance(self) -> Tensor:
        entries = self.count.sum(0)
        grand = self._sum(self.mean * self.count) / entries
        between = self._sum((self.mean - grand).square() * self.count)
        return (self._sum(self.deviation) + between) / (entries - 1)


def _powers(movie: Repeats) -> Tensor:
    """(bins, signal power, variances of mean response and prediction, covariance) × neurons."""
    count, (of_responses, of_rates) = movie.moments.count, movie.moments.mean
    seen = count > 0
    bins = seen.sum(0).double()
    repeats = count.amax(0)
    even = ((count == repeats) | ~seen).all(0) & (repeats > 1)
    bins = bins.masked_fill(~even, 0)

    def over_bins(values: Tensor) -> Tensor:
        return values.masked_fill(~seen, 0).sum(0) / bins.clamp(min=1)

    mean, mean_rate = over_bins(of_responses), over_bins(of_rates)
    response, predicted = of_responses - mean, of_rates - mean_rate
    variance = varying(over_bins(response.square()), mean)
    of_predicted = varying(over_bins(predicted.square()), mean_rate)
    shared = over_bins(response * predicted)
    pairs = (repeats * (repeats - 1)).clamp(min=1)
    signal = (repeats.square() * variance - movie.trial_variance) / pairs
    return torch.stack((bins, signal, variance, of_predicted, shared))
