"""Model 4, factorised dot-product attention: each head attends over one axis (Sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Rotation
from ssl_vivit.encoders.trunks.blocks import (
    MLP,
    Branch,
    HeadAttention,
    Mask,
    init_attention,
    norm_layer,
)
from ssl_vivit.encoders.trunks.space_time import (
    ParallelSpaceTimeBlock,
    SpaceTime,
    SpaceTimeTrunk,
    attend_over_space,
    attend_over_time,
    columns_of,
)


class DotProductAttention(nn.Module):
    """Half of the heads attend over time, the other half over space, with one output projection.

    A register takes part in attention over one axis; the heads of the other axis add zero to it.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        assert config.head_dim is not None
        inner = config.num_heads * config.head_dim
        self.half_width = inner // 2
        self.qkv = nn.Linear(config.embed_dim, 3 * inner, bias=config.qkv_bias)
        self.time_heads = HeadAttention(config, config.num_heads // 2)
        self.space_heads = HeadAttention(config, config.num_heads // 2)
        self.proj = nn.Linear(inner, config.embed_dim)
        self.proj_drop = nn.Dropout(config.mlp_dropout)
        init_attention(self.qkv, self.proj)

    def forward(
        self,
        state: SpaceTime,
        spatial_rotation: Rotation | None,
        temporal_rotation: Rotation | None,
        time_mask: Mask,
    ) -> SpaceTime:
        """Return the attention outputs of tokens and registers; ``state`` must be normalised."""
        tokens, spatial, temporal = state.each(self.qkv)
        first, second = slice(self.half_width), slice(self.half_width, None)
        over_time, on_temporal = attend_over_time(
            self.time_heads,
            _heads_of(tokens, first),
            None if temporal is None else _heads_of(temporal, first),
            temporal_rotation,
            time_mask,
        )
        over_space, on_spatial = attend_over_space(
            self.space_heads,
            _heads_of(tokens, second),
            None if spatial is None else _heads_of(spatial, second),
            spatial_rotation,
        )
        return SpaceTime(
            self.proj(torch.cat((over_time, over_space), dim=-1)),
            None if spatial is None else columns_of(self.proj, on_spatial, second),
            None if temporal is None else columns_of(self.proj, on_temporal, first),
        ).each(self.proj_drop)


def _heads_of(qkv: Tensor, heads: slice) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (part[..., heads] for part in qkv.chunk(3, dim=-1))
    return query, key, value


class DotProductBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), for tokens and registers."""

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = norm_layer(config)
        self.attention = DotProductAttention(config)
        self.attention_branch = Branch(config, drop_path)
        self.mlp_norm = norm_layer(config)
        self.mlp = MLP(config)
        self.mlp_branch = Branch(config, drop_path)

    def forward(
        self,
        state: SpaceTime,
        spatial_rotation: Rotation | None,
        temporal_rotation: Rotation | None,
        time_mask: Mask,
    ) -> SpaceTime:
        attended = self.attention(
            state.each(self.attention_norm), spatial_rotation, temporal_rotation, time_mask
        )
        state = state.plus(attended.each(self.attention_branch))
        return state.each(lambda x: x + self.mlp_branch(self.mlp(self.mlp_norm(x))))


def factorized_dot_product(config: ViViTConfig) -> SpaceTimeTrunk:
    """Build the transformer of Model 4."""

    def block(config: ViViTConfig, drop_path: float) -> nn.Module:
        if config.block == "parallel":
            heads = config.num_heads // 2
            return ParallelSpaceTimeBlock(config, drop_path, heads, zero_time=False)
        return DotProductBlock(config, drop_path)

    return SpaceTimeTrunk(config, block)
