"""Import ViViT checkpoints of google-research/scenic (JAX), all four models, with equal outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.imports.foreign_weights import ForeignWeights, as_dict, built_classifier
from ssl_vivit.encoders.imports.scenic_checkpoint import read_scenic_checkpoint
from ssl_vivit.encoders.imports.scenic_model import (
    KINDS,
    ScenicModel,
    ScenicTransformer,
    scenic_model,
    video_shape_of,
)
from ssl_vivit.preprocessing import Preprocessing

__all__ = ["from_scenic", "read_scenic_checkpoint"]

_REDUCTIONS = {"gap": "mean", "gmp": "max", "gsp": "sum", "0": "first"}


def from_scenic(
    params: Mapping[str, np.ndarray],
    model_config: Any = None,
    video_shape: Sequence[int] | None = None,
) -> VideoClassifier:
    """Make a classifier that computes the outputs of a Scenic ViViT.

    Depth, heads, widths, patch sizes and classes are read from the arrays and checked against the
    config. If the two transformers of Model 2 differ in heads or MLP width, the narrower one is
    padded with zeros whose gradients are zero, so its output does not change.

    Args:
        params: '/'-joined flax names → arrays, from :func:`read_scenic_checkpoint`.
        model_config: the model part of a Scenic config, as ml_collections config or dicts. Settings
            that can be read from the arrays may be missing. None stands for an empty config.
        video_shape: (T, H, W, C) of the clips. It may be None for Model 2: the shape is then read
            from the position tables, and the token grid is assumed to be square.

    Returns:
        :class:`VideoClassifier` in eval mode: video (B, C, T, H, W) with pixels in [−1, 1] → logits
        (B, classes), or the pooled vector if there is no output projection.

    Raises:
        ValueError: if arrays are missing, unexpected (at most ten are named) or contradict the
            config, or if frames are sampled from clips whose height is not a multiple of the
            patch height.
    """
    model = scenic_model(params, {} if model_config is None else as_dict(model_config))
    shape = video_shape_of(params, model) if video_shape is None else tuple(video_shape)
    config = _encoder_config(model, shape)
    weights = ForeignWeights(params, "the Scenic checkpoint")
    state = _stem(weights, model, config) | _tables(weights, model, config)
    for name, transformer in model.transformers.items():
        ours = {"SpatialTransformer": "spatial_", "TemporalTransformer": "temporal_"}.get(name, "")
        state |= _norm(weights, f"{name}/encoder_norm", f"trunk.{ours}norm", model.width)
        for index in range(transformer.depth):
            state |= _block(
                weights,
                f"{name}/encoderblock_{index}",
                f"trunk.{ours}blocks.{index}",
                config,
                transformer,
            )
    head: dict[str, Tensor] = {}
    width = model.width
    if model.representation_size is not None:
        head |= _dense(weights, "pre_logits", "representation", width, model.representation_size)
        width = model.representation_size
    if model.num_classes:
        head |= _dense(weights, "output_projection", "head", width, model.num_classes)
    weights.finish()
    classifier = built_classifier(config, state, head, model.num_classes, model.representation_size)
    classifier.encoder.preprocessing = Preprocessing(
        channels="rgb" if model.channels == 3 else "luma",
        mean=(0.5,) * model.channels,
        std=(0.5,) * model.channels,
        resize=config.image_size,
    )
    return classifier


def _encoder_config(model: ScenicModel, video_shape: tuple[int, ...]) -> ViViTConfig:
    if len(video_shape) != 4 or video_shape[3] != model.channels:
        raise ValueError(
            f"video_shape {video_shape} must be (T, H, W, C) with C = {model.channels}, the "
            "number of "
            "channels of embedding/kernel"
        )
    frames, height, width = video_shape[:3]
    t, h, w = model.kernel
    if model.sampled_frames is not None and height % h:
        raise ValueError(
            f"video_shape height {height} is not a multiple of the patch height {h}: Scenic stacks "
            "sampled frames before it cuts patches, which would then cross frames; use "
            f"{height - height % h}"
            f" or {height + h - height % h}"
        )
    fits = frames % t == height % h == width % w == 0
    sizes = model.transformers.values()
    heads = max(size.num_heads for size in sizes)
    settings: dict[str, Any] = {
        "variant": KINDS[model.kind],
        "in_channels": model.channels,
        "num_frames": frames,
        "image_size": (height, width),
        "tubelet_size": (t, h, w),
        "remainder": "error" if fits else "crop",
        "embed_dim": model.width,
        "num_heads": heads,
        "head_dim": max(size.head_dim for size in sizes),
        "mlp_ratio": max(size.mlp_dim for size in sizes) / model.width,
        "activation": "gelu_tanh",
    }
    if model.sampled_frames is not None:
        settings |= {
            "tubelet_embedding": "uniform_frames",
            "sampled_frames": model.sampled_frames,
        }
    token = model.classifier == "token"
    if model.kind == "factorized_encoder":
        temporal = model.transformers.get("TemporalTransformer")
        pooling = "temporal_cls" if token else _REDUCTIONS[model.classifier]
        if temporal is None:
            # Scenic's spatial-only baseline averages over frames for every classifier setting.
            pooling = "cls_mean" if token else "mean"
        settings |= {
            "spatial_depth": model.transformers["SpatialTransformer"].depth,
            "temporal_depth": 0 if temporal is None else temporal.depth,
            "class_token": token,
            "frame_pooling": "none" if token else _REDUCTIONS[model.classifier],
            "pooling": pooling,
        }
    else:
        settings |= {
            "depth": model.transformers["Transformer"].depth,
            "class_token": token,
            "pooling": "cls_mean" if token else _REDUCTIONS[model.classifier],
            "joint_positions": "learned",
        }
    if model.attention_order:
        settings["attention_order"] = model.attention_order
    return ViViTConfig(**settings)


def _stem(weights: ForeignWeights, model: ScenicModel, config: ViViTConfig) -> dict[str, Tensor]:
    _, h, w = model.kernel
    if model.sampled_frames is not None:
        kernel = weights.take("embedding/kernel", h, w, model.channels, model.width)[None]
    else:
        kernel = weights.take("embedding/kernel", *model.kernel, model.channels, model.width)
    state = {
        "tubelets.weight": rearrange(kernel, "t h w c d -> d c t h w"),
        "tubelets.bias": weights.take("embedding/bias", model.width),
    }
    if model.classifier != "token":
        return state
    if model.kind != "factorized_encoder":
        return state | {"trunk.class_token": weights.take("cls", 1, 1, model.width).flatten()}
    for name in model.transformers:
        ours = "class_token" if name == "SpatialTransformer" else "temporal_class_token"
        state[f"trunk.{ours}"] = weights.take(f"cls_{name}", 1, 1, model.width).flatten()
    return state


def _tables(weights: ForeignWeights, model: ScenicModel, config: ViViTConfig) -> dict[str, Tensor]:
    """Convert Scenic's position tables, which like ViViT's begin with the row of a class token."""
    grid = config.grid
    if model.kind == "factorized_encoder":
        lengths = {"spatial": grid.n, "temporal": grid.t}
        names = {"spatial": "SpatialTransformer", "temporal": "TemporalTransformer"}
    else:
        lengths, names = {"joint": grid.t * grid.n}, {"joint": "Transformer"}
    return {
        f"positions.{ours}": weights.take(
            f"{name}/posembed_input/pos_embedding",
            1,
            model.class_slots + lengths[ours],
            model.width,
        )[0]
        for ours, name in names.items()
        if name in model.transformers
    }


def _block(
    weights: ForeignWeights,
    theirs: str,
    ours: str,
    config: ViViTConfig,
    size: ScenicTransformer,
) -> dict[str, Tensor]:
    width = config.embed_dim
    if config.variant == "factorized_self_attention":
        state = _mlp(weights, f"{theirs}/MlpBlock", f"{ours}.mlp", config, size)
        state |= _norm(weights, f"{theirs}/LayerNorm_mlp", f"{ours}.mlp_norm", width)
        for axis in ("space", "time"):
            attention = f"{theirs}/MultiHeadDotProductAttention_{axis}"
            state |= _attention(weights, attention, f"{ours}.{axis}", config, size)
            state |= _norm(weights, f"{theirs}/LayerNorm_{axis}", f"{ours}.{axis}_norm", width)
        return state
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    return {
        **_norm(weights, f"{theirs}/LayerNorm_0", f"{ours}.attention_norm", width),
        **_attention(weights, attention, f"{ours}.attention", config, size),
        **_norm(weights, f"{theirs}/LayerNorm_1", f"{ours}.mlp_norm", width),
        **_mlp(weights, f"{theirs}/MlpBlock_0", f"{ours}.mlp", config, size),
    }


def _attention(
    weights: ForeignWeights,
    theirs: str,
    ours: str,
    config: ViViTConfig,
    size: ScenicTransformer,
) -> dict[str, Tensor]:
    assert config.head_dim is not None
    d, heads, head_dim = config.embed_dim, size.num_heads, size.head_dim
    # Pad each head and the list of heads with zeros. Logits are divided by the square root of the
    # padded head width, so queries are rescaled.
    filling = (0, config.head_dim - head_dim, 0, config.num_heads - heads)
    unchanged = (config.head_dim / head_dim) ** 0.5
    kernels, biases = [], []
    for name in ("query", "key", "value"):
        kernel = weights.take(f"{theirs}/{name}/kernel", d, heads, head_dim)
        bias = weights.take(f"{theirs}/{name}/bias", heads, head_dim)
        scale = unchanged if name == "query" else 1.0
        kernels.append(rearrange(F.pad(kernel * scale, filling), "d h k -> (h k) d"))
        biases.append(F.pad(bias * scale, filling).flatten())
    out = weights.take(f"{theirs}/out/kernel", heads, head_dim, d)
    return {
        f"{ours}.qkv.weight": torch.cat(kernels),
        f"{ours}.qkv.bias": torch.cat(biases),
        f"{ours}.proj.weight": rearrange(F.pad(out, (0, 0, *filling)), "h k d -> d (h k)"),
        f"{ours}.proj.bias": weights.take(f"{theirs}/out/bias", d),
    }


def _mlp(
    weights: ForeignWeights,
    theirs: str,
    ours: str,
    config: ViViTConfig,
    size: ScenicTransformer,
) -> dict[str, Tensor]:
    d, hidden = config.embed_dim, size.mlp_dim
    state = _dense(weights, f"{theirs}/Dense_0", f"{ours}.fc1", d, hidden)
    state |= _dense(weights, f"{theirs}/Dense_1", f"{ours}.fc2", hidden, d)
    # Hidden units with zero weights stay zero after GELU.
    filling = round(config.mlp_ratio * d) - hidden
    return state | {
        f"{ours}.fc1.weight": F.pad(state[f"{ours}.fc1.weight"], (0, 0, 0, filling)),
        f"{ours}.fc1.bias": F.pad(state[f"{ours}.fc1.bias"], (0, filling)),
        f"{ours}.fc2.weight": F.pad(state[f"{ours}.fc2.weight"], (0, filling)),
    }


def _dense(
    weights: ForeignWeights, theirs: str, ours: str, inputs: int, outputs: int
) -> dict[str, Tensor]:
    return {
        f"{ours}.weight": weights.take(f"{theirs}/kernel", inputs, outputs).T,
        f"{ours}.bias": weights.take(f"{theirs}/bias", outputs),
    }


def _norm(weights: ForeignWeights, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    return {
        f"{ours}.weight": weights.take(f"{theirs}/scale", width),
        f"{ours}.bias": weights.take(f"{theirs}/bias", width),
    }
