"""Scores of predictions and chance levels, one number for each target; higher is better."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_vivit.data.video.clevrer import KINDS
from ssl_vivit.objectives.targets import Target

CLEVRER_TARGETS = (
    Target("presence", "kinds", len(KINDS)),
    Target("num_objects", "number"),
    Target("num_collisions", "number"),
    Target("has_collision", "event"),
    Target("mean_speed", "number"),
)

METRICS = {
    "kinds": "mean average precision",
    "event": "AUROC",
    "number": "R²",
    "class": "accuracy",
}


def score(
    predicted: Float[Tensor, "n width"], labels: Tensor, target: Target, train_labels: Tensor
) -> float:
    """Score the predictions of a target on the test part.

    The score depends on the target's kind:

    - ``kinds`` (several binary labels): average precision, averaged over the labels selected by
      :func:`scored_kinds`
    - ``event`` (one binary label): area under the ROC curve
    - ``number``: R², the fraction of the test part's variance that is explained; below 0 is worse
      than predicting the mean
    - ``class``: accuracy

    Args:
        predicted: predictions, (n, width). For ``number`` they are in the units of the labels. For
            other kinds larger values mean a higher probability, as in logits.
        labels: labels of the test part; see :class:`Target` for their shape.
        target: the target.
        train_labels: labels of the training part.

    Returns:
        The score; NaN if it is undefined because labels of the test part do not vary.
    """
    once = torch.ones(1, len(labels), dtype=torch.float64)
    return float(weighted_score(predicted, labels, target, train_labels, once))


def weighted_score(
    predicted: Float[Tensor, "n width"],
    labels: Tensor,
    target: Target,
    train_labels: Tensor,
    weights: Float[Tensor, "rows n"],
) -> Float[Tensor, " rows"]:
    """Score a target like :func:`score`, on several resamples of the test clips.

    Args:
        predicted, labels, target, train_labels: see :func:`score`.
        weights: (rows, n), whole numbers as float64. A row has the number of times that each clip
            counts in one resample.

    Returns:
        Scores (rows,) in float64, one per resample. NaN if a score is undefined because the labels
        of the counted clips do not vary.
    """
    predicted, labels = predicted.double().cpu(), labels.cpu()
    if target.kind == "class":
        right = (predicted.argmax(1) == labels.long()).double()
        return (weights @ right) / weights.sum(1)
    if target.kind == "number":
        return _r2(predicted.flatten(), labels.double().flatten(), weights)
    if target.kind == "event":
        return _auroc(predicted[:, 0], labels.flatten() > 0, weights)
    scored = torch.nonzero(scored_kinds(labels, train_labels.cpu())).flatten().tolist()
    if not scored:
        return torch.full((len(weights),), torch.nan, dtype=torch.float64)
    kinds = [_average_precision(predicted[:, k], labels[:, k] > 0, weights) for k in scored]
    return torch.stack(kinds).nanmean(0)


def scores(
    predicted: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    train_labels: Mapping[str, Tensor],
    targets: tuple[Target, ...],
) -> dict[str, float]:
    """Return target → score on the test part, as computed by :func:`score`."""
    return {
        t.name: score(predicted[t.name], labels[t.name], t, train_labels[t.name]) for t in targets
    }


def chance(labels: Tensor, target: Target, train_labels: Tensor) -> float:
    """Return the score of predictions that do not depend on the clips.

    - ``kinds`` (several binary labels): the expected mean average precision over random orders of
      the clips; for few clips it exceeds the fraction of positive labels
    - ``event`` (one binary label): 1/2
    - ``number``: 0, the score of predicting the test part's mean
    - ``class``: the accuracy of predicting the most frequent class of the training part
    """
    if target.kind == "event":
        return 0.5
    if target.kind == "number":
        return 0.0
    if target.kind == "class":
        return (labels.long() == train_labels.long().mode().values).double().mean().item()
    scored = scored_kinds(labels, train_labels)
    if not scored.any():
        return math.nan
    n = len(labels)
    harmonic = float((1 / torch.arange(1, n + 1, dtype=torch.float64)).sum())
    positives = labels[:, scored].double().sum(0)
    return float(((harmonic + (positives - 1) / (n - 1) * (n - harmonic)) / n).mean())


def scored_kinds(
    labels: Float[Tensor, "n kinds"], train_labels: Float[Tensor, "m kinds"]
) -> Bool[Tensor, " kinds"]:
    """Return which of several binary labels, such as kinds of objects, can be scored.

    A kind must be in some training clips, and in some but not all test clips.

    Args:
        labels: labels of the test part.
        train_labels: labels of the training part.
    """
    return (labels > 0).any(0) & ~(labels > 0).all(0) & (train_labels > 0).any(0)


def chances(
    test_labels: Mapping[str, Tensor],
    train_labels: Mapping[str, Tensor],
    targets: tuple[Target, ...],
) -> dict[str, float]:
    """Return target → chance level, as computed by :func:`chance`."""
    return {t.name: chance(test_labels[t.name], t, train_labels[t.name]) for t in targets}


def _r2(predicted: Tensor, numbers: Tensor, weights: Tensor) -> Tensor:
    total = weights.sum(1)
    mean = weights @ numbers / total
    # Moments around the mean of all clips, so that constant labels have a variance of exactly 0.
    centred = numbers - numbers.mean()
    spread = weights @ centred.square() - total * (mean - numbers.mean()).square()
    rest = weights @ (predicted - numbers).square()
    least = 1e-12 * total * centred.square().mean()
    return torch.where(spread > least, 1 - rest / spread, torch.nan)


def _cumulative_weights(
    scores: Tensor, positive: Tensor, weights: Tensor
) -> tuple[Float[Tensor, "resamples steps"], Float[Tensor, "resamples steps"]]:
    """For each distinct score, sum the weights of all clips with this or a higher score.

    Returns:
        Sums over positive clips and sums over all clips, both (resamples, distinct scores), in
        descending order of the score.
    """
    ordered, order = scores.sort(descending=True)
    ends = torch.cat((ordered[1:] != ordered[:-1], torch.tensor([True])))
    sorted_weights = weights[:, order]
    hits = (sorted_weights * positive[order]).cumsum(1)[:, ends]
    return hits, sorted_weights.cumsum(1)[:, ends]


def _auroc(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    hits, seen = _cumulative_weights(scores, positive, weights)
    false = seen - hits
    none = torch.zeros(len(weights), 1, dtype=weights.dtype)
    # Ties count half, by the trapezoidal rule.
    heights = (hits + torch.cat((none, hits[:, :-1]), 1)) / 2
    area = (heights * false.diff(dim=1, prepend=none)).sum(1)
    return area / (hits[:, -1] * false[:, -1])


def _average_precision(scores: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Return average precision; NaN if all counted clips are positive or all are negative."""
    hits, seen = _cumulative_weights(scores, positive, weights)
    none = torch.zeros(len(weights), 1, dtype=weights.dtype)
    precision = hits / seen.clamp(min=1)
    found = (hits.diff(dim=1, prepend=none) * precision).sum(1) / hits[:, -1]
    return torch.where(hits[:, -1] < seen[:, -1], found, torch.nan)
