"""Shared parts of the pretraining recipes: settings, a fresh encoder, and clips for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from ssl_vivit.data.video.loader import Clips, DataConfig, build_clips
from ssl_vivit.evaluation.monitors.config import EvaluationConfig, OnlineProbeConfig
from ssl_vivit.training import TrainingConfig

FEW_HELD_OUT = 10

# Encoders are not imported here, not even for type checkers: jsonargparse would import them before
# it prints --help, and they take longer to load than torch.


@dataclass
class EncoderChoice:
    """Choice of the encoder that is trained.

    Args:
        name: a named size: vivit_tiny, vivit_small, vivit_base, vivit_large, vivit_base_16x2,
            vivit_large_16x2, vivit_neural_small or vivit_neural_baseline.
        overrides: settings of ViViTConfig that differ from the size's own, such as
            ``variant factorized_self_attention`` or ``image_size [128, 192]``.
        grad_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    name: str = "vivit_small"
    overrides: dict[str, Any] = field(default_factory=dict)
    grad_checkpointing: bool = False

    def config(self) -> Any:
        """The architecture, a ViViTConfig.

        Raises:
            ValueError: for an unknown size or setting, or values that do not fit each other.
        """
        from ssl_vivit.encoders import named_config

        return named_config(self.name, **self.overrides)

    def build(self, seed: int) -> Any:
        """The encoder, a ViViT, with fresh weights drawn from ``seed``."""
        import torch  # torch is imported after `recipes`, which sets how its threads wait

        from ssl_vivit.encoders import ViViT

        architecture = self.config()
        torch.manual_seed(seed)
        encoder = ViViT(architecture)
        encoder.set_grad_checkpointing(self.grad_checkpointing)
        return encoder


@dataclass
class PretrainingRecipe:
    """Settings of every pretraining recipe, which adds those of its objective.

    Args:
        encoder: the encoder.
        data: videos, clips and augmentations.
        training: the loop.
        evaluation: what is measured and drawn beside training.
        probe: what the encoder knows of CLEVRER's labels, measured beside training.
    """

    encoder: EncoderChoice = field(default_factory=EncoderChoice)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    probe: OnlineProbeConfig = field(default_factory=OnlineProbeConfig)


def introduce(processes: Any, name: str, encoder: Any, data: DataConfig, clips: Clips) -> None:
    """Print a line about the encoder and one about the data on standard error.

    Args:
        processes: of :func:`ssl_vivit.training.join_processes`.
        name: the encoder's size.
        encoder: a ViViT.
        data: names the videos.
        clips: the videos, opened.
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
            f"{held_out} held-out videos are too few for retrieval and probes to say much; raise "
            f"--data.held_out ({data.held_out:g}) or add shards"
        )
    processes.print("\n".join(lines), file=sys.stderr)


def clips_for(architecture: Any, data: DataConfig, seed: int) -> Clips:
    """Training and held-out clips of the geometry of a ViViTConfig."""
    return build_clips(
        data,
        num_frames=architecture.num_frames,
        size=architecture.image_size,
        in_channels=architecture.in_channels,
        seed=seed,
    )
