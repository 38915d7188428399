"""Kinds of predicted labels of clips, and a loss for each kind."""

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
    """A label to predict.

    Args:
        name: name of the label in a batch's labels.
        kind: ``kinds`` are several binary labels (n, width). ``event`` is one binary label (n,).
            ``number`` is a quantity (n,). ``class`` is the index of one of ``width`` classes (n,).
        width: number of outputs of a prediction.
    """

    name: str
    kind: TargetKind
    width: int = 1


def columns(labels: Tensor, target: Target) -> Float[Tensor, "n width"]:
    """Convert n labels to numbers (n, width) for regression; classes become one-hot rows."""
    if target.kind == "class":
        return F.one_hot(labels.long(), target.width).double()
    return labels.double().reshape(len(labels), target.width)


@dataclass(frozen=True)
class NumberScale:
    """Mean and standard deviation of training labels of kind ``number``, by name of the label.

    Losses of numbers are computed from standardised labels, so that no label with large values
    dominates the loss.
    """

    mean: dict[str, float]
    std: dict[str, float]

    @classmethod
    def of(cls, labels: Mapping[str, Tensor], targets: tuple[Target, ...]) -> NumberScale:
        """Compute mean and standard deviation of the labels of kind ``number``.

        The standard deviation of a constant label is set to 1.

        Args:
            labels: training labels by name.
            targets: all targets; those of other kinds are ignored.
        """
        numbers = {t.name: labels[t.name].double() for t in targets if t.kind == "number"}
        mean = {name: float(values.mean()) for name, values in numbers.items()}
        std = {name: float(values.std(correction=0)) or 1.0 for name, values in numbers.items()}
        return cls(mean, std)


def target_loss(
    predicted: Float[Tensor, "n width"], labels: Tensor, target: Target, scale: NumberScale
) -> Float[Tensor, ""]:
    """Compute the loss: cross-entropy for classes and binary labels, squared error for numbers.

    Args:
        predicted: logits, or standardised numbers.
        labels: labels in the format of :class:`Target`.
        target: the target.
        scale: scale that standardises numbers.
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
    """Convert standardised predictions of numbers to the labels' units; keep logits."""
    return {
        target.name: predicted[target.name] * scale.std[target.name] + scale.mean[target.name]
        if target.kind == "number"
        else predicted[target.name]
        for target in targets
    }


def split_outputs(
    outputs: Float[Tensor, "n sum_of_widths"], targets: tuple[Target, ...]
) -> dict[str, Float[Tensor, "n width"]]:
    """Split concatenated outputs into one tensor for each target."""
    parts = torch.split(outputs, [target.width for target in targets], dim=1)
    return {target.name: part for target, part in zip(targets, parts, strict=True)}
