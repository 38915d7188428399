"""Parts of transformer blocks, and blocks over one sequence (Models 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers import DropPath, LayerScale
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Rotation
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.encoders.trunks.frame_blocks import FrameBlocks
from ssl_vivit.encoders.trunks.time_sequences import TimeSequences


def norm_layer(config: ViViTConfig, eps: float | None = None) -> nn.LayerNorm:
    """Return a LayerNorm over the token width; ``eps`` None is ``norm_eps`` of the config."""
    return nn.LayerNorm(config.embed_dim, eps=config.norm_eps if eps is None else eps)


# Masks, and the keys that a query attends to: None, all keys; "causal", keys up to the query's
# index; a tensor that broadcasts to (b, heads, q, k), keys where it is True; FrameBlocks, keys of
# the query's time step and earlier ones; TimeSequences, keys at the query's spatial position;
# KeyValueCache, all cached keys.
PlainMask = Literal["causal"] | Tensor | FrameBlocks | None
Mask = PlainMask | TimeSequences | KeyValueCache

# Largest number of sequences in one call: the limit of a dimension of a GPU kernel's launch grid.
LARGEST_BATCH = 65_535


class HeadAttention(nn.Module):
    """Scaled dot-product attention on projected queries, keys and values, split into heads.

    Args:
        config: gives head width, dropout and norms.
        num_heads: number of heads; None is ``num_heads`` of the config.
    """

    def __init__(self, config: ViViTConfig, num_heads: int | None = None) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.num_heads = config.num_heads if num_heads is None else num_heads
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
        rotation: Rotation | None = None,
        mask: Mask = None,
    ) -> Float[Tensor, "b q inner"]:
        if isinstance(mask, TimeSequences):
            return mask.attend(self, query, key, value, rotation)
        query, key = self.prepare(query, key, rotation)
        value = self._split(value)
        if isinstance(mask, KeyValueCache):
            key, value, mask = mask.extended(self, key, value)
        if isinstance(mask, FrameBlocks):
            out = mask.attend(self._attend, query, key, value)
        else:
            out = self._attend(query, key, value, mask)
        return rearrange(out, "b heads n width -> b n (heads width)")

    def _attend(
        self,
        query: Float[Tensor, "b heads q width"],
        key: Float[Tensor, "b heads k width"],
        value: Float[Tensor, "b heads k width"],
        mask: Literal["causal"] | Tensor | None = None,
    ) -> Float[Tensor, "b heads q width"]:
        # Do not split the batch in an exported graph, which must work for any batch size.
        if not torch.compiler.is_exporting() and query.shape[0] > LARGEST_BATCH:
            parts = [x.split(LARGEST_BATCH) for x in (query, key, value)]
            masks: Sequence[Any] = [mask] * len(parts[0])
            if isinstance(mask, Tensor) and mask.ndim == 4 and len(mask) > 1:
                masks = mask.split(LARGEST_BATCH)
            return torch.cat([self._attend(*part) for part in zip(*parts, masks, strict=True)])
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask if isinstance(mask, Tensor) else None,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=isinstance(mask, str),
        )

    def prepare(
        self,
        query: Float[Tensor, "b q inner"],
        key: Float[Tensor, "b k inner"],
        rotation: Rotation | None,
    ) -> tuple[Float[Tensor, "b heads q width"], Float[Tensor, "b heads k width"]]:
        """Split queries and keys into heads, normalise and rotate them for the dot product."""
        query, key = self.query_norm(self._split(query)), self.key_norm(self._split(key))
        if rotation is not None:
            first = rotation.of_tokens(slice(query.shape[2]))
            query, key = first.apply(query), rotation.apply(key)
        return query, key

    def _split(self, x: Float[Tensor, "b n inner"]) -> Float[Tensor, "b heads n width"]:
        return rearrange(x, "b n (heads width) -> b heads n width", heads=self.num_heads)


def part_of(layer: nn.Linear, x: Float[Tensor, "b n d"], rows: slice) -> Tensor:
    """Compute only the output features ``rows`` (a slice of indices) of a linear layer."""
    return F.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection of queries, keys and values.

    Args:
        config: gives widths, heads, biases and dropout.
        zero_init: initialise the output projection with zeros, so that the residual branch adds
            nothing at first.
    """

    def __init__(self, config: ViViTConfig, *, zero_init: bool = False) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.inner = config.num_heads * config.head_dim
        self.qkv = nn.Linear(config.embed_dim, 3 * self.inner, bias=config.qkv_bias)
        self.heads = HeadAttention(config)
        self.proj = nn.Linear(self.inner, config.embed_dim)
        self.proj_drop = nn.Dropout(config.mlp_dropout)
        init_attention(self.qkv, self.proj)
        if zero_init:
            nn.init.zeros_(self.proj.weight)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotation: Rotation | None = None,
        mask: Mask = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend within each sequence.

        Args:
            x: tokens (b, n, d), normalised.
            rotation: rotary embedding of the n tokens, or None.
            mask: mask that says to which tokens each token attends; None is all.
            num_queries: compute outputs of only the first ``num_queries`` tokens; None is all.
        """
        if num_queries is None:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            query = part_of(self.qkv, x[:, :num_queries], slice(self.inner))
            key, value = part_of(self.qkv, x, slice(self.inner, None)).chunk(2, dim=-1)
        return self.proj_drop(self.proj(self.heads(query, key, value, rotation, mask)))


def init_attention(qkv: nn.Linear, proj: nn.Linear) -> None:
    """Set Xavier-uniform weights separately for queries, keys and values, and zero biases."""
    init_fused(qkv, (qkv.out_features // 3,) * 3)
    nn.init.xavier_uniform_(proj.weight)
    nn.init.zeros_(proj.bias)


def init_fused(layer: nn.Linear, widths: tuple[int, ...]) -> None:
    """Set Xavier-uniform weights for each part of a fused projection, and zero biases."""
    for part in layer.weight.split(widths):
        nn.init.xavier_uniform_(part)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Activation(nn.Module):
    """Activation of the MLP; SwiGLU halves the width of its input (Shazeer 2020)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return F.silu(gate) * value
        return F.gelu(x, approximate="tanh" if self.name == "gelu_tanh" else "none")


def mlp_widths(config: ViViTConfig) -> tuple[int, int]:
    """Return the widths before and after the activation; SwiGLU doubles the width before it."""
    # mlp_ratio of an imported width may be rounded, hence the small addend.
    hidden = int(config.embed_dim * config.mlp_ratio + 1e-6)
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
    """Layer scale and stochastic depth, applied to a residual branch before the addition.

    Kept branches are scaled by 1 / (1 − rate), so that the expected value does not change.
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
        mask: Mask = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "b q d"]:
        attended = self.attention(self.attention_norm(x), rotation, mask, num_queries)
        x = x[:, :num_queries] + self.attention_branch(attended)
        return x + self.mlp_branch(self.mlp(self.mlp_norm(x)))


class ParallelBlock(nn.Module):
    """Attention and MLP in parallel: x + attention(norm(x)) + MLP(norm(x)).

    One product computes keys, values, queries and the MLP's input, in this order; another computes
    the sum of both branches (Dehghani et al. 2023, arXiv 2302.05442, Sec. 2).
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
        mask: Mask = None,
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
        attended = self.heads(query, key, value, rotation, mask)
        hidden = self.mlp_drop(self.activation(hidden))
        out = self.out_drop(self.fused_out(torch.cat((attended, hidden), dim=-1)))
        return x + self.branch(out)


def make_block(config: ViViTConfig, drop_path: float) -> nn.Module:
    """Return a block for attention within one sequence, of the kind ``config.block``."""
    kind = ParallelBlock if config.block == "parallel" else PreNormBlock
    return kind(config, drop_path)


def token_norm(config: ViViTConfig) -> nn.Module:
    """Return the norm after a transformer; the identity unless final_norm is ``tokens``."""
    return norm_layer(config) if config.final_norm == "tokens" else nn.Identity()


def drop_path_rates(config: ViViTConfig, depth: int) -> list[float]:
    """Return each block's rate: linear from 0 to ``drop_path`` (Huang et al. 2016, Sec. 3)."""
    return [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]


def run_block(block: nn.Module, recompute: bool, *args: Any) -> Any:
    """Call a block; with ``recompute`` its activations are recomputed in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)
