"""Scores of predicted rates: bits per spike and correlation with single trials.

All scores are computed in float64 over known responses; NaN means unknown. Arguments may be tensors
or NumPy arrays, and are not modified. Sums and moments of parts of the data can be merged;
:class:`ssl_vivit.neural.scoring.scores.NeuralScores` accumulates them over batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.moments import Moments

# Replaces rates of zero, under which a spike would be impossible (nlb_tools, evaluation.py).
ZERO_RATE = 1e-9


def bits_per_spike(
    rates: Float[Tensor, "... neurons"],
    spikes: Float[Tensor, "... neurons"],
    *,
    null_rates: Float[Tensor, " neurons"] | None = None,
) -> float:
    """Return bits per spike: the gain in log likelihood over constant rates, over all neurons.

    Pei et al. 2021 (Neural Latents Benchmark, arXiv 2109.04463), section 3.2. Neurons without
    spikes are included.

    Args:
        rates: expected spike counts per bin.
        spikes: spike counts; NaN if unknown.
        null_rates: constant rate of each neuron. None means its mean of ``spikes``.

    Returns:
        Bits per spike. 0 means no better than constant rates. NaN if there are no spikes.

    Raises:
        NeuralModelError: if the shapes differ, or a rate is negative or NaN where the spike count
            is known.
    """
    return PoissonSums.of(rates, spikes).bits_per_spike(null_rates)


def single_trial_correlation(
    rates: Float[Tensor, "... neurons"], responses: Float[Tensor, "... neurons"]
) -> Float[Tensor, " neurons"]:
    """Return Pearson's correlation of rates and responses over trials and time, for each neuron.

    The correlation is NaN if the responses of a neuron are constant. It is 0 if only the rates of
    the neuron are constant.
    """
    return PairedMoments.of_pairs(_binwise(responses), _binwise(rates)).correlation()


@dataclass(frozen=True)
class PoissonSums:
    """Sums over each neuron's known responses, from which the Poisson likelihood is computed.

    Attributes:
        known: number of known responses.
        responses: sum of the responses.
        rates: sum of the rates.
        log_rates: sum of response · log rate.
    """

    known: Float[Tensor, " neurons"]
    responses: Float[Tensor, " neurons"]
    rates: Float[Tensor, " neurons"]
    log_rates: Float[Tensor, " neurons"]

    @classmethod
    def of(
        cls, rates: Float[Tensor, "... neurons"], responses: Float[Tensor, "... neurons"]
    ) -> PoissonSums:
        """Compute the sums over all axes except neurons.

        Raises:
            NeuralModelError: if the shapes differ, or a rate is negative or NaN for a known
                response.
        """
        rates, responses = _binwise(rates), _binwise(responses)
        if rates.shape != responses.shape:
            raise NeuralModelError(
                f"rates have shape (bins, neurons) = {tuple(rates.shape)}, but responses have shape "
                f"{tuple(responses.shape)}; both shapes must be equal"
            )
        known = ~responses.isnan()
        rates, responses = rates.masked_fill(~known, 0), responses.masked_fill(~known, 0)
        if not (rates >= 0).all():
            raise NeuralModelError("rates must not be negative or NaN where responses are known")
        rates = torch.where(known & (rates == 0), ZERO_RATE, rates)
        logs = rates.masked_fill(~known, 1).log()
        terms = (known.double(), responses, rates, responses * logs)
        return cls(*(term.sum(0) for term in terms))

    def __add__(self, other: PoissonSums) -> PoissonSums:
        return PoissonSums(
            self.known + other.known,
            self.responses + other.responses,
            self.rates + other.rates,
            self.log_rates + other.log_rates,
        )

    def __getitem__(self, chosen: Tensor) -> PoissonSums:
        """Return the sums of the neurons that a mask or an index tensor selects."""
        return PoissonSums(*(getattr(self, part.name)[..., chosen] for part in fields(self)))

    @classmethod
    def resampled(
        cls, parts: Sequence[PoissonSums], counts: Float[Tensor, "... parts"]
    ) -> PoissonSums:
        """Return the weighted total of the sums of several parts of the data, (..., neurons).

        Args:
            parts: sums of each part, such as a movie.
            counts: (..., parts) number of times that each part counts.
        """
        return cls(
            *(counts @ torch.stack([getattr(p, part.name) for p in parts]) for part in fields(cls))
        )

    def loss(self) -> Float[Tensor, " neurons"]:
        """Return each neuron's mean Poisson loss of known responses (nats, no factorial term)."""
        return (self.rates - self.log_rates) / self.known

    def bits_of_neurons(
        self, null_rates: Float[Tensor, " neurons"] | None = None
    ) -> Float[Tensor, " neurons"]:
        """Return bits per spike of each neuron; NaN for a neuron without spikes.

        The constant rates are ``null_rates``, or by default the mean responses.
        """
        return _bits(self._gain(null_rates), self.responses)

    def bits_per_spike(self, null_rates: Float[Tensor, " neurons"] | None = None) -> float:
        """Return bits per spike of all neurons together; see :func:`bits_per_spike`."""
        return float(self.bits_together(null_rates))

    def bits_together(
        self, null_rates: Float[Tensor, " neurons"] | None = None
    ) -> Float[Tensor, ...]:
        """Return bits per spike of all neurons together, one value for each leading index (...)."""
        return _bits(self._gain(null_rates).sum(-1), self.responses.sum(-1))

    def _gain(self, null_rates: Float[Tensor, " neurons"] | None) -> Float[Tensor, " neurons"]:
        """Return each neuron's log likelihood for its rates minus that for a constant rate."""
        if null_rates is None:
            null = self.responses / self.known.clamp(min=1)
        else:
            null = torch.as_tensor(null_rates).double()
        null = torch.where(null == 0, ZERO_RATE, null)
        return self.known * null - self.responses * null.log() - (self.rates - self.log_rates)


class PairedMoments(Moments):
    """Joint moments of responses and predicted rates, over known responses.

    Attributes:
        count: (..., neurons) number of known responses.
        mean: (2, ..., neurons) means of responses and of rates.
        deviation: (3, ..., neurons) Σ response², Σ rate² and Σ response · rate, after subtraction
            of the means from responses and rates.
    """

    @classmethod
    def of_pairs(
        cls, responses: Float[Tensor, "n ... neurons"], rates: Float[Tensor, "n ... neurons"]
    ) -> PairedMoments:
        """Compute moments over the first axis; NaN responses are unknown."""
        known = ~responses.isnan()
        count = known.sum(0).double()
        pairs = torch.stack((responses, rates)).masked_fill(~known, 0)
        mean = pairs.sum(1) / count.clamp(min=1)
        apart = (pairs - mean[:, None]).masked_fill(~known, 0)
        return cls(count, mean, cls.squared(apart).sum(1))

    @classmethod
    def resampled(
        cls, parts: Sequence[PairedMoments], counts: Float[Tensor, "... parts"]
    ) -> PairedMoments:
        """Return the moments of several parts of the data together.

        Args:
            parts: moments of each part, such as a movie.
            counts: (..., parts) number of times that each part counts.
        """
        count = torch.stack([part.count for part in parts])
        # Subtract an origin close to all means, so that squares lose no digits.
        origin = cls.merged(parts).mean
        mean = torch.stack([part.mean for part in parts], 1) - origin[:, None]
        deviation = torch.stack([part.deviation for part in parts], 1) + count * cls.squared(mean)
        total = counts @ count
        shift = counts @ (count * mean) / total.clamp(min=1)
        origin = origin.view(2, *[1] * (counts.ndim - 1), -1)
        apart = counts @ deviation - total * cls.squared(shift)
        squares = above_rounding(apart[:2], total.sqrt() * shift)
        return cls(total, origin + shift, torch.cat((squares, apart[2:])))

    @staticmethod
    def squared(distance: Tensor) -> Tensor:
        """Return squared responses, squared rates, and response · rate, stacked to (3, ...)."""
        response, rate = distance
        return torch.stack((response.square(), rate.square(), response * rate))

    def correlation(self) -> Float[Tensor, "... neurons"]:
        """Return Pearson's correlation of responses and rates."""
        first, second, both = self.deviation / self.count
        return correlation(varying(first, self.mean[0]), varying(second, self.mean[1]), both)


def correlation(first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """Return Pearson's correlation from two variances and a covariance.

    It is NaN if responses do not vary. It is 0 if only predictions do not vary, since a constant
    prediction explains nothing.

    Args:
        first: variance of responses.
        second: variance of predictions.
        both: covariance of responses and predictions.
    """
    constant = second <= 0
    value = both / (first * second.masked_fill(constant, 1)).sqrt()
    return torch.where(first > 0, value.masked_fill(constant, 0), torch.nan)


def varying(variance: Tensor, mean: Tensor) -> Tensor:
    """Return ``variance``, or 0 where rounding of constant data could have caused it."""
    return torch.where(variance > (1e-12 * mean).square(), variance, 0.0)


def above_rounding(variance: Tensor, mean: Tensor) -> Tensor:
    """Return ``variance``, or 0 where rounding could have caused it.

    Here the variance was computed as the mean square minus the squared mean, so rounding errors are
    large. They matter if a resample contains only movies to which a neuron did not respond.
    """
    return torch.where(variance > 1e-10 * mean.square(), variance, 0.0)


def _binwise(values: Float[Tensor, "... neurons"]) -> Float[Tensor, "bins neurons"]:
    return torch.as_tensor(values).detach().double().flatten(0, -2)


def _bits(gain: Tensor, spikes: Tensor) -> Tensor:
    bits = gain / (spikes.masked_fill(spikes == 0, 1) * math.log(2))
    return torch.where(spikes == 0, torch.nan, bits)
