"""Shared parts of Models 3 and 4: tokens and registers of two axes, and the loop over blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Rotation, token_parameter
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache, band
from ssl_vivit.encoders.trunks.blocks import (
    Activation,
    Branch,
    HeadAttention,
    Mask,
    drop_path_rates,
    init_fused,
    mlp_widths,
    norm_layer,
    part_of,
    run_block,
    token_norm,
)
from ssl_vivit.encoders.trunks.time_sequences import TimeSequences
from ssl_vivit.encoders.visible_tokens import Places


class SpaceTime(NamedTuple):
    """Patch tokens, with registers that precede them in sequences over space and over time.

    Attributes:
        tokens: (b, t, n, d).
        spatial_registers: (b, t, r, d), r registers in each time step, or None.
        temporal_registers: (b, r, n, d), r registers at each position, or None.
    """

    tokens: Tensor
    spatial_registers: Tensor | None
    temporal_registers: Tensor | None

    def each(self, function: Callable[[Tensor], Tensor]) -> SpaceTime:
        """Apply a function to the tokens and to each kind of registers separately."""
        tokens, spatial, temporal = self
        return SpaceTime(
            function(tokens),
            None if spatial is None else function(spatial),
            None if temporal is None else function(temporal),
        )

    def plus(self, change: SpaceTime) -> SpaceTime:
        """Add the tokens and both kinds of registers of ``change`` to those of this state."""
        tokens, spatial, temporal = (
            None if x is None or dx is None else x + dx for x, dx in zip(self, change, strict=True)
        )
        assert tokens is not None
        return SpaceTime(tokens, spatial, temporal)


QKV = tuple[Tensor, Tensor, Tensor]


def attend_over_space(
    heads: HeadAttention, tokens: QKV, registers: QKV | None, rotation: Rotation | None
) -> tuple[Float[Tensor, "b t n inner"], Float[Tensor, "b t r inner"]]:
    """Attend within each time step over the sequence [registers, tokens].

    Args:
        heads: the attention layer.
        tokens: queries, keys and values of tokens, (b, t, n, inner) each.
        registers: queries, keys and values of spatial registers, (b, t, r, inner) each, or None.
        rotation: rotary embedding of the sequence, or None.

    Returns:
        The attention outputs of the tokens (b, t, n, inner) and of the registers (b, t, r, inner),
        with r = 0 without registers.
    """
    batch, before = tokens[0].shape[0], 0 if registers is None else registers[0].shape[2]
    query, key, value = (
        rearrange(joined(r, x, dim=2), "b t n i -> (b t) n i")
        for r, x in zip(registers or (None,) * 3, tokens, strict=True)
    )
    out = rearrange(heads(query, key, value, rotation), "(b t) n i -> b t n i", b=batch)
    return out[:, :, before:], out[:, :, :before]


def attend_over_time(
    heads: HeadAttention,
    tokens: QKV,
    registers: QKV | None,
    rotation: Rotation | None,
    mask: Mask,
) -> tuple[Float[Tensor, "b t n inner"], Float[Tensor, "b r p inner"]]:
    """Attend at each position over the sequence [registers, time steps].

    Args:
        heads: the attention layer.
        tokens: queries, keys and values of tokens, (b, t, n, inner) each.
        registers: queries, keys and values of temporal registers at all p spatial positions, (b, r,
            p, inner) each, or None.
        rotation: rotary embedding of the sequence, or None.
        mask: mask of the sequence; :class:`TimeSequences` if the visible positions differ between
            time steps.

    Returns:
        The attention outputs of the tokens (b, t, n, inner) and of the registers (b, r, p, inner),
        with r = 0 without registers.
    """
    query, key, value = (
        over_time(x, r, mask) for r, x in zip(registers or (None,) * 3, tokens, strict=True)
    )
    out = by_clip(heads(query, key, value, rotation, mask), tokens[0].shape[0], mask)
    return split_over_time(out, tokens[0], None if registers is None else registers[0], mask)


def over_time(
    tokens: Float[Tensor, "b t n d"], registers: Float[Tensor, "b r p d"] | None, mask: Mask
) -> Float[Tensor, "s l d"]:
    """Concatenate registers and tokens to sequences over time.

    Returns:
        (b · n, r + t, d), one sequence for each clip and position. With a mask of
        :class:`TimeSequences` (b, r · p + t · n, d), one row for each clip.
    """
    if not isinstance(mask, TimeSequences):
        return rearrange(joined(registers, tokens, dim=1), "b t n d -> (b n) t d")
    return joined(None if registers is None else registers.flatten(1, 2), tokens.flatten(1, 2), 1)


def by_clip(x: Float[Tensor, "s l d"], batch: int, mask: Mask) -> Float[Tensor, "b ..."]:
    """Reshape the result of :func:`over_time` to (b, r + t, n, d), unless it has a row per clip."""
    if isinstance(mask, TimeSequences):
        return x
    return rearrange(x, "(b n) t d -> b t n d", b=batch)


def split_over_time(
    x: Float[Tensor, "b ..."], tokens: Tensor, registers: Tensor | None, mask: Mask
) -> tuple[Float[Tensor, "b t n d"], Float[Tensor, "b r p d"]]:
    """Split the result of :func:`by_clip` into tokens and registers.

    ``tokens`` and ``registers`` give only the shapes.

    Returns:
        Tokens (b, t, n, d) and registers (b, r, p, d), with r = 0 without registers.
    """
    before = 0 if registers is None else registers.shape[1]
    if not isinstance(mask, TimeSequences):
        return x[:, before:], x[:, :before]
    first = before * mask.positions
    return (
        x[:, first:].unflatten(1, tokens.shape[1:3]),
        x[:, :first].unflatten(1, (before, mask.positions)),
    )


def joined(registers: Tensor | None, tokens: Tensor, dim: int) -> Tensor:
    """Concatenate registers, if there are any, and tokens along an axis."""
    return tokens if registers is None else torch.cat((registers, tokens), dim)


class ParallelSpaceTimeBlock(nn.Module):
    """Attention over time, MLP and attention over space in parallel, after one normalisation.

    One matrix product computes keys, values and queries of both axes and the MLP's input. Another
    matrix product computes the sum of the three branches (Dehghani et al. 2023, Sec. 2, for two
    axes). The parts of both matrices are in the order time, MLP, space. Registers attend over only
    one axis, so they use two adjacent parts.

    Args:
        config: gives widths and options.
        drop_path: rate of stochastic depth.
        heads: number of attention heads of each axis.
        zero_time: initialise the output weights of the attention over time with zeros.
    """

    def __init__(self, config: ViViTConfig, drop_path: float, heads: int, zero_time: bool) -> None:
        super().__init__()
        assert config.head_dim is not None
        before, after = mlp_widths(config)
        self.inner, self.before, self.after = heads * config.head_dim, before, after
        self.norm = norm_layer(config)
        widths = (*[self.inner] * 3, before, *[self.inner] * 3)
        self.fused_in = nn.Linear(config.embed_dim, sum(widths), bias=config.qkv_bias)
        self.time_heads = HeadAttention(config, heads)
        self.space_heads = HeadAttention(config, heads)
        self.activation = Activation(config.activation)
        self.mlp_drop = nn.Dropout(config.mlp_dropout)
        self.fused_out = nn.Linear(2 * self.inner + after, config.embed_dim)
        self.out_drop = nn.Dropout(config.mlp_dropout)
        self.branch = Branch(config, drop_path)
        init_fused(self.fused_in, widths)
        for part in self.fused_out.weight.split((self.inner, after, self.inner), dim=1):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.fused_out.bias)
        if zero_time:
            nn.init.zeros_(self.fused_out.weight[:, : self.inner])

    def forward(
        self,
        state: SpaceTime,
        spatial_rotation: Rotation | None,
        temporal_rotation: Rotation | None,
        time_mask: Mask,
    ) -> SpaceTime:
        normed = state.each(self.norm)
        time, mlp, space = 3 * self.inner, self.before, 3 * self.inner
        token_time, token_mlp, token_space = self.fused_in(normed.tokens).split(
            (time, mlp, space), dim=-1
        )
        spatial_mlp = spatial_space = temporal_time = temporal_mlp = None
        if normed.spatial_registers is not None:
            projected = part_of(self.fused_in, normed.spatial_registers, slice(time, None))
            spatial_mlp, spatial_space = projected.split((mlp, space), dim=-1)
        if normed.temporal_registers is not None:
            projected = part_of(self.fused_in, normed.temporal_registers, slice(time + mlp))
            temporal_time, temporal_mlp = projected.split((time, mlp), dim=-1)

        over_time, temporal = attend_over_time(
            self.time_heads,
            _qkv(token_time),
            None if temporal_time is None else _qkv(temporal_time),
            temporal_rotation,
            time_mask,
        )
        over_space, spatial = attend_over_space(
            self.space_heads,
            _qkv(token_space),
            None if spatial_space is None else _qkv(spatial_space),
            spatial_rotation,
        )
        inner, after = self.inner, self.after
        change = SpaceTime(
            self.fused_out(torch.cat((over_time, self._mlp(token_mlp), over_space), dim=-1)),
            None
            if spatial_mlp is None
            else columns_of(
                self.fused_out,
                torch.cat((self._mlp(spatial_mlp), spatial), dim=-1),
                slice(inner, None),
            ),
            None
            if temporal_mlp is None
            else columns_of(
                self.fused_out,
                torch.cat((temporal, self._mlp(temporal_mlp)), dim=-1),
                slice(inner + after),
            ),
        )
        return state.plus(change.each(lambda x: self.branch(self.out_drop(x))))

    def _mlp(self, hidden: Tensor) -> Tensor:
        return self.mlp_drop(self.activation(hidden))


def _qkv(projected: Tensor) -> QKV:
    key, value, query = projected.chunk(3, dim=-1)
    return query, key, value


def columns_of(layer: nn.Linear, x: Float[Tensor, "... part"], columns: slice) -> Tensor:
    """Apply a linear layer to ``x`` as its inputs ``columns``; its other inputs count as zeros."""
    return nn.functional.linear(x, layer.weight[:, columns], layer.bias)


class SpaceTimeTrunk(nn.Module):
    """Blocks that attend over space and over time, with registers for each axis.

    Args:
        config: gives depth, registers and norms.
        block: function that makes a block from the config and its rate of stochastic depth.

    Attributes:
        attention_window: number of newest time steps that a token of a causal encoder attends to,
            including its own; None is all.
    """

    def __init__(
        self, config: ViViTConfig, block: Callable[[ViViTConfig, float], nn.Module]
    ) -> None:
        super().__init__()
        assert config.depth is not None
        self.grad_checkpointing = False
        self.attention_window: int | None = None
        self.causal = config.temporal_causal
        registers, width = config.register_tokens, config.embed_dim
        self.spatial_registers = token_parameter(registers, width) if registers else None
        self.temporal_registers = token_parameter(registers, width) if registers else None
        rates = drop_path_rates(config, config.depth)
        self.blocks = nn.ModuleList(block(config, rate) for rate in rates)
        self.norm = token_norm(config)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        places: Places,
        rotations: tuple[Rotation | None, Rotation | None],
    ) -> Float[Tensor, "b t n d"]:
        """Apply the blocks to patch tokens.

        Args:
            x: embedded patches (b, t, n, d) with spatial and temporal positions added.
            places: token grid of the clip, and which tokens are kept. If the kept positions differ
                between time steps, all positions of the grid have temporal registers.
            rotations: rotary embeddings of sequences over space and of sequences over time; each
                may be None.
        """
        t, n = x.shape[1:3]
        time_mask: Mask = "causal" if self.causal else None
        before = 0 if self.temporal_registers is None else len(self.temporal_registers)
        if self.attention_window is not None:
            time_mask = band(t, self.attention_window, registers=before, device=x.device)
        if places.varying is not None:
            n = places.grid.n
            time_mask = TimeSequences.of(
                places.varying, n, before=before, after=0, causal=self.causal
            )
        state = self._with_registers(x, n)
        for block in self.blocks:
            state = run_block(block, self.grad_checkpointing, state, *rotations, time_mask)
        return self.norm(state.tokens)

    def step(
        self,
        x: Float[Tensor, "b 1 n d"],
        rotations: tuple[Rotation | None, Rotation | None],
        cache: KeyValueCache,
    ) -> Iterator[tuple[Float[Tensor, "b n d"], nn.Module]]:
        """Apply the blocks to the next time step of a causal encoder.

        The patches equal those of :meth:`forward` on the whole clip.

        Args:
            x: embedded patches (b, 1, n, d) of the step with spatial and temporal positions
                added.
            rotations: rotary embeddings of the sequence over space and of the sequence [registers,
                step]; each may be None.
            cache: keys and values of the earlier steps.

        Yields:
            For each block the patches after it (b, n, d), and the norm that follows the blocks. The
            norm has not been applied to the patches.
        """
        state, (over_space, over_time) = self._with_registers(x, x.shape[2]), rotations
        before = 0 if state.temporal_registers is None else state.temporal_registers.shape[1]
        if cache.steps:
            # Temporal registers do not change after the first step, since they attend to no token.
            state = state._replace(temporal_registers=None)
            over_time = None if over_time is None else over_time.of_tokens(slice(before, None))
        else:
            cache.begin(before, "causal")
        for block in self.blocks:
            state = block(state, over_space, over_time, cache)
            yield state.tokens[:, 0], self.norm

    def _with_registers(self, x: Float[Tensor, "b t n d"], positions: int) -> SpaceTime:
        """Return the tokens together with copies of the registers.

        Spatial registers are copied for each time step, and temporal registers for each of the
        ``positions`` spatial positions.
        """
        if self.spatial_registers is None or self.temporal_registers is None:
            return SpaceTime(x, None, None)
        return SpaceTime(
            x,
            repeat(self.spatial_registers, "r d -> b t r d", b=x.shape[0], t=x.shape[1]),
            repeat(self.temporal_registers, "r d -> b r n d", b=x.shape[0], n=positions),
        )

    def group_matcher(self) -> dict[str, str]:
        """Return a regular expression of parameter names for each layer group, ordered by depth."""
        return {
            "stem": r"^(?:tubelets|positions|trunk\.\w+_registers)",
            "blocks": r"^trunk\.blocks\.(\d+)",
            "norm": r"^trunk\.norm",
        }
