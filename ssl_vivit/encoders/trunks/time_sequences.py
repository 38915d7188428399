"""Attention over time where other positions are visible at every time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_vivit.encoders.positions import Rotation

# What copying one slot to the grid costs, in products of the attention over a row: from 96 to 150
# for 8 to 75 slots, forward and backward on one CPU thread.
_COPYING = 100


class TimeSequences(NamedTuple):
    """Sequences over time, one for each position, whose tokens are visible at some time steps only.

    The tokens of a clip stand in one row: registers, patch tokens and class tokens, each in the order
    of slot and position. A sequence has one slot for each register, time step and class token.
    Tokens attend within their own position to what is there; hidden tokens do not exist, so they
    neither attend nor are attended to.

    There are two ways to compute it, which give equal numbers. One attention over the whole row
    with a mask takes k² products; attention on the grid of all slots takes positions · slots²,
    and copies queries, keys and values to the grid. The cheaper one is taken.

    Attributes:
        cells: (b, k) place of each token of the row among positions · slots.
        positions: how many positions there are.
        slots: how many slots a sequence has.
        mask: what attends to what, (b, 1, k, k) for one attention over the row, (b · positions, 1,
            slots, slots) on the grid.
        on_grid: whether attention runs on the grid.
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
        """Lay out the sequences of a clip.

        Args:
            visible: position of each visible token.
            positions: how many positions there are.
            before: registers of each position.
            after: class tokens of each position.
            causal: no slot attends to later ones.
            on_grid: how to compute it; None takes the cheaper way.
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
        """Attention of the tokens of rows.

        Args:
            heads: attention within sequences, called with query, key, value, rotation and mask.
            query: of the rows; ``key`` and ``value`` likewise.
            rotation: of a sequence of all slots.
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
    # An empty slot attends to itself: without any key softmax and its gradient would be NaN.
    return mask | torch.eye(slots, dtype=torch.bool, device=index.device)
