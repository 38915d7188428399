"""Transformer blocks: attention, MLP, pre-norm and parallel blocks, and the block of Model 3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Rotation


def norm_layer(config: ViViTConfig) -> nn.LayerNorm:
    """LayerNorm over the token width."""
    return nn.LayerNorm(config.embed_dim, eps=config.norm_eps)


class HeadAttention(nn.Module):
    """Scaled dot-product attention on projected queries, keys and values, split into heads."""

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        if config.qk_norm:
            self.query_norm: nn.Module = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
            self.key_norm: nn.Module = nn.LayerNorm(config.head_dim, eps=config.norm_eps)
        else:
            self.query_norm = nn.Identity()
            self.key_norm = nn.Identity()

    def forward(
        self,
        query: Float[Tensor, "b q inner"],
        key: Float[Tensor, "b k inner"],
        value: Float[Tensor, "b k inner"],
        rotation: Rotation | None,
        causal: bool,
    ) -> Float[Tensor, "b q inner"]:
        query, key, value = (
            rearrange(x, "b n (heads width) -> b heads n width", heads=self.num_heads)
            for x in (query, key, value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            first = Rotation(*(part[..., : query.shape[2], :] for part in rotation))
            query, key = first.apply(query), rotation.apply(key)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return rearrange(out, "b heads n width -> b n (heads width)")


def part_of(layer: nn.Linear, x: Float[Tensor, "b n d"], rows: slice) -> Tensor:
    """Some of a linear layer's outputs."""
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection of queries, keys and values.

    Args:
        config: widths, heads, biases and dropout.
        zero_init: start the output projection at zero, so that the residual branch is silent.
    """

    def __init__(self, config: ViViTConfig, *, zero_init: bool = False) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.inner = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * self.inner, bias=config.qkv_bias)
        self.heads = HeadAttention(config)
        self.proj = nn.Linear(self.inner, config.embed_dim)
        self.proj_drop = nn.Dropout(config.mlp_dropout)
        for part in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(part)
        if config.qkv_bias:
            nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)
        if zero_init:
            nn.init.zeros_(self.proj.weight)
        else:
            nn.init.xavier_uniform_(self.proj.weight)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation | None = None,
        causal: bool = False,
        num_queries: int | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend within each sequence.

        Args:
            x: tokens (b, n, d), normalised.
            rotation: rotary tables of length n.
            causal: no token attends to later ones.
            num_queries: compute the first so many outputs only; None is all.
        """
        if num_queries is None:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            query = part_of(self.qkv, x[:, :num_queries], slice(self.inner))
            key, value = part_of(self.qkv, x, slice(self.inner, None)).chunk(2, dim=-1)
        return self.proj_drop(self.proj(self.heads(query, key, value, rotation, causal)))


class Activation(nn.Module):
    """The MLP's nonlinearity; SwiGLU halves the width it is given (Shazeer 2020)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return F.silu(gate) * value
        return F.gelu(x, approximate="tanh" if self.name == "gelu_tanh" else "none")


def mlp_widths(config: ViViTConfig) -> tuple[int, int]:
    """Widths before and after the activation; SwiGLU's gate doubles the former."""
    hidden = int(config.embed_dim * config.mlp_ratio)
    return (2 * hidden if config.activation == "swiglu" else hidden), hidden


def _init_linear(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.normal_(layer.bias, std=1e-6)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        before, after = mlp_widths(config)
        self.fc1 = nn.Linear(config.embed_dim, before)
        self.activation = Activation(config.activation)
        self.drop1 = nn.Dropout(config.mlp_dropout)
        self.fc2 = nn.Linear(after, config.embed_dim)
        self.drop2 = nn.Dropout(config.mlp_dropout)
        _init_linear(self.fc1)
        _init_linear(self.fc2)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.drop2(self.fc2(self.drop1(self.activation(self.fc1(x)))))


class Branch(nn.Module):
    """What a residual branch passes through before it is added: layer scale, stochastic depth.

    Survivors of stochastic depth are scaled by 1 / (1 − rate), so that the expectation is kept.
    """

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        start = config.layer_scale
        self.scale = nn.Identity() if start is None else LayerScale(config.embed_dim, start)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.scale(x))


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) (Arnab et al. 2021, Eq. 2 and 3)."""

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = norm_layer(config)
        self.attention = Attention(config)
        self.attention_branch = Branch(config, drop_path)
        self.mlp_norm = norm_layer(config)
        self.mlp = MLP(config)
        self.mlp_branch = Branch(config, drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation | None = None,
        causal: bool = False,
        num_queries: int | None = None,
    ) -> Float[Tensor, "b q d"]:
        attended = self.attention(self.attention_norm(x), rotation, causal, num_queries)
        x = x[:, :num_queries] + self.attention_branch(attended)
        return x + self.mlp_branch(self.mlp(self.mlp_norm(x)))


class ParallelBlock(nn.Module):
    """Attention and MLP side by side: x + attention(norm(x)) + MLP(norm(x)).

    Keys, values, queries and the MLP's input, in this order, come from one product, and the
    outputs of both branches from another (Dehghani et al. 2023, arXiv 2302.05442, Sec. 2).
    """

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        assert config.head_dim is not None
        before, after = mlp_widths(config)
        inner = config.num_heads * config.head_dim
        self.widths = (inner, inner, inner, before)
        self.norm = norm_layer(config)
        self.fused_in = nn.Linear(config.embed_dim, sum(self.widths), bias=config.qkv_bias)
        self.heads = HeadAttention(config)
        self.activation = Activation(config.activation)
        self.mlp_drop = nn.Dropout(config.mlp_dropout)
        self.fused_out = nn.Linear(inner + after, config.embed_dim)
        self.out_drop = nn.Dropout(config.mlp_dropout)
        self.branch = Branch(config, drop_path)
        init_fused(self.fused_in, self.widths)
        for part in self.fused_out.weight.split((inner, after), dim=1):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.fused_out.bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation | None = None,
        causal: bool = False,
        num_queries: int | None = None,
    ) -> Float[Tensor, "b q d"]:
        normed = self.norm(x)
        if num_queries is None:
            key, value, query, hidden = self.fused_in(normed).split(self.widths, dim=-1)
        else:
            keys = sum(self.widths[:2])
            key, value = part_of(self.fused_in, normed, slice(keys)).chunk(2, dim=-1)
            first = part_of(self.fused_in, normed[:, :num_queries], slice(keys, None))
            query, hidden = first.split(self.widths[2:], dim=-1)
            x = x[:, :num_queries]
        attended = self.heads(query, key, value, rotation, causal)
        hidden = self.mlp_drop(self.activation(hidden))
        out = self.out_drop(self.fused_out(torch.cat((attended, hidden), dim=-1)))
        return x + self.branch(out)


def init_fused(layer: nn.Linear, widths: tuple[int, ...]) -> None:
    """Xavier-uniform weights for each part of a fused projection by itself; zero biases."""
    for part in layer.weight.split(widths):
        nn.init.xavier_uniform_(part)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def make_block(config: ViViTConfig, drop_path: float) -> nn.Module:
    """A block of the kind that the config names, for attention along one axis."""
    kind = ParallelBlock if config.block == "parallel" else PreNormBlock
    return kind(config, drop_path)


class SpaceTimeBlock(nn.Module):
    """Model 3's block: attention over space, attention over time, MLP, each with its residual.

    The temporal output projection starts at zero, so that a fresh block equals its spatial-only
    twin (Arnab et al. 2021, Sec. 3.3 and 3.4). A ``parallel`` config computes the three branches
    side by side from one normalisation.
    """

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        self.parallel = config.block == "parallel"
        self.order = config.attention_order.split("_")
        self.causal = config.temporal_causal
        self.registers = config.register_tokens
        self.space = Attention(config)
        self.time = Attention(config, zero_init=True)
        self.space_branch = Branch(config, drop_path)
        self.time_branch = Branch(config, drop_path)
        if self.parallel:
            self.norm = norm_layer(config)
        else:
            self.space_norm = norm_layer(config)
            self.time_norm = norm_layer(config)
            self.mlp_norm = norm_layer(config)
        self.mlp = MLP(config)
        self.mlp_branch = Branch(config, drop_path)

    def forward(
        self,
        tokens: Float[Tensor, "b t n d"],
        spatial_registers: Float[Tensor, "b t r d"],
        temporal_registers: Float[Tensor, "b r n d"],
        spatial_rotation: Rotation | None,
        temporal_rotation: Rotation | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = (tokens, spatial_registers, temporal_registers)
        if self.parallel:
            normed = tuple(self.norm(x) for x in state)
            space = self._space(normed, spatial_rotation)
            time = self._time(normed, temporal_rotation)
            mlp = tuple(self.mlp_branch(self.mlp(x)) for x in normed)
            return _add(_add(_add(state, space), time), mlp)
        for axis in self.order:
            if axis == "space":
                normed = tuple(self.space_norm(x) for x in state)
                state = _add(state, self._space(normed, spatial_rotation))
            else:
                normed = tuple(self.time_norm(x) for x in state)
                state = _add(state, self._time(normed, temporal_rotation))
        return _add(state, tuple(self.mlp_branch(self.mlp(self.mlp_norm(x))) for x in state))

    def _space(self, state: tuple[Tensor, ...], rotation: Rotation | None) -> tuple:
        tokens, registers, _ = state
        batch = len(tokens)
        sequence = torch.cat((registers, tokens), dim=2) if self.registers else tokens
        sequence = rearrange(sequence, "b t n d -> (b t) n d")
        out = rearrange(self.space(sequence, rotation), "(b t) n d -> b t n d", b=batch)
        out = self.space_branch(out)
        return out[:, :, self.registers :], out[:, :, : self.registers], None

    def _time(self, state: tuple[Tensor, ...], rotation: Rotation | None) -> tuple:
        tokens, _, registers = state
        batch = len(tokens)
        sequence = torch.cat((registers, tokens), dim=1) if self.registers else tokens
        sequence = rearrange(sequence, "b t n d -> (b n) t d")
        out = rearrange(self.time(sequence, rotation, self.causal), "(b n) t d -> b t n d", b=batch)
        out = self.time_branch(out)
        return out[:, self.registers :], None, out[:, : self.registers]


def _add(state: tuple, change: tuple) -> tuple[Tensor, Tensor, Tensor]:
    tokens, spatial, temporal = (
        x if dx is None else x + dx for x, dx in zip(state, change, strict=True)
    )
    return tokens, spatial, temporal


def token_norm(config: ViViTConfig) -> nn.Module:
    """The norm after a transformer, where the config puts it on tokens."""
    return norm_layer(config) if config.final_norm == "tokens" else nn.Identity()


def drop_path_rates(config: ViViTConfig, depth: int) -> list[float]:
    """Stochastic depth rising linearly from 0 to ``drop_path`` (Huang et al. 2016, Sec. 3)."""
    return [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]


def run_block(block: nn.Module, recompute: bool, *args: Any) -> Any:
    """Call a block; with ``recompute`` its activations are made again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)
