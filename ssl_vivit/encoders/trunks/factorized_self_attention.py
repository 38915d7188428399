"""Model 3, factorised self-attention: each block attends over space, then time (Sec. 3.3)."""

from __future__ import annotations

from einops import rearrange
from torch import nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Rotation
from ssl_vivit.encoders.trunks.blocks import MLP, Attention, Branch, Mask, norm_layer
from ssl_vivit.encoders.trunks.space_time import (
    ParallelSpaceTimeBlock,
    SpaceTime,
    SpaceTimeTrunk,
    by_clip,
    joined,
    over_time,
    split_over_time,
)


class SpaceThenTimeBlock(nn.Module):
    """Attention over space, attention over time, MLP, each with a norm and a residual connection.

    The temporal output projection is initialised with zeros, so that a new block equals a block
    without temporal attention (Arnab et al. 2021, Sec. 3.3 and 3.4). ``attention_order`` can put
    time first.
    """

    def __init__(self, config: ViViTConfig, drop_path: float) -> None:
        super().__init__()
        self.order = config.attention_order.split("_")
        self.space_norm = norm_layer(config)
        self.space = Attention(config)
        self.space_branch = Branch(config, drop_path)
        self.time_norm = norm_layer(config)
        self.time = Attention(config, zero_init=True)
        self.time_branch = Branch(config, drop_path)
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
        for axis in self.order:
            if axis == "space":
                state = self._over_space(state, spatial_rotation)
            else:
                state = self._over_time(state, temporal_rotation, time_mask)
        return state.each(lambda x: x + self.mlp_branch(self.mlp(self.mlp_norm(x))))

    def _over_space(self, state: SpaceTime, rotation: Rotation | None) -> SpaceTime:
        registers = state.spatial_registers
        x = rearrange(joined(registers, state.tokens, dim=2), "b t n d -> (b t) n d")
        out = self.space(self.space_norm(x), rotation)
        out = self.space_branch(rearrange(out, "(b t) n d -> b t n d", b=state.tokens.shape[0]))
        if registers is None:
            return state._replace(tokens=state.tokens + out)
        before = registers.shape[2]
        return state._replace(
            tokens=state.tokens + out[:, :, before:],
            spatial_registers=registers + out[:, :, :before],
        )

    def _over_time(self, state: SpaceTime, rotation: Rotation | None, mask: Mask) -> SpaceTime:
        tokens, registers = state.tokens, state.temporal_registers
        out = self.time(self.time_norm(over_time(tokens, registers, mask)), rotation, mask)
        out = self.time_branch(by_clip(out, tokens.shape[0], mask))
        on_tokens, on_registers = split_over_time(out, tokens, registers, mask)
        if registers is None:
            return state._replace(tokens=tokens + on_tokens)
        return state._replace(
            tokens=tokens + on_tokens, temporal_registers=registers + on_registers
        )


def factorized_self_attention(config: ViViTConfig) -> SpaceTimeTrunk:
    """Build the transformer of Model 3."""

    def block(config: ViViTConfig, drop_path: float) -> nn.Module:
        if config.block == "parallel":
            return ParallelSpaceTimeBlock(config, drop_path, config.num_heads, zero_time=True)
        return SpaceThenTimeBlock(config, drop_path)

    return SpaceTimeTrunk(config, block)
