"""Supervised training of a whole encoder on labels of clips, to compare with frozen features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.encoders import VideoClassifier, ViViT
from ssl_vivit.objectives.contract import Objective, Step
from ssl_vivit.objectives.targets import (
    NumberScale,
    Target,
    in_label_units,
    split_outputs,
    target_loss,
)


class Supervised(Objective):
    """Training of a classifier whose concatenated outputs predict several targets.

    Args:
        encoder: the encoder to be trained.
        targets: targets to predict.
        scale: mean and standard deviation of the targets of kind ``number``.
        preprocessing: preprocessing of the clips, which is saved with the exported classifier.
        drop_rate: rate of dropout before the head.

    Raises:
        ValueError: if ``targets`` is empty.
    """

    def __init__(
        self,
        encoder: ViViT,
        targets: tuple[Target, ...],
        scale: NumberScale,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not targets:
            raise ValueError("targets is empty; give at least one target")
        self.targets, self.scale, self.preprocessing = targets, scale, preprocessing
        outputs = sum(target.width for target in targets)
        self.classifier = VideoClassifier(encoder, outputs, drop_rate=drop_rate)

    def forward(self, batch: dict[str, Any]) -> Step:
        """Compute the loss of a batch: the mean of the losses of all targets.

        Args:
            batch: dictionary with ``clips`` (b, views, C, T, H, W) and ``labels``, a dictionary
                from the name of each target to the labels (b, …).

        Returns:
            Loss and metrics. The metrics are the losses of the targets, ``loss_<name>``.
        """
        outputs = self.outputs(batch["clips"]).float()
        losses = {
            t.name: target_loss(part, batch["labels"][t.name], t, self.scale)
            for t, part in zip(
                self.targets, split_outputs(outputs, self.targets).values(), strict=True
            )
        }
        metrics = {f"loss_{name}": loss.detach() for name, loss in losses.items()}
        return Step(torch.stack(list(losses.values())).mean(), metrics)

    def outputs(self, clips: Float[Tensor, "b views c T H W"]) -> Float[Tensor, "b outputs"]:
        """Return the classifier's outputs for each video (b, outputs), averaged over its clips."""
        video = rearrange(clips, "b views c T H W -> (b views) c T H W")
        return rearrange(self.classifier(video), "(b v) k -> b v k", v=clips.shape[1]).mean(1)

    @torch.no_grad()
    def predict(
        self, clips: Float[Tensor, "b views c T H W"]
    ) -> dict[str, Float[Tensor, "b width"]]:
        """Return the prediction of each target: logits, or numbers in the labels' units."""
        parts = split_outputs(self.outputs(clips).float(), self.targets)
        return in_label_units(parts, self.targets, self.scale)

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Export encoder and head to a directory."""
        names = ", ".join(target.name for target in self.targets)
        card = {"objective": f"supervised training on {names}", **training}
        self.classifier.save_pretrained(directory, preprocessing=self.preprocessing, card=card)
