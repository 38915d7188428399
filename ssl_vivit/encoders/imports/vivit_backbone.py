"""Import ``ViViTBackbone`` of drv-agwl/ViViT-pytorch, a public implementation of Model 3."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.imports.foreign_weights import (
    ForeignWeights,
    as_dict,
    as_tensor,
    built_classifier,
)

_SIZES = ("t", "h", "w", "patch_t", "patch_h", "patch_w")


def from_vivit_backbone(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    pos_embedding: Any = None,
) -> VideoClassifier:
    """Import a ``ViViTBackbone`` with ``model=3``.

    By a mistake of that program, its random positions are not in its state dict, so they must be
    passed as ``pos_embedding=model.pos_embedding``. Without them, new random positions are drawn
    and the outputs differ from those of the trained model. ViViTBackbone also draws new positions
    when it loads a checkpoint.

    Args:
        state_dict: weights of the model; they may contain pos_embedding.
        config: arguments of its constructor. t, h, w, patch_t, patch_h, patch_w and heads are
            required; channels are 3 by default; the others are read from the weights.
        pos_embedding: positions (1, t, h·w, dim). If they are equal at all time steps, they are
            stored as a table over space.

    Returns:
        :class:`VideoClassifier` in eval mode, video (B, C, T, H, W) → logits.

    Raises:
        ValueError: if weights are missing or unexpected (at most ten are named), or if arguments
            contradict them.
    """
    given: dict[str, Any] = {"channels": 3, "model": 3, **as_dict(config)}
    if given["model"] != 3:
        raise ValueError(
            f"model {given['model']} cannot be imported: ViViTBackbone has a forward pass only for "
            "model 3"
        )
    lacking = [name for name in (*_SIZES, "heads") if name not in given]
    if lacking:
        raise ValueError(
            f"config lacks {', '.join(lacking)}: give these arguments of ViViTBackbone, which "
            "cannot be read from its weights"
        )
    weights = ForeignWeights(state_dict, "the ViViTBackbone checkpoint")
    if pos_embedding is None:
        pos_embedding = state_dict.get("pos_embedding")
    ours = _config(weights, given)
    width, classes = ours.embed_dim, len(state_dict["mlp_head.1.weight"])
    table = None if pos_embedding is None else as_tensor(pos_embedding, "pos_embedding")
    if table is None:
        warnings.warn(
            "the positions of a ViViTBackbone are not in its state dict; new ones are drawn, so "
            "outputs differ from those of the trained model; pass "
            "pos_embedding=model.pos_embedding, or add pos_embedding to the state dict",
            stacklevel=2,
        )
        table = torch.randn(1, 1, ours.grid.n, width).expand(1, ours.grid.t, -1, -1)
    if tuple(table.shape) != (1, ours.grid.t, ours.grid.n, width):
        raise ValueError(
            f"pos_embedding {tuple(table.shape)} must be (1, {ours.grid.t}, {ours.grid.n}, {width})"
        )
    state: dict[str, Tensor] = {}
    if bool((table == table[:, :1]).all()):
        state["positions.spatial"] = table[0, 0].clone()
    else:
        settings = {"spatial_positions": None, "temporal_positions": None}
        ours = ViViTConfig.from_dict(ours.to_dict() | settings | {"joint_positions": "learned"})
        state["positions.joint"] = rearrange(table, "1 t n d -> (t n) d")

    t, h, w = ours.tubelet_size
    kernel = weights.take("to_tubelet_embedding.1.weight", width, t * h * w * ours.in_channels)
    state["tubelets.weight"] = rearrange(kernel, "d (t h w c) -> d c t h w", t=t, h=h, w=w)
    state["tubelets.bias"] = weights.take("to_tubelet_embedding.1.bias", width)
    assert ours.depth is not None
    for index in range(ours.depth):
        state |= _block(weights, f"transformer.layers.{index}", f"trunk.blocks.{index}", ours)
    state |= _pair(weights, "mlp_head.0", "pooled_norm", width)
    head = _pair(weights, "mlp_head.1", "head", classes, width)
    weights.finish(ignored=lambda name: name == "pos_embedding")
    return built_classifier(ours, state, head, classes)


def _config(weights: ForeignWeights, given: Mapping[str, Any]) -> ViViTConfig:
    shapes = {}
    for name in (
        "to_tubelet_embedding.1.weight",
        "transformer.layers.0.0.fn.to_qkv.weight",
        "transformer.layers.0.2.fn.net.0.weight",
        "mlp_head.1.weight",
    ):
        if name not in weights:
            raise ValueError(f"the weights do not belong to a ViViTBackbone: {name} is missing")
        shapes[name] = tuple(weights.arrays[name].shape)
    width = shapes["to_tubelet_embedding.1.weight"][0]
    hidden = shapes["transformer.layers.0.2.fn.net.0.weight"][0]
    inner = shapes["transformer.layers.0.0.fn.to_qkv.weight"][0] // 3
    heads = given["heads"]
    if type(heads) is not int or heads < 1 or inner % heads:
        raise ValueError(
            f"heads {heads!r} must be a whole number that divides the width of the queries, {inner}"
        )
    blocks = {
        match[1]
        for name in weights.arrays
        if (match := re.match(r"transformer\.layers\.(\d+)\.", name))
    }
    found = {
        "dim": width,
        "dim_head": inner // heads,
        "mlp_dim": hidden,
        "depth": len(blocks),
        "num_classes": shapes["mlp_head.1.weight"][0],
    }
    for name, value in found.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} is {given[name]} in the config but {value} in the weights")
    t, h, w, patch_t, patch_h, patch_w = (given[name] for name in _SIZES)
    return ViViTConfig(
        variant="factorized_self_attention",
        in_channels=given["channels"],
        num_frames=t,
        image_size=(h, w),
        tubelet_size=(patch_t, patch_h, patch_w),
        embed_dim=width,
        num_heads=heads,
        head_dim=found["dim_head"],
        mlp_ratio=hidden / width,
        depth=len(blocks),
        norm_eps=1e-5,
        final_norm="pooled",
        qkv_bias=False,
        temporal_positions="none",
        pooling="mean",
    )


def _block(
    weights: ForeignWeights, theirs: str, ours: str, config: ViViTConfig
) -> dict[str, Tensor]:
    assert config.head_dim is not None
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    hidden = round(config.mlp_ratio * width)
    state: dict[str, Tensor] = {}
    for index, axis in enumerate(("space", "time")):
        name = f"{theirs}.{index}"
        state |= _pair(weights, f"{name}.norm", f"{ours}.{axis}_norm", width)
        qkv = f"{name}.fn.to_qkv.weight"
        state[f"{ours}.{axis}.qkv.weight"] = weights.take(qkv, 3 * inner, width)
        if config.num_heads == 1 and inner == width:
            # ViViTBackbone has no output projection for one head of full width.
            state[f"{ours}.{axis}.proj.weight"] = torch.eye(width)
            state[f"{ours}.{axis}.proj.bias"] = torch.zeros(width)
        else:
            state |= _pair(weights, f"{name}.fn.to_out.0", f"{ours}.{axis}.proj", width, inner)
    state |= _pair(weights, f"{theirs}.2.norm", f"{ours}.mlp_norm", width)
    state |= _pair(weights, f"{theirs}.2.fn.net.0", f"{ours}.mlp.fc1", hidden, width)
    state |= _pair(weights, f"{theirs}.2.fn.net.3", f"{ours}.mlp.fc2", width, hidden)
    return state


def _pair(weights: ForeignWeights, theirs: str, ours: str, *shape: int) -> dict[str, Tensor]:
    """Return weight and bias of a linear layer or a norm."""
    return {
        f"{ours}.weight": weights.take(f"{theirs}.weight", *shape),
        f"{ours}.bias": weights.take(f"{theirs}.bias", shape[0]),
    }
