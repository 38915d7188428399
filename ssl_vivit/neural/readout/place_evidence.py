"""Evidence of Bayesian regressions of responses on the features of one place at a time.

A place is a cell of a coarse grid on the screen. The responses of a neuron are explained by the
features of one place, by the mean of the features over the screen, or by neither. Weights have a
Gaussian prior. The width of the prior and the fraction of neurons with an explanation are estimated
from all neurons together (empirical Bayes; Bishop 2006, Pattern Recognition and Machine Learning,
sec. 3.5).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Candidate variances of the prior of weights, for features and responses of variance 1.
_PRIOR_VARIANCES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
# Prior fraction of explained neurons that are explained by the whole screen.
_WHOLE_SCREEN = 0.03
_ROUNDS = 30


class Explained(NamedTuple):
    """Posterior probabilities of the explanations of each neuron's responses.

    Attributes:
        places: (places, neurons) posterior probability that the features of a place (a grid cell on
            the screen) explain the responses. One minus the sum over places is the probability of
            the two other explanations: features of the whole screen, or none.
        log_evidence: log evidence of all neurons together, relative to no explanation.
    """

    places: Float[Tensor, "p n"]
    log_evidence: float


class PlaceSums:
    """Sums of features, responses and their products, accumulated over trials.

    :class:`ssl_vivit.moments.Moments` is not used, because products of features of two different
    places are not needed, and the frames with known responses may differ between neurons.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.known = self.x = self.y = self.xx = self.xy = self.yy = torch.zeros(())
        self.x_missing = torch.zeros(())

    def add(self, x: Float[Tensor, "T p k"], y: Float[Tensor, "T n"]) -> None:
        """Add the frames of a trial.

        Args:
            x: features of each place.
            y: responses, NaN if unknown. They should be roughly standardised, since products are
                computed in single precision.
        """
        known = ~y.isnan()
        responses = torch.where(known, y, 0).float()
        x = torch.cat([x, x.mean(1, keepdim=True)], dim=1).float()
        flat, shape = x.flatten(1).mT, (*x.shape[1:], y.shape[1])
        self.frames += len(x)
        self.known = self.known + known.sum(0)
        self.x = self.x + x.double().sum(0)
        self.y = self.y + responses.double().sum(0)
        self.yy = self.yy + responses.double().square().sum(0)
        by_place = x.double().permute(1, 2, 0)
        self.xx = self.xx + by_place @ by_place.mT
        self.xy = self.xy + (flat @ responses).reshape(shape).double()
        if not known.all():
            self.x_missing = self.x_missing + (flat @ (~known).float()).reshape(shape).double()

    def explained(self, pooled: Bool[Tensor, " n"], *, inflation: float = 1.0) -> Explained:
        """Return posterior probabilities of the explanations of each neuron's responses.

        They are averaged over several widths of the prior, weighted by the evidence of each width.

        Args:
            pooled: mask of the neurons from which the prior is estimated.
            inflation: number of successive, correlated frames that carry as much information as one
                independent frame; at least 1.
        """
        gram, cross, spread = self._standardised()
        varies = spread > 0
        found = []
        for prior in _PRIOR_VARIANCES:
            evidence = log_evidence(gram, cross, spread, self.known / inflation, inflation, prior)
            found.append(posterior_of_places(evidence.where(varies, -torch.inf), pooled & varies))
        totals = torch.tensor([each.log_evidence for each in found], dtype=spread.dtype)
        weights = totals.softmax(0)
        places = sum(weight * each.places for weight, each in zip(weights, found, strict=True))
        return Explained(places, float(totals.logsumexp(0)) - math.log(len(found)))

    def _standardised(
        self,
    ) -> tuple[Float[Tensor, "p k k"], Float[Tensor, "p k n"], Float[Tensor, " n"]]:
        """Return centred sums: feature products, feature-response products and squared responses.

        Each feature is divided by one number for all places, the square root of its mean variance,
        so that one prior applies to all places.
        """
        known = self.known.clamp(min=1)
        frames = max(self.frames, 1)
        mean = self.x / frames
        gram = self.xx - frames * mean[:, :, None] * mean[:, None]
        response = self.y / known
        cross = self.xy - (self.x[..., None] - self.x_missing) * response
        # Features were centred over all frames, including frames without a known response.
        cross = cross * (frames / known).sqrt()
        scale = (gram.diagonal(dim1=1, dim2=2).mean(0) / frames).clamp(min=1e-12).sqrt()
        spread = self.yy - known * response.square()
        # Set the spread of constant responses to 0; by rounding it may be slightly larger.
        spread = spread.where(spread > 1e-9 * self.yy, 0)
        return gram / scale.outer(scale), cross / scale[:, None], spread


def log_evidence(
    gram: Float[Tensor, "p k k"],
    cross: Float[Tensor, "p k n"],
    spread: Float[Tensor, " n"],
    count: Float[Tensor, " n"],
    inflation: float,
    prior: float,
) -> Float[Tensor, "p n"]:
    """Return the log evidence of a regression on each place's features, minus that of a constant.

    The noise variance is the one that maximises the likelihood. The prior variance of weights is
    ``prior`` times the noise variance.

    Args:
        gram: centred products of features.
        cross: centred products of features and responses.
        spread: sum of squares of centred responses.
        count: number of independent frames with a known response.
        inflation: number of successive, correlated frames that carry as much information as one
            independent frame.
        prior: variance of weights, as a multiple of the noise variance.
    """
    gram, cross, spread = gram / inflation, cross / inflation, spread / inflation
    unit = torch.eye(gram.shape[1], dtype=gram.dtype)
    factor = torch.linalg.cholesky(gram + unit / prior)
    explained = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum(1)
    volume = factor.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * len(unit) * math.log(prior)
    left = 1 - explained / spread.where(spread > 0, 1)
    return -volume[:, None] - 0.5 * count * left.clamp(min=1e-9).log()


def posterior_of_places(evidence: Float[Tensor, "q n"], pooled: Bool[Tensor, " n"]) -> Explained:
    """Return posterior probabilities of places, with a prior estimated from the pooled neurons.

    Args:
        evidence: log evidence of each place and, in the last row, of the whole screen. −∞ for
            neurons with constant responses.
        pooled: mask of the neurons from which the prior fraction of neurons with an explanation is
            estimated.
    """
    places = evidence[:-1].logsumexp(0) + math.log((1 - _WHOLE_SCREEN) / (len(evidence) - 1))
    some = torch.logaddexp(places, evidence[-1] + math.log(_WHOLE_SCREEN))
    share = torch.tensor(1 / 3, dtype=some.dtype)
    for _ in range(_ROUNDS):
        explained = (some + share.logit()).sigmoid()
        # Pseudo-counts: one neuron with an explanation and two without.
        share = (1 + explained[pooled].sum()) / (3 + pooled.sum())
    total = torch.logaddexp(some + share.log(), (1 - share).log())[pooled].sum()
    of_place = (places - some).exp().where(some.isfinite(), 0)
    explained = (some + share.logit()).sigmoid()
    each = evidence[:-1].softmax(0).where(some.isfinite(), 0)
    return Explained(each * of_place * explained, float(total))
