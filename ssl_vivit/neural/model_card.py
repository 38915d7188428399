"""The README.md of an exported model of neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders import ViViT
from ssl_vivit.exported.card import model_card
from ssl_vivit.neural.cores.block_reader import blocks_told
from ssl_vivit.neural.model import NeuralModel


def neural_model_card(
    model: NeuralModel, facts: Sequence[SessionFacts], training: Mapping[str, Any]
) -> str:
    """Return a model card in the hub's format, with a table of the sessions and an example.

    Args:
        model: the model.
        facts: ``SessionFacts`` of its sessions.
        training: names and values of further rows in the card's table of the model's parts.
    """
    blocks = {}
    if isinstance(model.encoder, ViViT):
        blocks["blocks read"] = blocks_told(model.encoder, model.block_reader)
    parts = {
        "core": type(model.encoder).__name__,
        **blocks,
        "adapter": "none" if model.adapter is None else type(model.adapter).__name__,
        "modulator": "none" if model.modulator is None else type(model.modulator).__name__,
        "nonlinearity": model.nonlinearity,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        **training,
    }
    sessions = "\n".join(
        f"| {each.name} | {len(each.unit_ids)} | {each.kind} | {each.frames_per_second:g} | "
        f"{each.frame_size[0]}×{each.frame_size[1]} | {len(each.split.get('train', ()))} |"
        for each in facts
    )
    first = facts[0]
    height, width = first.frame_size
    behaviour = ""
    if model.behaviour_channels:
        count = first.recorded_channels or max(first.behaviour_channels) + 1
        behaviour = f"\nbehaviour = np.zeros((1, 120, {count}))  # (B, T, K), as recorded"
    given = "video, behaviour" if behaviour else "video"
    body = f"""| session | neurons | responses | frames/s | screen | training trials |
|---|---:|---|---:|---|---:|
{sessions}

```python
import numpy as np
from ssl_vivit.neural import load_neural_model

model = load_neural_model("path/to/this/directory")
video = np.zeros((1, 120, {height}, {width}), np.uint8)  # (B, T, H, W), pixels from 0 to 255{behaviour}
rates = model.predict({given}, session={first.name!r})  # (1, 120, {len(first.unit_ids)}) in a frame
```
"""
    return model_card("Model of neurons", ("video", "vivit", "neuroscience"), parts, body)
