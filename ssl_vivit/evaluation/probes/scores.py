"""Scores of predictions, one number for each target, higher is better; and chance levels."""

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
    """Score of a target's prediction on the test part.

    - ``kinds``: average precision, averaged over the kinds that some clips of both parts show and
      some clips of the test part do not
    - ``event``: area under the ROC curve
    - ``number``: R², the share of the test part's variance that is explained; below 0 is worse
      than its mean
    - ``class``: accuracy

    Args:
        predicted: scores, of which only the order matters, except for numbers.
        labels: of the test part, as :class:`Target` says.
        target: what they are.
        train_labels: of the training part.

    Returns:
        The score; NaN where the test part has too few different labels to tell.
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
    """Scores of a test part of which each clip counts as often as its weight says.

    Args:
        predicted, labels, target, train_labels: as there.
        weights: whole numbers as float64; each row makes a score of its own.

    Returns:
        (rows,) in float64; NaN where a row has too few different labels to tell.
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
    """:func:`score` of each target."""
    return {
        t.name: score(predicted[t.name], labels[t.name], t, train_labels[t.name]) for t in targets
    }


def chance(labels: Tensor, target: Target, train_labels: Tensor) -> float:
    """Return the score of predictions that do not depend on the clips.

    For ``kinds`` the exact mean over all random orders, which is above the kinds' frequency in
    small parts; for ``event`` 1/2; for ``number`` 0, the test part's mean; for ``class`` always
    the most frequent class of the training part.
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
    """Return the kinds of labels that can be trained on one part and scored on the other."""
    return (labels > 0).any(0) & ~(labels > 0).all(0) & (train_labels > 0).any(0)


def chances(
    test_labels: Mapping[str, Tensor],
    train_labels: Mapping[str, Tensor],
    targets: tuple[Target, ...],
) -> dict[str, float]:
    """:func:`chance` of each target."""
    return {t.name: chance(test_labels[t.name], t, train_labels[t.name]) for t in targets}


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
