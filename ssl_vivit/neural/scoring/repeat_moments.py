"""What repeats of a movie tell of neurons: kept as moments that merge exactly, whatever the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RepeatMoments:
    """Responses to the repeats of one movie, and predictions of them, in float64.

    Attributes:
        count: known responses (bins, neurons).
        mean: their mean.
        deviation: sum of squared distances from it.
        predicted: mean prediction of the known responses.
        error: sum of squared errors.
        trial_variance: variance over the known bins of a trial, summed over trials (neurons).
    """

    count: Tensor
    mean: Tensor
    deviation: Tensor
    predicted: Tensor
    error: Tensor
    trial_variance: Tensor

    @classmethod
    def of(
        cls,
        responses: Float[Tensor, "repeats *bins neurons"],
        rates: Float[Tensor, "repeats *bins neurons"] | None = None,
    ) -> RepeatMoments:
        """Moments of whole trials.

        Args:
            responses: NaN where unknown; without an axis of bins there is one.
            rates: predictions, which may differ between repeats; None for none.
        """
        responses = _with_bins(responses)
        rates = torch.zeros_like(responses) if rates is None else _with_bins(rates)
        known = ~responses.isnan()
        count = known.sum(0).double()
        filled = responses.masked_fill(~known, 0)
        mean = filled.sum(0) / count.clamp(min=1)
        deviation = (filled - mean).square().masked_fill(~known, 0).sum(0)
        predicted = rates.masked_fill(~known, 0).sum(0) / count.clamp(min=1)
        error = (filled - rates).square().masked_fill(~known, 0).sum(0)
        bins = known.sum(1, keepdim=True).clamp(min=1)
        within = (filled - filled.sum(1, keepdim=True) / bins).masked_fill(~known, 0)
        trial_variance = (within.square().sum(1) / bins[:, 0]).sum(0)
        return cls(count, mean, deviation, predicted, error, trial_variance)

    def merged(self, other: RepeatMoments) -> RepeatMoments:
        """Moments of both sets of trials (Chan et al. 1983); the shorter movie ends in unknowns."""
        bins = max(len(self.count), len(other.count))
        one, two = self._padded(bins), other._padded(bins)
        count = one.count + two.count
        share = two.count / count.clamp(min=1)
        apart = two.mean - one.mean
        return RepeatMoments(
            count,
            one.mean + apart * share,
            one.deviation + two.deviation + apart.square() * one.count * share,
            one.predicted + (two.predicted - one.predicted) * share,
            one.error + two.error,
            one.trial_variance + two.trial_variance,
        )

    def _padded(self, bins: int) -> RepeatMoments:
        def pad(values: Tensor) -> Tensor:
            return F.pad(values, (0, 0, 0, bins - len(values)))

        return RepeatMoments(
            pad(self.count),
            pad(self.mean),
            pad(self.deviation),
            pad(self.predicted),
            pad(self.error),
            self.trial_variance,
        )


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

    def __init__(self, movies: Sequence[RepeatMoments]) -> None:
        self.movies = movies
        count = torch.cat([movie.count for movie in movies])
        self.used = count > 1
        self.count = count.masked_fill(~self.used, 0)
        self.bins = self.used.sum(0).double()
        self.mean = torch.cat([movie.mean for movie in movies])
        self.deviation = torch.cat([movie.deviation for movie in movies])
        self.predicted = torch.cat([movie.predicted for movie in movies])
        self.error = torch.cat([movie.error for movie in movies])

    def oracle_conservative(self) -> Float[Tensor, " neurons"]:
        """Correlation of single responses with their true mean, overestimated with few repeats."""
        noise = self._over_bins(self.deviation / self.count.clamp(min=1))
        signal = self._over_bins((self.mean - self._over_bins(self.mean)).square())
        return (signal / (signal + noise)).sqrt()

    def oracle_jackknife(self) -> Float[Tensor, " neurons"]:
        """Correlation of each response with the mean of the other repeats."""
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


def correlation(first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """Pearson's from variances of responses and predictions, and their covariance.

    NaN where responses do not vary; 0 where predictions do not and responses do, since a model
    that predicts a constant has learned nothing of that neuron.
    """
    constant = second <= 0
    value = both / (first * second.masked_fill(constant, 1)).sqrt()
    return torch.where(first > 0, value.masked_fill(constant, 0), torch.nan)


def varying(variance: Tensor, mean: Tensor) -> Tensor:
    """A variance, or 0 where it is no more than the rounding of a constant."""
    return torch.where(variance > (1e-12 * mean).square(), variance, 0.0)


def _powers(movie: RepeatMoments) -> Tensor:
    """(bins, signal power, variances of mean response and prediction, covariance) × neurons."""
    seen = movie.count > 0
    bins = seen.sum(0).double()
    repeats = movie.count.amax(0)
    even = ((movie.count == repeats) | ~seen).all(0) & (repeats > 1)
    bins = bins.masked_fill(~even, 0)

    def over_bins(values: Tensor) -> Tensor:
        return values.masked_fill(~seen, 0).sum(0) / bins.clamp(min=1)

    mean, mean_rate = over_bins(movie.mean), over_bins(movie.predicted)
    response, predicted = movie.mean - mean, movie.predicted - mean_rate
    variance = varying(over_bins(response.square()), mean)
    of_predicted = varying(over_bins(predicted.square()), mean_rate)
    shared = over_bins(response * predicted)
    pairs = (repeats * (repeats - 1)).clamp(min=1)
    signal = (repeats.square() * variance - movie.trial_variance) / pairs
    return torch.stack((bins, signal, variance, of_predicted, shared))


def _with_bins(values: Tensor) -> Tensor:
    values = torch.as_tensor(values)
    if values.ndim == 2:
        values = rearrange(values, "repeats neurons -> repeats 1 neurons")
    return rearrange(values.detach().double(), "repeats ... neurons -> repeats (...) neurons")
