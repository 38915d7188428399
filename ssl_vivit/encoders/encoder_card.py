"""The model card of an exported encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.exported.card import model_card
from ssl_vivit.preprocessing import Preprocessing


def encoder_card(
    config: ViViTConfig,
    preprocessing: Preprocessing | None,
    facts: Mapping[str, Any],
    num_classes: int | None = None,
) -> str:
    """Return the model card of an encoder, in Markdown.

    Args:
        config: architecture of the encoder.
        preprocessing: conversion of video frames to the encoder's input.
        facts: further rows of the card's table, as a mapping from name to value, such as the
            objective and the data of training.
        num_classes: number of classes, if a classifier is exported.
    """
    channels, frames, (height, width) = config.in_channels, config.num_frames, config.image_size
    rows = {
        "variant": config.variant,
        "clip": f"{channels} × {frames} × {height} × {width} (C, T, H, W)",
        "tubelet": " × ".join(map(str, config.tubelet_size)),
        "width": config.embed_dim,
        "causal in time": "yes" if config.temporal_causal else "no",
        **({} if num_classes is None else {"classes": num_classes}),
        **{f"preprocessing {name}": value for name, value in (preprocessing or {}).items()},
        **facts,
    }
    classifier = ""
    if num_classes is not None:
        classifier = f"""
from ssl_vivit import VideoClassifier

logits = VideoClassifier.from_pretrained("path/to/this/directory")(video)  # (B, {num_classes})
"""
    body = f"""```python
import torch
from ssl_vivit import load_encoder

encoder = load_encoder("path/to/this/directory")
video = torch.rand(1, {channels}, {frames}, {height}, {width})  # (B, C, T, H, W), see preprocessing
output = encoder(video)
output.pooled, output.tokens  # (B, {config.embed_dim}), (B, t, h·w, {config.embed_dim})
{classifier}```
"""
    title = f"ViViT {'encoder' if num_classes is None else 'classifier'}"
    return model_card(title, ("video", "vivit", "self-supervised"), rows, body)
