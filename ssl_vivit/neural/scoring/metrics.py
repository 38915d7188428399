"""Scores of predicted rates: bits per spike and correlation with single trials.

Everything is computed in float64, over known responses alone (NaN is unknown). Arguments may be
tensors or arrays of NumPy, and are left as they are. Sums and moments of parts of the data merge to
those of all of it; :class:`ssl_vivit.neural.scoring.scores.NeuralScores` collects them.
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

# What stands for a rate of zero, which makes a spike impossible (nlb_tools, evaluation.py).
ZERO_RATE = 1e-9


def bits_per_spike(
    rates: Float[Tensor, "... neurons"],
    spikes: Float[Tensor, "... neurons"],
    *,
    null_rates: Float[Tensor, " neurons"] | None = None,
) -> float:
    """Information that rates have over a constant one, in bits per spike, over all neurons.

    Pei et al. 2021 (Neural Latents Benchmark, arXiv 2109.04463), section 3.2: silent neurons count
    with what is predicted for them.

    Args:
        rates: expected counts per bin.
        spikes: counts.
        null_rates: the constant rates; None is each neuron's mean of ``spikes``.

    Returns:
        The figure; 0 is no better than the constant; NaN without any spike.

    Raises:
        NeuralModelError: if a rate is negative or NaN where the response is known.
    """
    return PoissonSums.of(rates, spikes).bits_per_spike(null_rates)


def single_trial_correlation(
    rates: Float[Tensor, "... neurons"], responses: Float[Tensor, "... neurons"]
) -> Float[Tensor, " neurons"]:
    """Pearson's correlation over trials × time, for each neuron.

    NaN for a neuron whose responses do not vary, 0 for one whose rates alone do not.
    """
    return PairedMoments.of_pairs(_binwise(responses), _binwise(rates)).correlation()


@dataclass(frozen=True)
class PoissonSums:
    """Sums over known responses of each neuron that give their Poisson likelihood.

    Attributes:
        known: number of known responses.
        responses: sum of them.
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
        """Sums over everything but neurons.

        Raises:
            NeuralModelError: if the shapes differ, or a rate is negative or NaN where the response
                is known.
        """
        rates, responses = _binwise(rates), _binwise(responses)
        if rates.shape != responses.shape:
            raise NeuralModelError(
                f"rates of {tuple(rates.shape)} bins and neurons do not pair with responses of "
                f"{tuple(responses.shape)}"
            )
        known = ~responses.isnan()
        rates, responses = rates.masked_fill(~known, 0), responses.masked_fill(~known, 0)
        if not (rates >= 0).all():
            raise NeuralModelError(
                "rates must be neither negative nor NaN where responses are known"
            )
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
        """The sums of some neurons."""
        return PoissonSums(*(getattr(self, part.name)[..., chosen] for part in fields(self)))

    @classmethod
    def resampled(
        cls, parts: Sequence[PoissonSums], counts: Float[Tensor, "... parts"]
    ) -> PoissonSums:
        """Sums in which each part counts so many times, (..., neurons)."""
        return cls(
            *(counts @ torch.stack([getattr(p, part.name) for p in parts]) for part in fields(cls))
        )

    def loss(self) -> Float[Tensor, " neurons"]:
        """Mean negative log likelihood of a known response in nats, without its factorial."""
        return (self.rates - self.log_rates) / self.known

    def bits_of_neurons(
        self, null_rates: Float[Tensor, " neurons"] | None = None
    ) -> Float[Tensor, " neurons"]:
        """Bits per spike of each neuron; NaN for those without a spike."""
        return _bits(self._gain(null_rates), self.responses)

    def bits_per_spike(self, null_rates: Float[Tensor, " neurons"] | None = None) -> float:
        """Bits per spike of all neurons together, see :func:`bits_per_spike`."""
        return float(self.bits_together(null_rates))

    def bits_together(
        self, null_rates: Float[Tensor, " neurons"] | None = None
    ) -> Float[Tensor, ...]:
        """Bits per spike of all neurons together, for each entry of the axes before neurons."""
        return _bits(self._gain(null_rates).sum(-1), self.responses.sum(-1))

    def _gain(self, null_rates: Float[Tensor, " neurons"] | None) -> Float[Tensor, " neurons"]:
        """Log likelihood of the rates less that of constant ones."""
        if null_rates is None:
            null = self.responses / self.known.clamp(min=1)
        else:
            null = torch.as_tensor(null_rates).double()
        null = torch.where(null == 0, ZERO_RATE, null)
        return self.known * null - self.responses * null.log() - (self.rates - self.log_rates)


class PairedMoments(Moments):
    """Moments of responses and of their predictions, over known responses.

    Attributes:
        count: (..., neurons).
        mean: (2, ..., neurons), of responses and of rates.
        deviation: (3, ..., neurons), Σ response², Σ rate² and Σ response · rate around the means.
    """

    @classmethod
    def of_pairs(
        cls, responses: Float[Tensor, "n ... neurons"], rates: Float[Tensor, "n ... neurons"]
    ) -> PairedMoments:
        """Moments over the first axis; NaN responses are unknown."""
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
        """Moments (..., neurons) in which each part (neurons) counts so many times."""
        count = torch.stack([part.count for part in parts])
        # Close to all means, so that squares lose no digits.
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
        """Squares of responses and rates, and their product."""
        response, rate = distance
        return torch.stack((response.square(), rate.square(), response * rate))

    def correlation(self) -> Float[Tensor, "... neurons"]:
        """Pearson's correlation of responses and rates."""
        first, second, both = self.deviation / self.count
        return correlation(varying(first, self.mean[0]), varying(second, self.mean[1]), both)


def correlation(first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """Pearson's correlation from variances of responses and predictions, and their covariance.

    NaN where responses do not vary; 0 where predictions do not and responses do, since a model
    that predicts a constant has learned nothing of that neuron.
    """
    constant = second <= 0
    value = both / (first * second.masked_fill(constant, 1)).sqrt()
    return torch.where(first > 0, value.masked_fill(constant, 0), torch.nan)


def varying(variance: Tensor, mean: Tensor) -> Tensor:
    """A variance, or 0 where it is no more than the rounding of a constant."""
    return torch.where(variance > (1e-12 * mean).square(), variance, 0.0)


def above_rounding(variance: Tensor, mean: Tensor) -> Tensor:
    """A mean square less a squared mean, or 0 where it is no more than the rounding of these.

    A resample may show nothing but movies to which a neuron did not respond.
    """
    return torch.where(variance > 1e-10 * mean.square(), variance, 0.0)


def _binwise(values: Float[Tensor, "... neurons"]) -> Float[Tensor, "bins neurons"]:
    return torch.as_tensor(values).detach().double().flatten(0, -2)


def _bits(gain: Tensor, spikes: Tensor) -> Tensor:
    bits = gain / (spikes.masked_fill(spikes == 0, 1) * math.log(2))
    return torch.where(spikes == 0, torch.nan, bits)
