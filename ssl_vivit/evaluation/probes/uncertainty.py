"""How much a score owes to the videos it happens to be tested on: a bootstrap over test videos.

A Poisson bootstrap (Chamandy et al. 2012, "Estimating uncertainty for massive data streams"): in
each resample a video counts as often as a Poisson number of mean 1 that its name alone decides. So
the same videos are drawn for every row, seed and pass, and differences between rows are paired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.objectives.targets import Target

# The standard deviation of so many numbers is known to 1 / √(2 · 400) = 3.5 %.
RESAMPLES = 400


class Estimate(NamedTuple):
    """A score, or a difference of two, and how far it may be off.

    Attributes:
        mean: over seeds.
        over_seeds: standard error of that mean, from the spread over seeds; NaN for one seed.
        over_videos: its standard deviation over resamples of the test videos.
    """

    mean: float
    over_seeds: float
    over_videos: float

    @classmethod
    def of(
        cls, scores: Sequence[float], resampled: Sequence[Float[np.ndarray, " resamples"]]
    ) -> Estimate:
        """Of each seed's score, those that are numbers, and of its resamples."""
        known = [value for value in scores if math.isfinite(value)]
        if not known:
            return cls(math.nan, math.nan, math.nan)
        drawn = [
            each for value, each in zip(scores, resampled, strict=True) if math.isfinite(value)
        ]
        # A resample counts where every seed's tells something.
        means = np.mean(drawn, axis=0)
        means = means[np.isfinite(means)]
        return cls(
            float(np.mean(known)),
            float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.nan,
            float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
        )

    @property
    def error(self) -> float:
        """Standard error over seeds and test videos together, as variances add up."""
        return math.hypot(self.over_seeds, self.over_videos)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.3f}" + ("" if math.isnan(self.error) else f" ± {self.error:.3f}")


def video_weights(
    keys: Sequence[str], resamples: int = RESAMPLES
) -> Float[Tensor, "resamples videos"]:
    """How often each video counts in each resample, whole numbers as float64.

    Args:
        keys: the videos' names.
        resamples: rows.
    """
    drawn = [named_generator(key, "resamples").poisson(1.0, resamples) for key in keys]
    return torch.from_numpy(np.stack(drawn, 1)).double()


def resampled_scores(
    predicted: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    train_labels: Mapping[str, Tensor],
    targets: tuple[Target, ...],
    weights: Float[Tensor, "resamples videos"],
) -> dict[str, Float[np.ndarray, " resamples"]]:
    """:func:`resampled_score` of each target."""
    return {
        t.name: resampled_score(
            predicted[t.name], labels[t.name].cpu(), t, train_labels[t.name].cpu(), weights
        ).numpy()
        for t in targets
    }


def resampled_score(
    predicted: Float[Tensor, "n width"],
    labels: Tensor,
    target: Target,
    train_labels: Tensor,
    weights: Float[Tensor, "resamples n"],
) -> Float[Tensor, " resamples"]:
    """:func:`~ssl_vivit.evaluation.probes.scores.score` of each resample of the test part.

    Args:
        predicted, labels, target, train_labels: as there.
        weights: how often each clip counts.

    Returns:
        (resamples,) in float64; NaN where a resample has too few different labels to tell.
    """
    predicted = predicted.double().cpu()
    if target.kind == "class":
        right = (predicted.argmax(1) == labels.long()).double()
        return (weights @ right) / weights.sum(1)
    if target.kind == "number":
        return _r2(predicted.flatten(), labels.double().flatten(), weights)
    if target.kind == "event":
        return _auroc(predicted[:, 0], labels.flatten() > 0, weights)
    learnable = (train_labels > 0).any(0)
    kinds = [
        _average_precision(predicted[:, k], labels[:, k] > 0, weights)
        for k in torch.nonzero(learnable).flatten().tolist()
        if (labels[:, k] > 0).any()
    ]
    if not kinds:
        return torch.full((len(weights),), torch.nan, dtype=torch.float64)
    return torch.stack(kinds).nanmean(0)


def _r2(predicted: Tensor, numbers: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(1)
    mean = weights @ numbers / total
    # Moments around the whole part's mean, where rounding leaves a constant no spread.
    centred = numbers - numbers.mean()
    spread = weights @ centred.square() - total * (mean - numbers.mean()).square()
    rest = weights @ (predicted - numbers).square()
    least = 1e-12 * total * centred.square().mean()
    return torch.where(spread > least, 1 - rest / spread, torch.nan)


def _cumulated(
    scores: Tensor, positive: Tensor, weights: Tensor
) -> tuple[Float[Tensor, "resamples steps"], Float[Tensor, "resamples steps"]]:
    """Weight of positives, and of all, from the highest score down, at the end of each tie."""
    ordered, order = scores.sort(descending=True)
    ends = torch.cat((ordered[1:] != ordered[:-1], torch.tensor([True])))
    sorted_weights = weights[:, order]
    hits = (sorted_weights * positive[order]).cumsum(1)[:, ends]
    return hits, sorted_weights.cumsum(1)[:, ends]


def _auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    hits, seen = _cumulated(scores, positive, weights)
    false = seen - hits
    none = torch.zeros(len(weights), 1, dtype=weights.dtype)
    # Ties count half: the trapezium between two steps.
    heights = (hits + torch.cat((none, hits[:, :-1]), 1)) / 2
    area = (heights * false.diff(dim=1, prepend=none)).sum(1)
    return area / (hits[:, -1] * false[:, -1])


def _average_precision(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """NaN where all clips that count are positive, or none is."""
    hits, seen = _cumulated(scores, positive, weights)
    none = torch.zeros(len(weights), 1, dtype=weights.dtype)
    precision = hits / seen.clamp(min=1)
    found = (hits.diff(dim=1, prepend=none) * precision).sum(1) / hits[:, -1]
    return torch.where(hits[:, -1] < seen[:, -1], found, torch.nan)
