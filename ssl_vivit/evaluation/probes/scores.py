"""One figure for each target, higher is better, beside what chance reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.regression import r2_score

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
    """How well a target is predicted on the test part.

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
        The figure; NaN where the test part has too few different labels to tell.
    """
    predicted = predicted.double().cpu()
    if target.kind == "class":
        return (predicted.argmax(1) == labels.long()).double().mean().item()
    if target.kind == "number":
        numbers = labels.double().flatten()
        if len(numbers) < 2 or not numbers.var():
            return math.nan
        return float(r2_score(predicted.flatten(), numbers))
    # torchmetrics takes scores outside [0, 1] for logits; ranks are neither squashed nor tied.
    ranks = _ranks(predicted)
    if target.kind == "event":
        if not 0 < labels.sum() < len(labels):
            return math.nan
        return float(binary_auroc(ranks[:, 0], labels.flatten().long()))
    scored = scored_kinds(labels, train_labels)
    if not scored.any():
        return math.nan
    # torchmetrics' multilabel form refuses a single kind.
    each = [
        binary_average_precision(ranks[:, k], labels[:, k].long())
        for k in torch.nonzero(scored).flatten().tolist()
    ]
    return float(torch.stack(each).mean())


def chance(labels: Tensor, target: Target, train_labels: Tensor) -> float:
    """The figure of predictions that know nothing of the clips.

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
    """Kinds that can be learned from the one part and told on the other."""
    return (labels > 0).any(0) & ~(labels > 0).all(0) & (train_labels > 0).any(0)


def chances(
    test_labels: Mapping[str, Tensor],
    train_labels: Mapping[str, Tensor],
    targets: tuple[Target, ...],
) -> dict[str, float]:
    """:func:`chance` of each target."""
    return {t.name: chance(test_labels[t.name], t, train_labels[t.name]) for t in targets}


def _ranks(scores: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    """Each column's scores as numbers in (0, 1] of the same order; equal ones stay equal."""
    ranks = [torch.unique(column, return_inverse=True)[1] + 1 for column in scores.T]
    return torch.stack(ranks, 1).double() / len(scores)
