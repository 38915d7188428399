"""Shared parts of the pretraining recipes: settings, the encoder and its clips."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from ssl_vivit.data.video.loader import Clips, DataConfig, build_clips
from ssl_vivit.evaluation.features.preparation import LEAST_SHOWN, fitting_size, fraction_shown
from ssl_vivit.evaluation.monitors.config import EvaluationConfig, OnlineProbeConfig
from ssl_vivit.training import TrainingConfig

FEW_HELD_OUT = 10

# Encoders are not imported here, not even for type checkers: jsonargparse would import them before
# it prints --help, and they take longer to load than torch.


@dataclass
class EncoderChoice:
    """Choice of the encoder to train.

    Args:
        name: a named size: vivit_tiny, vivit_small, vivit_base, vivit_large, vivit_base_16x2,
            vivit_large_16x2, vivit_neural_small or vivit_neural_baseline.
        overrides: settings of ViViTConfig that replace those of the named size, such as ``variant
            factorized_self_attention`` or ``image_size [128, 192]``.
        grad_checkpointing: recompute activations in the backward pass, which saves memory and takes
            more time.
    """

    name: str = "vivit_small"
    overrides: dict[str, Any] = field(default_factory=dict)
    grad_checkpointing: bool = False

    def config(self) -> Any:
        """Return the architecture, a ViViTConfig.

        Raises:
            ValueError: for an unknown size or setting, or values that do not fit each other.
        """
        from ssl_vivit.encoders import named_config

        return named_config(self.name, **self.overrides)

    def build(self, seed: int) -> Any:
        """Return a ViViT with random weights drawn from ``seed``."""
        import torch  # imported after `recipes`, which sets how torch's threads wait

        from ssl_vivit.encoders import ViViT

        architecture = self.config()
        torch.manual_seed(seed)
        encoder = ViViT(architecture)
        encoder.set_grad_checkpointing(self.grad_checkpointing)
        return encoder


@dataclass
class PretrainingRecipe:
    """Settings of all pretraining recipes; each recipe adds the settings of its objective.

    Args:
        encoder: the encoder.
        data: videos, clips and augmentations.
        training: the training loop.
        evaluation: metrics and figures during training.
        probe: probes of CLEVRER's labels during training.
    """

    encoder: EncoderChoice = field(default_factory=EncoderChoice)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probe: OnlineProbeConfig = field(default_factory=OnlineProbeConfig)


def introduce(processes: Any, name: str, encoder: Any, data: DataConfig, clips: Clips) -> None:
    """Print a line about the encoder and a line about the data on standard error.

    Further lines warn of few held-out videos, and of clips that show less than 80 % of a frame
    because their aspect ratio differs.

    Args:
        processes: result of :func:`ssl_vivit.training.join_processes`.
        name: name of the encoder's size.
        encoder: a ViViT.
        data: settings of the data.
        clips: the opened videos.
    """
    architecture = encoder.config
    height, width = architecture.image_size
    parameters = sum(weight.numel() for weight in encoder.parameters()) / 1e6
    held_out = 0 if clips.held_out is None else len(clips.held_out)
    shards = data.shards if isinstance(data.shards, str) else ", ".join(data.shards or [])
    lines = [
        f"encoder  {name}, {architecture.variant}: {architecture.num_frames} frames of "
        f"{height}×{width}, {parameters:.1f} M parameters",
        f"data     {len(clips.train)} videos to train on, {held_out} held out: {shards}",
    ]
    if held_out < FEW_HELD_OUT:
        lines.append(
            f"{held_out} held-out videos are too few for meaningful retrieval and probe scores; "
            "raise "
            f"--data.held_out ({data.held_out:g}) or add shards"
        )
    frames = clips.train.dataset.decoded_size
    shown = fraction_shown(architecture.image_size, frames)
    if shown < LEAST_SHOWN:
        fitting = " ".join(map(str, fitting_size(encoder, frames)))
        lines.append(
            f"clips of {height}×{width} without augmentation show {shown:.0%} of frames of "
            f"{frames[0]}×{frames[1]}, because the aspect ratios differ; for clips of whole "
            f"frames, set --encoder.overrides.image_size {fitting}"
        )
    processes.print("\n".join(lines), file=sys.stderr)


def clips_for(architecture: Any, data: DataConfig, seed: int) -> Clips:
    """Open training and held-out clips of the length, size and channels of a ViViTConfig."""
    return build_clips(
        data,
        num_frames=architecture.num_frames,
        size=architecture.image_size,
        in_channels=architecture.in_channels,
        seed=seed,
    )
