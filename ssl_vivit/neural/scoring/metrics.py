"""How well rates predict responses: bits per spike, correlations, explainable variance.

All of it in float64, over known responses alone (NaN is unknown), leaving what is given as it was.
NumPy's arrays may stand for tensors.
:class:`ssl_vivit.neural.scoring.scores.NeuralScores` computes the same from batches and on processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.scoring.repeat_moments import (
    NormalisedCorrelation,
    RepeatMoments,
    RepeatScores,
    correlation,
    varying,
)

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
    return bits_of_sums(poisson_sums(rates, spikes), null_rates)[0]


def bps_per_neuron(
    rates: Float[Tensor, "... neurons"],
    spikes: Float[Tensor, "... neurons"],
    *,
    null_rates: Float[Tensor, " neurons"] | None = None,
) -> Float[Tensor, " neurons"]:
    """:func:`bits_per_spike` of each neuron; NaN for those without a spike."""
    return bits_of_sums(poisson_sums(rates, spikes), null_rates)[1]


def poisson_nll(
    rates: Float[Tensor, "... neurons"],
    responses: Float[Tensor, "... neurons"],
    *,
    log_factorial: bool = False,
) -> Float[Tensor, " neurons"]:
    """Negative Poisson log likelihood of each neuron, mean over its known responses, in nats.

    Args:
        rates: expected responses per bin.
        responses: what was recorded.
        log_factorial: add the term of the responses alone, which needs counts.
    """
    known, _, total, log_rates = poisson_sums(rates, responses)
    loss = (total - log_rates) / known
    if log_factorial:
        counts = _binwise(responses)
        # The term of a count of 0 is 0.
        loss = loss + torch.lgamma(counts.masked_fill(counts.isnan(), 0) + 1).sum(0) / known
    return loss


def single_trial_correlation(
    rates: Float[Tensor, "... neurons"], responses: Float[Tensor, "... neurons"]
) -> Float[Tensor, " neurons"]:
    """Pearson's correlation over trials × time, for each neuron.

    NaN for a neuron whose responses do not vary, 0 for one whose rates alone do not.
    """
    return correlation_of_moments(paired_moments(rates, responses))


def correlation_to_average(
    predictions: Sequence[Float[Tensor, "repeats *bins neurons"]],
    repeats: Sequence[Float[Tensor, "repeats *bins neurons"]],
) -> Float[Tensor, " neurons"]:
    """Correlation of mean prediction and mean response of the repeats, over bins of all movies."""
    return _repeat_scores(repeats, predictions).correlation_to_average()


def oracle(
    repeats: Sequence[Float[Tensor, "repeats *bins neurons"]],
    method: Literal["conservative", "jackknife"] = "jackknife",
) -> Float[Tensor, " neurons"]:
    """What an ideal observer of other repeats would reach as a correlation with single responses.

    Args:
        repeats: for each movie (repeats, bins, neurons), or for each image (repeats, neurons).
        method: ``jackknife`` correlates with the mean of the other repeats, too low; with
            ``conservative`` the mean of all stands for the truth, too high (neuralpredictors).
    """
    scores = _repeat_scores(repeats)
    return scores.oracle_jackknife() if method == "jackknife" else scores.oracle_conservative()


def fev(repeats: Sequence[Float[Tensor, "repeats *bins neurons"]]) -> Float[Tensor, " neurons"]:
    """Fraction of the variance of single responses that is explainable by the stimulus."""
    return _repeat_scores(repeats).explainable_variance()


def feve(
    predictions: Sequence[Float[Tensor, "repeats *bins neurons"]],
    repeats: Sequence[Float[Tensor, "repeats *bins neurons"]],
) -> Float[Tensor, " neurons"]:
    """Fraction of the explainable variance that is explained (Cadena et al. 2019).

    Neurons with little explainable variance get any number: leave those with a :func:`fev` below
    0.15 out, as the field does.
    """
    return _repeat_scores(repeats, predictions).explained()


def cc_norm(
    predictions: Sequence[Float[Tensor, "repeats *bins neurons"]],
    repeats: Sequence[Float[Tensor, "repeats *bins neurons"]],
) -> NormalisedCorrelation:
    """Absolute, maximal and normalised correlation with the mean response (Schoppe et al. 2016)."""
    return _repeat_scores(repeats, predictions).normalised_correlation()


def poisson_sums(
    rates: Float[Tensor, "... neurons"], responses: Float[Tensor, "... neurons"]
) -> Float[Tensor, "4 neurons"]:
    """Over known responses: their number, their sum, the rates', that of responses · log rates.

    Raises:
        NeuralModelError: if a rate is negative or NaN where the response is known.
    """
    rates, responses = (_binwise(x) for x in (rates, responses))
    if rates.shape != responses.shape:
        raise NeuralModelError(
            f"rates of {tuple(rates.shape)} bins and neurons do not pair with responses of "
            f"{tuple(responses.shape)}"
        )
    known = ~responses.isnan()
    rates, responses = rates.masked_fill(~known, 0), responses.masked_fill(~known, 0)
    if not (rates >= 0).all():
        raise NeuralModelError("rates must be neither negative nor NaN where responses are known")
    rates = torch.where(known & (rates == 0), ZERO_RATE, rates)
    logs = rates.masked_fill(~known, 1).log()
    terms = (known.double(), responses, rates, responses * logs)
    return torch.stack([term.sum(0) for term in terms])


def paired_moments(
    rates: Float[Tensor, "... neurons"], responses: Float[Tensor, "... neurons"]
) -> Float[Tensor, "6 neurons"]:
    """Number of known responses; means of responses and rates; sums of squares and of products.

    In order: number, mean response, mean rate, and around the means Σ response², Σ rate²,
    Σ response · rate.
    """
    rates, responses = (_binwise(x) for x in (rates, responses))
    known = ~responses.isnan()
    number = known.sum(0).double()

    def centred(values: Tensor) -> tuple[Tensor, Tensor]:
        mean = values.masked_fill(~known, 0).sum(0) / number.clamp(min=1)
        return mean, (values - mean).masked_fill(~known, 0)

    (mean, first), (mean_rate, second) = centred(responses), centred(rates)
    squares = (first.square(), second.square(), first * second)
    return torch.stack((number, mean, mean_rate, *(term.sum(0) for term in squares)))


def merged_moments(
    one: Float[Tensor, "6 neurons"], two: Float[Tensor, "6 neurons"]
) -> Float[Tensor, "6 neurons"]:
    """:func:`paired_moments` of two sets of responses together (Chan et al. 1983)."""
    number = one[0] + two[0]
    share = two[0] / number.clamp(min=1)
    apart, apart_rate = two[1] - one[1], two[2] - one[2]
    spread = torch.stack((apart.square(), apart_rate.square(), apart * apart_rate))
    return torch.cat(
        (
            torch.stack((number, one[1] + apart * share, one[2] + apart_rate * share)),
            one[3:] + two[3:] + spread * one[0] * share,
        )
    )


def correlation_of_moments(moments: Float[Tensor, "6 neurons"]) -> Float[Tensor, " neurons"]:
    """Pearson's correlation from :func:`paired_moments`."""
    number, mean, mean_rate, first, second, both = moments
    first, second = (varying(x / number, m) for x, m in ((first, mean), (second, mean_rate)))
    return correlation(first, second, both / number)


def bits_of_sums(
    sums: Float[Tensor, "4 neurons"], null_rates: Float[Tensor, " neurons"] | None = None
) -> tuple[float, Float[Tensor, " neurons"]]:
    """Bits per spike of all neurons and of each, from :func:`poisson_sums`."""
    gain = _gain(sums, null_rates)
    return float(_bits(*(part.sum() for part in (*gain, sums[1])))), _bits(*gain, sums[1])


def _binwise(values: Float[Tensor, "... neurons"]) -> Float[Tensor, "bins neurons"]:
    return torch.as_tensor(values).detach().double().flatten(0, -2)


def _gain(sums: Float[Tensor, "4 neurons"], null_rates: Tensor | None) -> tuple[Tensor, Tensor]:
    """Negative log likelihoods of the constant and of the rates, without what both share."""
    known, spikes, total, log_rates = sums
    null = (
        spikes / known.clamp(min=1) if null_rates is None else torch.as_tensor(null_rates).double()
    )
    null = torch.where(null == 0, ZERO_RATE, null)
    return known * null - spikes * null.log(), total - log_rates


def _bits(null: Tensor, model: Tensor, spikes: Tensor) -> Tensor:
    bits = (null - model) / (spikes.masked_fill(spikes == 0, 1) * math.log(2))
    return torch.where(spikes == 0, torch.nan, bits)


def _repeat_scores(
    repeats: Sequence[Tensor], predictions: Sequence[Tensor] | None = None
) -> RepeatScores:
    given = [None] * len(repeats) if predictions is None else predictions
    pairs = zip(repeats, given, strict=True)
    return RepeatScores([RepeatMoments.of(responses, rates) for responses, rates in pairs])
