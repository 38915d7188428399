"""Scores of neurons from repeats of movies: oracle, explainable variance, normalised correlation.

FEVE and CC_norm score the signal, which is the part of the responses that all repeats of a movie
have in common. Differences between repeats count as noise. They include spiking noise, and also
modulation by behaviour, if the animal behaves independently in each repeat.

A model that reads behaviour predicts part of this modulation, so its predictions differ between
repeats as well. Therefore mean products of two different repeats replace squares, for predictions
as for responses. Modulation shared by a response and its own prediction then has no effect. The
true rates score 1 in expectation, with and without modulation by behaviour. For a model that
predicts identical responses to all repeats, both scores equal the published ones.

Ratios of estimates are biased if there is little signal in few bins. For neurons chosen by a
minimum explainable variance the bias is downwards, since noise that raised a neuron above the
minimum counts as signal that no model can predict.
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
    """Moments of the responses to the repeats of one movie and of their predictions.

    Attributes:
        moments: moments over repeats, (bins, neurons).
        trial_variance: (3, neurons) variance of responses, variance of rates and their covariance.
            Each is taken over the known bins of a trial and summed over trials.
    """

    moments: PairedMoments
    trial_variance: Tensor

    @classmethod
    def of(
        cls,
        responses: Float[Tensor, "repeats bins neurons"],
        rates: Float[Tensor, "repeats bins neurons"],
    ) -> Repeats:
        """Compute the moments of whole trials; NaN responses are unknown."""
        responses, rates = responses.double(), rates.double()
        known = ~responses.isnan()
        bins = known.sum(1, keepdim=True).clamp(min=1)
        filled = torch.stack((responses, rates)).masked_fill(~known, 0)
        within = (filled - filled.sum(2, keepdim=True) / bins).masked_fill(~known, 0)
        trial_variance = (PairedMoments.squared(within).sum(2) / bins[:, 0]).sum(1)
        return cls(PairedMoments.of_pairs(responses, rates), trial_variance)

    def merged(self, other: Repeats) -> Repeats:
        """Return the moments of the trials of ``self`` and ``other``, which show one movie.

        If the numbers of bins differ, responses in missing bins are unknown.
        """
        bins = max(len(self.moments.count), len(other.moments.count))
        moments = PairedMoments.merged(_padded(part.moments, bins) for part in (self, other))
        return Repeats(moments, self.trial_variance + other.trial_variance)


def _padded(moments: PairedMoments, bins: int) -> PairedMoments:
    missing = (0, 0, 0, bins - len(moments.count))
    parts = (moments.count, moments.mean, moments.deviation)
    return PairedMoments(*(F.pad(part, missing) for part in parts))


class NormalisedCorrelation(NamedTuple):
    """Normalised correlation of each neuron (Schoppe et al. 2016, Front. Comput. Neurosci. 10:10).

    Attributes:
        absolute: CC_abs, correlation of the mean prediction with the mean response of the repeats.
        maximum: CC_max, the largest ``absolute`` that the noise in the mean response allows.
        normalised: CC_norm, correlation of the signals of prediction and response. It equals
            ``absolute`` / ``maximum`` if predictions are identical for all repeats.
    """

    absolute: Tensor
    maximum: Tensor
    normalised: Tensor


class RepeatScores:
    """Scores of neurons from the repeats of several movies.

    A bin of a movie counts for a neuron with at least two known responses in it. Scores are NaN if
    they are undefined, as for a neuron without repeats or with constant responses.

    Args:
        movies: moments of each movie.
        counts: (..., movies) how many times each movie counts, which gives scores (..., neurons).
            None counts each movie once.
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
        # Centre the means: variances do not change, and squares keep their digits.
        known = means.masked_fill(~self.used, 0).sum(1, keepdim=True)
        self.mean, self.predicted = means - known / self.used.sum(0).clamp(min=1)
        self.origin = known[:, 0] / self.used.sum(0).clamp(min=1)

    def oracle(self) -> Float[Tensor, " neurons"]:
        """Return the correlation of a response with the mean of the other repeats (jackknife)."""
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
        """Return the explainable fraction of the variance of single responses (FEV)."""
        total = self._total_variance()
        return (total - self._noise_variance()) / total

    def explained(self) -> Float[Tensor, " neurons"]:
        """Return the fraction of explainable variance that is explained (FEVE; Cadena et al. 2019).

        Cadena et al. subtract the responses' variance over repeats from the squared error and from
        the total variance. Here the variance of the residuals over repeats is subtracted from the
        squared error instead. Both formulas agree if predictions do not differ between repeats. If
        predictions differ, because the model reads behaviour, residuals vary less than responses,
        and with the original formula the true rates would score above 1.

        The numerator is the mean squared error minus the mean variance of the residuals. If all
        movies have equally many repeats, it equals the mean product of the residuals of two
        different repeats. For the true rates it is 0 in expectation (signal power; Sahani & Linden
        2003, NIPS 15).
        """
        error = self._sum(self.error) / self.entries
        unexplained = error - self._over_repeats(self.residual_deviation)
        return 1 - unexplained / (self._total_variance() - self._noise_variance())

    def correlation_to_average(self) -> Float[Tensor, " neurons"]:
        """Average responses and predictions over repeats; return their correlation over bins."""
        means = torch.stack((self.mean, self.predicted))
        mean = self._over_bins(means)
        apart = self._over_bins(PairedMoments.squared(means)) - PairedMoments.squared(mean)
        variances = (above_rounding(apart[i], mean[i]) for i in range(2))
        first, second = (varying(each, self.origin[i]) for i, each in enumerate(variances))
        return correlation(first, second, apart[2])

    def normalised_correlation(self) -> NormalisedCorrelation:
        """Return CC_abs, CC_max and CC_norm.

        Variances are computed within each movie and averaged over movies, weighted by the numbers
        of bins. A movie does not count for a neuron whose number of known repeats differs between
        bins. With one movie, and identical predictions for all repeats, these are the equations of
        Schoppe et al. 2016.
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
        """Sum values over the bins of each movie, then over movies, weighted by ``counts``.

        Bins with fewer than two known responses (not NaN) are left out. In the result the axis of
        bins is replaced by the axes of ``counts`` before its last, such as one of resamples.
        """
        lengths = [len(movie.moments.count) for movie in self.movies]
        parts = values.masked_fill(~self.used, 0).split(lengths, dim=-2)
        return self.counts @ torch.stack([part.sum(-2) for part in parts], -2)

    def _over_bins(self, values: Tensor) -> Tensor:
        return self._sum(values) / self.bins

    def _over_repeats(self, deviation: Tensor) -> Tensor:
        """Compute variances over repeats from sums of squared deviations; average over bins."""
        return self._over_bins(deviation / (self.count - 1).clamp(min=1))

    def _noise_variance(self) -> Tensor:
        return self._over_repeats(self.deviation)

    def _total_variance(self) -> Tensor:
        total = self._sum(self.mean * self.count)
        between = self._sum(self.mean.square() * self.count) - total.square() / self.entries
        variance = (self._sum(self.deviation) + between) / (self.entries - 1)
        return above_rounding(variance, total / self.entries)


class _Powers(NamedTuple):
    """Variances of responses and of predictions over the bins of a movie, and their covariance.

    Attributes:
        bins: (neurons) number of bins that count.
        of_means: (3, neurons) variances and covariance of means over repeats.
        of_signals: (3, neurons) variances and covariance of the signals, which are the parts that
            all repeats have in common.
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
