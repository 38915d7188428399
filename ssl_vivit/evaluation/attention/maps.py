"""Attention weights of an encoder, computed explicitly: fused attention does not return them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders import ViViT, ViViTConfig
from ssl_vivit.encoders.pooling import AttentionPooling
from ssl_vivit.encoders.trunks.blocks import HeadAttention, PlainMask
from ssl_vivit.encoders.trunks.frame_blocks import FrameBlocks
from ssl_vivit.evaluation.attention.rollout import Readout, readout, rollout
from ssl_vivit.evaluation_mode import evaluation_mode
from ssl_vivit.grid import Grid

Axis = Literal["spatial", "temporal", "joint"]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights of the recorded layers of an encoder, for b clips.

    The weights of a query over all keys sum to 1. Layers are numbered in the order of computation;
    in Model 2 the temporal blocks follow the spatial blocks.

    The q queries and the k keys are the tokens of a sequence, in this order:

    - over space: class token, registers, patches of one time step
    - over time: registers, time steps, temporal class token
    - in Model 1: class token, registers, patches of all time steps

    ``special_tokens`` is the number of tokens before the patches. ``temporal_registers`` is the
    number of tokens before the time steps.

    Attributes:
        config: the encoder's architecture.
        grid: size (t, h, w) of the token grid of a clip.
        readout: weights of the tokens in the pooled vector.
        spatial: attention within each of t time steps (Models 2 to 4), as tensors
            (b, t, heads, q, k) by layer.
        temporal: attention over time at each of m positions (Models 2 to 4), as tensors
            (b, m, heads, q, k) by layer. The last h·w positions are those of the patches. In Model
            2 the class token or the pooled frame vector, if there is one, is the first position.
        joint: attention over all tokens (Model 1), as tensors (b, heads, q, k) by layer.
    """

    config: ViViTConfig
    grid: Grid
    readout: Readout
    spatial: dict[int, Tensor] = field(default_factory=dict)
    temporal: dict[int, Tensor] = field(default_factory=dict)
    joint: dict[int, Tensor] = field(default_factory=dict)

    @property
    def special_tokens(self) -> int:
        """Number of class and register tokens before the patches, over space and in Model 1."""
        return int(bool(self.config.class_token)) + self.config.register_tokens

    @property
    def temporal_registers(self) -> int:
        """Number of registers before the time steps of a sequence over time."""
        return self.config.register_tokens

    def within_frames(self, layer: int) -> Float[Tensor, "b t heads n n"]:
        """Return attention between the n patches of each time step, (b, t, heads, n, n).

        The last axis is that of the keys. Class tokens and registers are left out. In Model 1 the
        patches of other time steps are left out as well. If keys are left out, the weights of a
        query sum to less than 1.

        Raises:
            ValueError: if the layer has no attention over space or was not recorded.
        """
        before, steps = self.special_tokens, self.grid.t
        if self.config.variant == "joint":
            weights = rearrange(
                self._of(self.joint, layer)[..., before:, before:],
                "b heads (t n) (s k) -> b heads n k t s",
                t=steps,
                s=steps,
            )
            return rearrange(weights.diagonal(dim1=-2, dim2=-1), "b heads n k t -> b t heads n k")
        return self._of(self.spatial, layer)[..., before:, before:]

    def over_time(self, layer: int) -> Float[Tensor, "b n heads t t"]:
        """Return attention of patches to time steps, (b, n, heads, t, t), for n patch positions.

        The last axis is that of the time steps that are attended to. Class tokens and registers are
        left out. In Model 1 attention is summed over the patches of each time step. In the other
        models a patch attends only to patches at its own position.

        Raises:
            ValueError: if the layer has no attention over time or was not recorded.
        """
        if self.config.variant == "joint":
            before = self.special_tokens
            weights = self._of(self.joint, layer)[..., before:, before:]
            shape = "b heads (t n) (s k) -> b n heads t s k"
            return rearrange(weights, shape, t=self.grid.t, s=self.grid.t).sum(-1)
        weights = self._of(self.temporal, layer)[:, -self.grid.n :]
        steps = slice(self.temporal_registers, self.temporal_registers + self.grid.t)
        return weights[..., steps, steps]

    def class_attention(self, layer: int) -> Float[Tensor, "b t heads h w"]:
        """Return attention of class tokens to patches, (b, t, heads, h, w).

        In Model 1 the clip has one class token, which attends to the patches of all t time steps.
        In the other models each time step has a class token, which attends to its patches.

        Raises:
            ValueError: if the encoder has no class token, or if the layer has no attention over
                space or was not recorded.
        """
        if not self.config.class_token:
            raise ValueError("the encoder has no class token; use rollout()")
        before, (t, h, _) = self.special_tokens, self.grid
        if self.config.variant == "joint":
            weights = self._of(self.joint, layer)[:, :, 0, before:]
            return rearrange(weights, "b heads (t h w) -> b t heads h w", t=t, h=h)
        weights = self._of(self.spatial, layer)[..., 0, before:]
        return rearrange(weights, "b t heads (h w) -> b t heads h w", h=h)

    def rollout(self) -> Float[Tensor, "b t h w"]:
        """Return the fraction of the pooled vector that attention rollout assigns to each tubelet.

        See :func:`ssl_vivit.evaluation.attention.rollout.rollout` for conventions and source.

        Raises:
            ValueError: if only some of the layers were recorded.
        """
        recorded = self.joint.keys() | self.spatial.keys() | self.temporal.keys()
        if len(recorded) < num_layers(self.config):
            raise ValueError(
                f"rollout needs all {num_layers(self.config)} layers, but {len(recorded)} were "
                "recorded; call attention_maps without layers"
            )
        return rollout(
            self.config, self.grid, self.readout, self.spatial, self.temporal, self.joint
        )

    def _of(self, maps: dict[int, Tensor], layer: int) -> Tensor:
        index = layer + num_layers(self.config) if layer < 0 else layer
        if index not in maps:
            there = ", ".join(map(str, sorted(maps))) or "none"
            raise ValueError(
                f"layer {layer} does not compute this attention or was not recorded; recorded "
                f"layers with this attention: {there}"
            )
        return maps[index]


def num_layers(config: ViViTConfig) -> int:
    """Number of blocks of an encoder."""
    if config.variant == "factorized_encoder":
        assert config.spatial_depth is not None
        assert config.temporal_depth is not None
        return config.spatial_depth + config.temporal_depth
    assert config.depth is not None
    return config.depth


def attention_maps(
    encoder: ViViT, video: Float[Tensor, "b c T H W"], *, layers: Sequence[int] | None = None
) -> AttentionMaps:
    """Encode clips in eval mode and record the attention weights.

    Weights are recomputed as softmax(q·kᵀ/√width) in float32 or wider. Queries and keys are
    normalised, rotated and masked as in the encoder. The encoder itself is not changed.

    Args:
        encoder: the encoder, compiled or not.
        video: (B, C, T, H, W), normalised as ``encoder.preprocessing`` says.
        layers: indices of the layers to record, −1 for the last; None records all. The weights of
            a layer are heads · L² numbers for each sequence of L tokens.

    Raises:
        ValueError: if a layer does not exist.
    """
    encoder = getattr(encoder, "_orig_mod", encoder)  # unwrap torch.compile
    config = encoder.config
    wanted = _checked(layers, num_layers(config))
    kept: dict[Axis, dict[int, Tensor]] = {"spatial": {}, "temporal": {}, "joint": {}}
    seen: dict[str, Tensor] = {}

    def record(module: HeadAttention, args: Any, kwargs: Any, *, axis: Axis, layer: int) -> None:
        weights = weights_of(module, *args, **kwargs)
        if axis != "joint":
            weights = rearrange(weights, "(b s) heads q k -> b s heads q k", b=len(video))
        kept[axis][layer] = weights

    def keep_frames(norm: nn.Module, args: Any, output: Tensor) -> None:
        seen["frames"] = output

    def keep_pooling(module: AttentionPooling, args: tuple[Tensor]) -> None:
        (x,) = args
        query = module.query.expand(x.shape[0], -1, -1)
        seen["pooling"] = module.attention(query, x, x, need_weights=True)[1][:, 0]

    with ExitStack() as stack:
        # Hooks run only if their modules are called, so compiled modules run eagerly.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(evaluation_mode(encoder))
        stack.enter_context(torch.no_grad())
        for name, module in encoder.trunk.named_modules():
            if not isinstance(module, HeadAttention):
                continue
            axis, layer = _axis_and_layer(name, config)
            if layer in wanted:
                hook = partial(record, axis=axis, layer=layer)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        if config.frame_pooling == "max":
            norm = encoder.trunk.get_submodule("spatial_norm")
            stack.callback(norm.register_forward_hook(keep_frames).remove)
        if encoder.attention_pooling is not None:
            pooling = encoder.attention_pooling
            stack.callback(pooling.register_forward_pre_hook(keep_pooling).remove)
        out = encoder(video)
    return AttentionMaps(config, out.grid, readout(config, out, seen), **kept)


def _checked(layers: Sequence[int] | None, depth: int) -> set[int]:
    if layers is None:
        return set(range(depth))
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer} does not exist; layers are 0 to {depth - 1}")
    return {layer % depth for layer in layers}


def _axis_and_layer(name: str, config: ViViTConfig) -> tuple[Axis, int]:
    """Return the axis and the layer index of an attention module, given its name."""
    group, index, *inner = name.split(".")
    if config.variant == "joint":
        return "joint", int(index)
    if config.variant == "factorized_encoder":
        assert config.spatial_depth is not None
        if group == "spatial_blocks":
            return "spatial", int(index)
        return "temporal", int(index) + config.spatial_depth
    over_space = any(part.startswith("space") for part in inner)
    return "spatial" if over_space else "temporal", int(index)


def weights_of(
    attention: HeadAttention,
    query: Float[Tensor, "b q inner"],
    key: Float[Tensor, "b k inner"],
    value: Float[Tensor, "b k inner"],
    rotation: Any = None,
    mask: PlainMask = None,
) -> Float[Tensor, "b heads q k"]:
    """Return the attention weights of an attention module for the arguments of its call."""
    query, key = attention.prepare(query, key, rotation)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).mT / query.shape[-1] ** 0.5
    if isinstance(mask, str):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    elif isinstance(mask, FrameBlocks):
        mask = mask.mask(scores.shape[-1], scores.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)
