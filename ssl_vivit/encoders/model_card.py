"""The README.md of an exported encoder."""

from __future__ import annotations

from typing import Any

from ssl_vivit.encoders.config import ViViTConfig


def model_card(
    config: ViViTConfig,
    preprocessing: dict[str, Any] | None,
    classifier: dict[str, Any] | None,
    facts: dict[str, Any],
) -> str:
    """A model card in the hub's format: what the encoder is, and how to use it.

    Args:
        config: the architecture.
        preprocessing: how pixels were prepared.
        classifier: num_classes, representation_size and drop_rate, where there is a head.
        facts: further rows, name → value.
    """
    facts = {
        "variant": config.variant,
        "clip": f"{config.in_channels} × {config.num_frames} × {config.image_size[0]} × "
        f"{config.image_size[1]} (C, T, H, W)",
        "tubelet": " × ".join(map(str, config.tubelet_size)),
        "width": config.embed_dim,
        "causal in time": "yes" if config.temporal_causal else "no",
        **({"classes": classifier["num_classes"]} if classifier else {}),
        **{f"preprocessing {name}": value for name, value in (preprocessing or {}).items()},
        **facts,
    }
    rows = "\n".join(f"| {name} | {_in_words(value)} |" for name, value in facts.items())
    channels, frames, (height, width) = config.in_channels, config.num_frames, config.image_size
    logits = (
        f"""
from ssl_vivit import VideoClassifier

logits = VideoClassifier.from_pretrained("path/to/this/directory")(video)  # (B, {classifier["num_classes"]})
"""
        if classifier
        else ""
    )
    return f"""---
library_name: ssl_vivit
tags: [video, vivit, self-supervised]
---

# ViViT {"classifier" if classifier else "encoder"}

| | |
|---|---|
{rows}

```python
import torch
from ssl_vivit import load_encoder

encoder = load_encoder("path/to/this/directory")
video = torch.rand(1, {channels}, {frames}, {height}, {width})  # (B, C, T, H, W), see preprocessing
output = encoder(video)
output.pooled, output.tokens  # (B, {config.embed_dim}), (B, t, h·w, {config.embed_dim})
{logits}```
"""


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        # Lists are for programs; config.json has them.
        rows = {name: part for name, part in value.items() if not isinstance(part, list)}
        return ", ".join(f"{name} {part}" for name, part in rows.items())
    return str(value)
