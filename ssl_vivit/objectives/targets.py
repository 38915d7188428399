"""Labels of clips that are predicted: their kinds, and the loss for each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TargetKind = Literal["kinds", "event", "number", "class"]


@dataclass(frozen=True)
class Target:
    """A label and its kind.

    Args:
        name: under which a batch's labels hold it.
        kind: ``kinds`` are several yes-or-no questions (n, width), ``event`` is one (n,),
            ``number`` a quantity (n,), ``class`` one of ``width`` classes as an index (n,).
        width: numbers that a prediction of it takes.
    """

    name: str
    kind: TargetKind
    width: int = 1


def columns(labels: Tensor, target: Target) -> Float[Tensor, "n width"]:
    """Labels as columns of numbers to regress on; classes become indicators."""
    if target.kind == "class":
        return F.one_hot(labels.long(), target.width).double()
    return labels.double().reshape(len(labels), target.width)


@dataclass(frozen=True)
class NumberScale:
    """Mean and standard deviation of the numbers among a training part's labels.

    Losses of numbers are taken in these units, so that no target drowns the others.
    """

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def of(cls, labels: Mapping[str, Tensor], targets: tuple[Target, ...]) -> NumberScale:
        """The scale of given labels; a number that never changes has a deviation of 1."""
        numbers = {t.name: labels[t.name].double() for t in targets if t.kind == "number"}
        mean = {name: float(values.mean()) for name, values in numbers.items()}
        std = {name: float(values.std(correction=0)) or 1.0 for name, values in numbers.items()}
        return cls(mean, std)


def target_loss(
    predicted: Float[Tensor, "n width"], labels: Tensor, target: Target, scale: NumberScale
) -> Float[Tensor, ""]:
    """Cross-entropy for questions and classes, squared error in units of ``scale`` for numbers.

    Args:
        predicted: logits, or the number in units of ``scale``.
        labels: as :class:`Target` says.
    """
    if target.kind == "class":
        return F.cross_entropy(predicted, labels.long())
    wanted = labels.to(predicted).reshape(predicted.shape)
    if target.kind == "number":
        wanted = (wanted - scale.mean[target.name]) / scale.std[target.name]
        return F.mse_loss(predicted, wanted)
    return F.binary_cross_entropy_with_logits(predicted, wanted)


def in_label_units(
    predicted: Mapping[str, Tensor], targets: tuple[Target, ...], scale: NumberScale
) -> dict[str, Tensor]:
    """Predicted numbers back from units of ``scale``; logits stay as they are."""
    return {
        target.name: predicted[target.name] * scale.std[target.name] + scale.mean[target.name]
        if target.kind == "number"
        else predicted[target.name]
        for target in targets
    }


def split_outputs(
    outputs: Float[Tensor, "n sum_of_widths"], targets: tuple[Target, ...]
) -> dict[str, Float[Tensor, "n width"]]:
    """Outputs side by side as one tensor for each target, in their order."""
    parts = torch.split(outputs, [target.width for target in targets], dim=1)
    return {target.name: part for target, part in zip(targets, parts, strict=True)}
