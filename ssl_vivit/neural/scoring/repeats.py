"""Scores of neurons from repeats of movies: oracle, explainable variance, normalised correlation.

FEVE and CC_norm score the signal: the part of the responses that all repeats of a movie have in
common. What differs between repeats counts as noise. That is spiking noise, and also the modulation
by behaviour, if the animal behaves independently in each repeat. A model that reads behaviour
predicts some of the modulation, so its predictions differ between repeats as well. They are treated
as the responses are: mean products of two different repeats replace squares, so that modulation
shared by a response and its own prediction counts for nothing. The true rates then score 1 in
expectation, with and without modulation by behaviour. Ratios of estimates are biased where there is
little signal and few bins. Among neurons chosen by a least explainable variance the bias is towards
smaller scores, since noise that lets a neuron pass counts as signal that no model predicts.

For a model that predicts the same response to all repeats, both scores are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.neural.scoring.metrics import PairedMoments, above_rounding, correlation, varying


@dataclass(frozen=True)
class Repeats:
    """Responses to the repeats of one movie and predictions of them, as sums that merge.

    Attributes:
        moments: over repeats, (bins, neurons).
        trial_variance: variance over the known bins of a trial of responses and of rates, and
            their covariance, each summed over trials (3, neurons).
    """

    moments: PairedMoments
    trial_variance: Tensor

    @classmethod
    def of(
        cls,
        responses: Float[Tensor, "repeats bins neurons"],
        rates: Float[Tensor, "repeats bins neurons"],
    ) -> Repeats:
        """Measure whole trials; NaN responses are unknown, and rates may differ between repeats."""
        responses, rates = responses.double(), rates.double()
        known = ~responses.isnan()
        bins = known.sum(1, keepdim=True).clamp(min=1)
        filled = torch.stack((responses, rates)).masked_fill(~known, 0)
        within = (filled - filled.sum(2, keepdim=True) / bins).masked_fill(~known, 0)
        trial_variance = (PairedMoments.squared(within).sum(2) / bins[:, 0]).sum(1)
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
        absolute: correlation of the mean prediction with the mean response of the repeats.
        maximum: what a perfect model of the signal would reach, given the noise left in that mean.
        normalised: correlation of the signals of prediction and response. It is ``absolute`` by
            ``maximum`` where predictions are the same for all repeats.
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
        counts: how many times each movie counts, (..., movies); scores are then (..., neurons).
            None counts each once.
    """

    def __init__(
        self, movies: Sequence[Repeats], counts: Float[Tensor, "... movies"] | None = None
    ) -> None:
        self.movies = movies
        self.counts = torch.ones(len(movies), dtype=torch.float64) if counts is None else counts
        moments = [movie.moments for movie in movies]
        count = torch.cat([each.count for each in moments])
        self.used = count > 1
        self.count = count.masked_fill(~self.used, 0)
        self.bins = self._sum(self.used.double())
        self.entries = self._sum(self.count)
        means = torch.cat([each.mean for each in moments], dim=1)
        squares = torch.cat([each.deviation for each in moments], dim=1)
        self.deviation, of_rates, products = squares
        self.residual_deviation = self.deviation + of_rates - 2 * products
        # Squared errors, summed over repeats.
        self.error = self.residual_deviation + count * (means[0] - means[1]).square()
        # Variances do not depend on the origin; far from it, squares would lose digits.
        known = means.masked_fill(~self.used, 0).sum(1, keepdim=True)
        self.mean, self.predicted = means - known / self.used.sum(0).clamp(min=1)
        self.origin = known[:, 0] / self.used.sum(0).clamp(min=1)

    def oracle(self) -> Float[Tensor, " neurons"]:
        """Correlation of each response with the mean of the other repeats (jackknife)."""
        number, others = self.count, (self.count - 1).clamp(min=1)
        total = self.mean * number
        squares = self.deviation + total.square() / number.clamp(min=1)
        left_out = ((number - 2) * total.square() + squares) / others.square()
        product = (total.square() - squares) / others
        mean = self._sum(total) / self.entries
        both = self._sum(product) / self.entries - mean.square()
        first = self._sum(squares) / self.entries - mean.square()
        second = self._sum(left_out) / self.entries - mean.square()
        product = above_rounding(first, mean) * above_rounding(second, mean)
        return (both / product.sqrt()).masked_fill(product <= 0, torch.nan)

    def explainable_variance(self) -> Float[Tensor, " neurons"]:
        """Share of the variance of single responses that repeats have in common (FEV)."""
        total = self._total_variance()
        return (total - self._noise_variance()) / total

    def explained(self) -> Float[Tensor, " neurons"]:
        """Share of the explainable variance that is explained (FEVE; Cadena et al. 2019).

        Cadena et al. subtract the responses' variance over repeats from the squared error as well
        as from the total variance. Here the squared error is reduced by the residuals' own variance
        over repeats, which is the same number if predictions do not differ between repeats. If
        they do, for behaviour, the residuals vary less than the responses, and the true rates would
        score above 1. The numerator, mean squared error less mean variance of the residuals, is the
        mean product of the residuals of two different repeats, where all movies have as many: 0 in
        expectation for the true rates (the power of a signal; Sahani & Linden 2003, NIPS 15).
        """
        error = self._sum(self.error) / self.entries
        unexplained = error - self._over_repeats(self.residual_deviation)
        return 1 - unexplained / (self._total_variance() - self._noise_variance())

    def correlation_to_average(self) -> Float[Tensor, " neurons"]:
        """Correlation over bins of the mean response and the mean prediction of the repeats."""
        means = torch.stack((self.mean, self.predicted))
        mean = self._over_bins(means)
        apart = self._over_bins(PairedMoments.squared(means)) - PairedMoments.squared(mean)
        variances = (above_rounding(apart[i], mean[i]) for i in range(2))
        first, second = (varying(each, self.origin[i]) for i, each in enumerate(variances))
        return correlation(first, second, apart[2])

    def normalised_correlation(self) -> NormalisedCorrelation:
        """CC_abs, CC_max and CC_norm; variances within movies, averaged over their bins.

        A movie does not count for a neuron that has more known repeats in some of its bins than in
        others. With one movie, and predictions that are the same for all repeats, these are the
        paper's equations.
        """
        powers = [_powers(movie) for movie in self.movies]
        bins = torch.stack([each.bins for each in powers])

        def pooled(parts: list[Tensor]) -> Tensor:
            return self.counts @ (torch.stack(parts, 1) * bins) / (self.counts @ bins)

        of_means = pooled([each.of_means for each in powers])
        signal, predicted, shared = pooled([each.of_signals for each in powers])
        signal = torch.where(signal > 0, signal, torch.nan)
        return NormalisedCorrelation(
            correlation(*of_means),
            (signal / of_means[0]).sqrt(),
            correlation(signal, predicted, shared),
        )

    def _sum(self, values: Float[Tensor, "*dims bins neurons"]) -> Tensor:
        """Sum over the bins of all movies, (*dims, ..., neurons)."""
        lengths = [len(movie.moments.count) for movie in self.movies]
        parts = values.masked_fill(~self.used, 0).split(lengths, dim=-2)
        return self.counts @ torch.stack([part.sum(-2) for part in parts], -2)

    def _over_bins(self, values: Tensor) -> Tensor:
        return self._sum(values) / self.bins

    def _over_repeats(self, deviation: Tensor) -> Tensor:
        """Variance over repeats, averaged over bins."""
        return self._over_bins(deviation / (self.count - 1).clamp(min=1))

    def _noise_variance(self) -> Tensor:
        return self._over_repeats(self.deviation)

    def _total_variance(self) -> Tensor:
        total = self._sum(self.mean * self.count)
        between = self._sum(self.mean.square() * self.count) - total.square() / self.entries
        variance = (self._sum(self.deviation) + between) / (self.entries - 1)
        return above_rounding(variance, total / self.entries)


class _Powers(NamedTuple):
    """Variances over the bins of a movie: of responses and of predictions, and their covariance.

    Attributes:
        bins: that count (neurons).
        of_means: of means over repeats (3, neurons).
        of_signals: of what repeats have in common (3, neurons).
    """

    bins: Tensor
    of_means: Tensor
    of_signals: Tensor


def _powers(movie: Repeats) -> _Powers:
    count, means = movie.moments.count, movie.moments.mean
    seen = count > 0
    bins = seen.sum(0).double()
    repeats = count.amax(0)
    even = ((count == repeats) | ~seen).all(0) & (repeats > 1)
    bins = bins.masked_fill(~even, 0)

    def over_bins(values: Tensor) -> Tensor:
        return values.masked_fill(~seen, 0).sum(-2) / bins.clamp(min=1)

    mean = over_bins(means)
    response, predicted, shared = over_bins(PairedMoments.squared(means - mean[:, None]))
    of_means = torch.stack((varying(response, mean[0]), varying(predicted, mean[1]), shared))
    pairs = (repeats * (repeats - 1)).clamp(min=1)
    # The mean covariance of two different repeats (eq. 1 of Schoppe et al. 2016).
    of_signals = (repeats.square() * of_means - movie.trial_variance) / pairs
    return _Powers(bins, of_means, of_signals)
