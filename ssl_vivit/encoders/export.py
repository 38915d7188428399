"""Encoders as directories: weights, config and a model card, and nothing that executes.

encoder/
  model.safetensors   weights
  config.json         the ViViTConfig and how pixels were prepared
  README.md           model card
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.vivit import ViViT

FORMAT = 1


def save_pretrained(
    encoder: ViViT,
    directory: str | Path,
    *,
    preprocessing: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
) -> None:
    """Write an encoder to a directory that :func:`load_encoder` rebuilds it from.

    The directory appears whole or not at all; an older one of that name is replaced.

    Args:
        encoder: the encoder.
        directory: where to; parents are made.
        preprocessing: pixel range, mean, std, frames per second, frame stride and resize; None
            keeps the encoder's own.
        card: facts for the model card, name → value (objective, data, steps, versions).
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    preprocessing = preprocessing or encoder.preprocessing
    config = {"format": FORMAT, "encoder": encoder.config.to_dict(), "preprocessing": preprocessing}
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        save_file(
            {
                name: value.detach().cpu().contiguous()
                for name, value in encoder.state_dict().items()
            },
            staging / "model.safetensors",
            metadata={"format": "pt"},
        )
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (staging / "README.md").write_text(_model_card(encoder.config, preprocessing, card or {}))
        staging.chmod(0o755)
        _replace(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(new: Path, directory: Path) -> None:
    if not directory.exists():
        os.rename(new, directory)
        return
    old = directory.with_name(f".{directory.name}-old-{os.getpid()}")
    os.rename(directory, old)
    os.rename(new, directory)
    shutil.rmtree(old)


def load_encoder(path: str | Path, **overrides: Any) -> ViViT:
    """Rebuild an exported encoder from its directory alone, in eval mode.

    Args:
        path: a directory written by :func:`save_pretrained`.
        overrides: settings of :class:`ViViTConfig` to change that the weights do not depend on,
            such as ``drop_path`` or, with rotary positions, ``num_frames``.

    Raises:
        FileNotFoundError: if there is no encoder at that path.
        ValueError: for unreadable or incomplete files, or overrides that the weights do not fit.
    """
    path = Path(path)
    config_file, weights_file = path / "config.json", path / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} is no exported encoder: {file.name} is missing; give the directory that "
                "a run writes as RUN/encoder"
            )
    try:
        saved = json.loads(config_file.read_text())
    except ValueError as error:
        raise ValueError(f"{config_file} is not readable as JSON: {error}") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or "encoder" not in saved:
        raise ValueError(
            f"{config_file} is not of encoder format {FORMAT}; it was written by another program "
            "or a newer version of ssl_vivit"
        )
    encoder = ViViT(ViViTConfig.from_dict(_with_overrides(saved["encoder"], overrides)))
    try:
        weights = load_file(weights_file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights_file} is damaged ({error}); export the encoder again") from None
    _check_weights(encoder, weights, weights_file, overrides)
    encoder.load_state_dict(weights)
    encoder.preprocessing = saved.get("preprocessing")
    return encoder.eval()


def _with_overrides(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    settings = settings | overrides
    if "tubelet_size" in overrides and "tubelet_stride" not in overrides:
        settings["tubelet_stride"] = None
    return settings


def _check_weights(
    encoder: ViViT, weights: dict[str, torch.Tensor], file: Path, overrides: dict[str, Any]
) -> None:
    own = encoder.state_dict()
    wrong = [
        f"{name} {tuple(weights[name].shape)} ≠ {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    wrong += [f"{name} missing" for name in own if name not in weights]
    wrong += [f"{name} unexpected" for name in weights if name not in own]
    if wrong:
        shown = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
        cause = f"with {', '.join(overrides)} overridden" if overrides else "of config.json"
        raise ValueError(f"{file} does not fit the encoder {cause}: {shown}")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _model_card(
    config: ViViTConfig, preprocessing: dict[str, Any] | None, card: dict[str, Any]
) -> str:
    facts = {
        "variant": config.variant,
        "clip": f"{config.in_channels} × {config.num_frames} × {config.image_size[0]} × "
        f"{config.image_size[1]} (C, T, H, W)",
        "tubelet": " × ".join(map(str, config.tubelet_size)),
        "width": config.embed_dim,
        "causal in time": "yes" if config.temporal_causal else "no",
        **{f"preprocessing {name}": value for name, value in (preprocessing or {}).items()},
        **card,
    }
    rows = "\n".join(f"| {name} | {_in_words(value)} |" for name, value in facts.items())
    channels, frames, (height, width) = config.in_channels, config.num_frames, config.image_size
    return f"""---
library_name: ssl_vivit
tags: [video, vivit, self-supervised]
---

# ViViT encoder

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
```
"""
