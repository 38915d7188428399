"""Attention over time if the visible positions differ between time steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_vivit.encoders.positions import Rotation

# Cost of copying one slot to the grid, in units of one product of attention over a row. Measured:
# 96 to 150 for 8 to 75 slots, forward and backward on one CPU thread.
_COPYING = 100


class TimeSequences(NamedTuple):
    """Sequences over time, one for each spatial position, with gaps at hidden tokens.

    A sequence [registers, time steps, class tokens] has one slot for each register, time step and
    class token. The slots of hidden tokens are empty. Tokens attend only to the tokens of their own
    spatial position.

    The k tokens of a clip are stored as one row: first all registers, then the patch tokens, then
    the class tokens. Each of these parts is ordered by slot. Within a slot, tokens are in the order
    of position, and patch tokens in the order of ``visible`` of :meth:`of`. Hidden tokens are not
    in the row.

    There are two ways to compute the attention, with equal results. Masked attention over the whole
    row takes k² products. Attention on the grid of all positions and slots takes
    positions · slots² products, and queries, keys and values must be copied to the grid.

    Attributes:
        cells: (b, k) index of the grid cell of each token in the row: position · slots + slot.
        positions: number of spatial positions.
        slots: number of slots of a sequence.
        mask: attention mask, (b, 1, k, k) over the row or (b · positions, 1, slots, slots) on the
            grid.
        on_grid: True if attention is computed on the grid.
    """

    cells: Tensor
    positions: int
    slots: int
    mask: Tensor
    on_grid: bool

    @classmethod
    def of(
        cls,
        visible: Int[Tensor, "b t m"],
        positions: int,
        *,
        before: int,
        after: int,
        causal: bool,
        on_grid: bool | None = None,
    ) -> TimeSequences:
        """Arrange the sequences of clips with the given visible tokens.

        Args:
            visible: (b, t, m) index of the spatial position of each visible token.
            positions: number of spatial positions.
            before: number of registers at each position.
            after: number of class tokens at each position.
            causal: slots of a sequence do not attend to later slots.
            on_grid: compute attention on the grid of positions and slots (True) or over the row of
                tokens (False); None chooses the cheaper way.
        """
        batch, steps, _ = visible.shape
        everywhere = torch.arange(positions, device=visible.device)
        slots = before + steps + after
        first = torch.arange(before, steps + before, device=visible.device)[:, None]
        parts = [visible * slots + first]
        if before:
            register = torch.arange(before, device=visible.device)[:, None]
            parts.insert(0, repeat(everywhere * slots + register, "r p -> b r p", b=batch))
        if after:
            last = torch.arange(before + steps, slots, device=visible.device)[:, None]
            parts.append(repeat(everywhere * slots + last, "c p -> b c p", b=batch))
        index = torch.cat([part.flatten(1) for part in parts], dim=1)
        if on_grid is None:
            on_grid = index.shape[1] ** 2 > positions * slots * max(slots, _COPYING)
        make = _grid_mask if on_grid else _row_mask
        return cls(index, positions, slots, make(index, positions, slots, causal), on_grid)

    def attend(
        self,
        heads: Callable[..., Tensor],
        query: Float[Tensor, "b k inner"],
        key: Float[Tensor, "b k inner"],
        value: Float[Tensor, "b k inner"],
        rotation: Rotation | None,
    ) -> Float[Tensor, "b k inner"]:
        """Compute the attention of the k tokens of each clip.

        Args:
            heads: attention layer, called with query, key, value, rotation and mask.
            query: queries (b, k, inner), one row of tokens for each clip.
            key: keys in the same shape.
            value: values in the same shape.
            rotation: rotary embedding of a sequence of all slots, or None.
        """
        if not self.on_grid:
            if rotation is not None:
                slot = self.cells % self.slots
                rotation = Rotation(*(part[slot][:, None] for part in rotation))
            return heads(query, key, value, rotation, self.mask)
        index = self.cells[..., None].expand_as(query)
        out = heads(*(self._laid_out(x, index) for x in (query, key, value)), rotation, self.mask)
        return rearrange(out, "(b p) s i -> b (p s) i", p=self.positions).gather(1, index)

    def _laid_out(self, x: Tensor, index: Tensor) -> Float[Tensor, "bp slots inner"]:
        grid = x.new_zeros(x.shape[0], self.positions * self.slots, x.shape[2])
        grid = grid.scatter(1, index, x)
        return rearrange(grid, "b (p s) i -> (b p) s i", p=self.positions)


def _row_mask(index: Tensor, positions: int, slots: int, causal: bool) -> Bool[Tensor, "b 1 k k"]:
    position, slot = index // slots, index % slots
    mask = position[:, :, None] == position[:, None, :]
    if causal:
        mask = mask & (slot[:, :, None] >= slot[:, None, :])
    return mask[:, None]


def _grid_mask(index: Tensor, positions: int, slots: int, causal: bool) -> Bool[Tensor, "bp 1 s s"]:
    there = torch.zeros(index.shape[0], positions * slots, dtype=torch.bool, device=index.device)
    there = there.scatter(1, index, True)
    keys = rearrange(there, "b (p s) -> (b p) 1 1 s", p=positions)
    mask = keys.expand(-1, -1, slots, -1)
    if causal:
        mask = mask & torch.ones(slots, slots, dtype=torch.bool, device=index.device).tril()
    # Let an empty slot attend to itself: without any key, softmax and its gradient would be NaN.
    return mask | torch.eye(slots, dtype=torch.bool, device=index.device)
