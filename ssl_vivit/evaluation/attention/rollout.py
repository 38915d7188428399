"""Attention rollout for joint and factorised attention.

Abnar & Zuidema 2020 (arXiv 2005.00928, Sec. 3) describe a layer by the matrix ½·A + ½·I, where A is
its attention averaged over heads and I stands for the residual connection. Rollout multiplies the
matrices of all layers. The contributions of the input tokens to the pooled vector are one row of
the product. Only this row is computed, from the last layer to the first, so that factorised
attention needs no matrix over all tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.encoders import ViViTConfig
from ssl_vivit.encoders.vivit import EncoderOutput
from ssl_vivit.grid import Grid


class Readout(NamedTuple):
    """Weights of the tokens in the pooled vector, which sum to 1.

    Attributes:
        patches: (b, t, n), weights of the patch tokens after the last layer; None if the pooled
            vector is computed from class tokens or frame vectors.
        frames: (b, t), weights of the class token or frame vector of each time step; None if the
            pooled vector is computed from patches or from a class token of the clip.
        places: (b, t, n), weights of the patches in the frame vector of each time step; None
            without pooled frame vectors.
    """

    patches: Tensor | None
    frames: Tensor | None
    places: Tensor | None


def readout(config: ViViTConfig, out: EncoderOutput, seen: dict[str, Tensor]) -> Readout:
    """Return the weights of the tokens for the pooling of the config.

    Mean and sum pooling weigh all tokens equally; ``first`` weighs only the first. ``max`` weighs a
    token by the fraction of features whose maximum it holds. Attention pooling uses its own
    weights.

    Args:
        config: the architecture.
        out: output of the encoder, with tokens.
        seen: tensors that were recorded in the forward pass, by name. ``pooling`` (b, k) holds the
            weights of attention pooling. ``frames`` (b·t, k, d) holds the tokens of each time step
            that frame_pooling="max" pools, with the patches last.
    """
    assert out.tokens is not None
    b, t, n, _ = out.tokens.shape
    places = None
    if config.frame_pooling != "none":
        frames = seen.get("frames", rearrange(out.tokens, "b t n d -> (b t) n d"))
        places = _shares(frames[:, -n:], config.frame_pooling)
        places = rearrange(places, "(b t) n -> b t n", b=b)
    if config.pooling == "temporal_cls" or (
        config.variant == "joint" and config.pooling == "cls_mean"
    ):
        return Readout(None, None, places)
    if config.pooling == "cls_mean" or config.frame_pooling != "none":
        assert out.cls is not None
        how = "mean" if config.pooling == "cls_mean" else config.pooling
        return Readout(None, seen.get("pooling", _shares(out.cls, how)), places)
    flat = rearrange(out.tokens, "b t n d -> b (t n) d")
    shares = seen.get("pooling", _shares(flat, config.pooling))
    return Readout(rearrange(shares, "b (t n) -> b t n", t=t), None, None)


def _shares(x: Float[Tensor, "b n d"], how: str | None) -> Float[Tensor, "b n"]:
    wide = x.new_zeros(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    if how == "max":
        winner = x.argmax(1)
        return wide.scatter_add(1, winner, torch.ones_like(winner, dtype=wide.dtype)) / x.shape[2]
    if how == "first":
        wide[:, 0] = 1
        return wide
    return wide + 1 / x.shape[1]


Maps = dict[int, Tensor]


def rollout(
    config: ViViTConfig, grid: Grid, read: Readout, spatial: Maps, temporal: Maps, joint: Maps
) -> Float[Tensor, "b t h w"]:
    """Return the fraction of the pooled vector that comes from each input tubelet.

    A layer is described by the matrix ½·A + ½·I, where A is its attention averaged over heads. The
    matrices of all layers are multiplied. MLPs and norms are ignored and all values count equally,
    as in the paper (Abnar & Zuidema 2020, arXiv 2005.00928).

    Fractions are not negative. They sum to 1 without special tokens. With special tokens the sum is
    smaller, since the fractions of class tokens and registers, which are no input, are left out.

    The paper is extended to attention over one axis:

    - Model 2: the matrices of temporal layers apply at each position, those of spatial layers in
      each time step.
    - Model 3: a block has two matrices, one for space and one for time, in the order of the block.
    - Parallel attention over both axes (Model 4, parallel blocks of Model 3): the mean of the two
      axes' matrices. A register belongs to one axis and uses only the matrix of that axis.

    Args:
        config: the architecture.
        grid: size (t, h, w) of the token grid of a clip.
        read: weights of the tokens in the pooled vector.
        spatial: attention weights (b, t, heads, q, k) over space, by layer; see
            :class:`~ssl_vivit.evaluation.attention.maps.AttentionMaps`. All layers are needed.
        temporal: attention weights (b, m, heads, q, k) over time at m positions, by layer.
        joint: attention weights (b, heads, q, k) over all tokens (Model 1), by layer.
    """
    if config.variant == "joint":
        shares = _through_joint(config, read, joint)
        return rearrange(shares, "b (t h w) -> b t h w", t=grid.t, h=grid.h)
    if config.variant == "factorized_encoder":
        shares = _through_factorized_encoder(config, grid, read, spatial, temporal)
    else:
        shares = _through_both_axes(config, read, spatial, temporal)
    return rearrange(shares, "b t (h w) -> b t h w", h=grid.h)


def _back(row: Float[Tensor, "... q"], weights: Float[Tensor, "... heads q k"]) -> Tensor:
    """Multiply a row vector by ½·A + ½·I."""
    return (row + _attended(row, weights)) / 2


def _attended(row: Float[Tensor, "... q"], weights: Float[Tensor, "... heads q k"]) -> Tensor:
    return (row[..., None, :] @ weights.mean(-3))[..., 0, :]


def _through_joint(config: ViViTConfig, read: Readout, joint: Maps) -> Float[Tensor, "b k"]:
    first = joint[0]
    before = int(bool(config.class_token)) + config.register_tokens
    row = first.new_zeros(first.shape[0], first.shape[-1])
    if read.patches is None:
        row[:, 0] = 1
    else:
        row[:, before:] = read.patches.flatten(1)
    for layer in sorted(joint, reverse=True):
        row = _back(row, joint[layer])
    return row[:, before:]


def _through_factorized_encoder(
    config: ViViTConfig, grid: Grid, read: Readout, spatial: Maps, temporal: Maps
) -> Float[Tensor, "b t n"]:
    b, t = spatial[0].shape[:2]
    summary = int(bool(config.class_token) or config.frame_pooling != "none")
    over_time = _row_over_time(config, grid, read, spatial[0].new_zeros(b, summary + grid.n, t))
    for layer in sorted(temporal, reverse=True):
        over_time = _back(over_time, temporal[layer])
    registers = config.register_tokens if temporal else 0
    steps = rearrange(over_time[..., registers : registers + t], "b m t -> b t m")

    row = spatial[0].new_zeros(b, t, spatial[0].shape[-1])
    before = row.shape[2] - grid.n
    row[..., before:] = steps[..., summary:]
    if read.places is not None:
        row[..., before:] += steps[..., :1] * read.places
    elif summary:
        row[..., 0] = steps[..., 0]
    for layer in sorted(spatial, reverse=True):
        row = _back(row, spatial[layer])
    return row[..., before:]


def _row_over_time(
    config: ViViTConfig, grid: Grid, read: Readout, steps: Float[Tensor, "b m t"]
) -> Float[Tensor, "b m k"]:
    """Return the weight that each token of Model 2's sequences over time has in the pooled vector.

    There is a sequence of k tokens at each of m positions: registers, time steps and, with
    pooling="temporal_cls", the temporal class token. Without temporal layers there are only time
    steps.
    """
    if read.patches is not None:
        steps[:, -grid.n :] = rearrange(read.patches, "b t n -> b n t")
    elif read.frames is not None:
        steps[:, 0] = read.frames
    if not config.temporal_depth:
        return steps
    before = steps.new_zeros(*steps.shape[:2], config.register_tokens)
    after = steps.new_zeros(*steps.shape[:2], int(config.pooling == "temporal_cls"))
    after[:, 0] = 1
    return torch.cat((before, steps, after), dim=-1)


def _through_both_axes(
    config: ViViTConfig, read: Readout, spatial: Maps, temporal: Maps
) -> Float[Tensor, "b t n"]:
    assert read.patches is not None
    tokens, registers = read.patches.to(spatial[0].dtype), config.register_tokens
    b, t, n = tokens.shape
    over_space, over_time = tokens.new_zeros(b, t, registers), tokens.new_zeros(b, n, registers)
    at_once = config.variant == "factorized_dot_product" or config.block == "parallel"
    for layer in sorted(spatial, reverse=True):
        if at_once:
            half = tokens / 2
            space = _attended(torch.cat((over_space, half), dim=2), spatial[layer])
            time = _attended(torch.cat((over_time, half.mT), dim=2), temporal[layer])
            over_space = (over_space + space[..., :registers]) / 2
            over_time = (over_time + time[..., :registers]) / 2
            tokens = (tokens + space[..., registers:] + time[..., registers:].mT) / 2
            continue
        for axis in reversed(config.attention_order.split("_")):
            if axis == "space":
                row = _back(torch.cat((over_space, tokens), dim=2), spatial[layer])
                over_space, tokens = row[..., :registers], row[..., registers:]
            else:
                row = _back(torch.cat((over_time, tokens.mT), dim=2), temporal[layer])
                over_time, tokens = row[..., :registers], row[..., registers:].mT
    return tokens
