"""Tube, block and random masks of tubelets, with a fixed number of hidden tubelets."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_vivit.data.to_device import to_device
from ssl_vivit.grid import Grid
from ssl_vivit.objectives.config import MaskKind

# Area (fraction), aspect ratios and largest number of blocks (V-JEPA, Bardes et al. 2024, Sec.
# 3.2).
_BLOCK_AREA = 0.15
_BLOCK_ASPECT = (0.75, 1.5)
_BLOCKS = 64


class TubeletMask(NamedTuple):
    """Indices of the visible and hidden tubelets of b clips, in ascending order.

    Attributes:
        visible: indices of visible tubelets. Shape (b, v): spatial positions that are visible at
            all time steps. Shape (b, t, v): visible spatial positions of each time step. If
            ``by_token`` is true, the shape is (b, k), and the indices are among all t·h·w tubelets
            of a clip.
        hidden: indices of all other tubelets, numbered like ``visible``: (b, m) or (b, t, m).
        by_token: whether tubelets are numbered from 0 to t·h·w − 1 (only for Model 1). Otherwise
            the h·w spatial positions of a time step are numbered.
    """

    visible: Tensor
    hidden: Tensor
    by_token: bool = False

    @property
    def for_encoder(self) -> dict[str, Tensor]:
        """Dictionary with the keyword argument that passes the visible tubelets to an encoder."""
        return {"visible_tokens" if self.by_token else "visible": self.visible}

    def to(self, device: torch.device) -> TubeletMask:
        """Return a copy on a device, without waiting for the copy."""
        visible, hidden = (to_device(index, device) for index in (self.visible, self.hidden))
        return TubeletMask(visible, hidden, self.by_token)

    def tokens(self, grid: Grid) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b m"]]:
        """Return indices of the visible (b, k) and the hidden (b, m) tubelets of each clip.

        The t·h·w tubelets of a clip are numbered by time step, then row, then column. Indices are
        ascending, as those of the mask.
        """
        if self.by_token:
            return self.visible, self.hidden
        steps = torch.arange(grid.t, device=self.visible.device)[:, None] * grid.n
        visible, hidden = (
            (x if x.ndim == 3 else x[:, None]) + steps for x in (self.visible, self.hidden)
        )
        return visible.flatten(1), hidden.flatten(1)


def hidden_count(total: int, ratio: float, what: str) -> int:
    """Return how many positions are hidden, rounded down as in VideoMAE.

    Args:
        total: number of all positions.
        ratio: fraction of the positions to hide.
        what: noun for the positions, for error messages.

    Raises:
        ValueError: if no or all positions would be hidden; the message gives the valid ratios.
    """
    if total < 2:
        raise ValueError(
            f"there are only {total} {what}, but at least one must be hidden and one visible; use "
            "smaller tubelets or larger images"
        )
    hidden = int(total * min(max(ratio, 0.0), 1.0) + 1e-9) if math.isfinite(ratio) else 0
    if not 0 < hidden < total:
        # Round inwards, so that both bounds are valid.
        least, most = math.ceil(1e4 / total) / 1e4, math.floor(1e4 * (1 - 1 / total)) / 1e4
        raise ValueError(
            f"objective.mask_ratio {ratio} hides {hidden} of {total} {what}; some must be hidden "
            f"and some visible: use {least:g} to {most:g}"
        )
    return hidden


def mask_numbers(kind: MaskKind, grid: Grid) -> int:
    """Return the number of random numbers that :func:`draw_mask` needs for each clip."""
    if kind == "block":
        return 3 * _BLOCKS + grid.n
    return grid.n * (grid.t if kind == "random" else 1)


def draw_mask(
    kind: MaskKind, grid: Grid, ratio: float, numbers: Float[Tensor, "b numbers"]
) -> TubeletMask:
    """Compute a mask for each clip from random numbers, on the CPU.

    Args:
        kind: ``tube`` hides random positions that are constant over time (VideoMAE, Tong et al.
            2022, Sec. 3.2). ``block`` hides a union of rectangles that is constant over time
            (V-JEPA, Bardes et al. 2024, Sec. 3.2). ``random`` hides different random positions at
            each time step.
        grid: grid of the tokens of a clip.
        ratio: fraction of the h·w positions that are hidden. The number of hidden positions is
            rounded down.
        numbers: random numbers (b, count), uniform in [0, 1); :func:`mask_numbers` gives the count.
            The mask of a clip depends only on the row of that clip.

    Raises:
        ValueError: if the ratio would hide no or all positions.
    """
    hidden = hidden_count(grid.n, ratio, f"positions ({grid.h}×{grid.w})")
    rank = _block_rank(grid, numbers) if kind == "block" else numbers
    rank = rearrange(rank, "b (t n) -> b t n", n=grid.n)
    order = rank.argsort(-1)
    visible, hidden_ones = (
        part.sort(-1).values for part in (order[..., hidden:], order[..., :hidden])
    )
    if kind == "random":
        return TubeletMask(visible, hidden_ones)
    return TubeletMask(visible[:, 0], hidden_ones[:, 0])


def nearest_visible(
    mask: TubeletMask, grid: Grid, count: int = 1
) -> tuple[Int[Tensor, "b m count"], Float[Tensor, "b m count"]]:
    """Find the nearest visible tubelets of each hidden tubelet.

    Args:
        mask: the masks.
        grid: grid of the tokens of a clip.
        count: number of visible tubelets to find for each hidden tubelet; at most all of the clip.

    Returns:
        Two arrays (b, m, count) for the m hidden tubelets of each clip, nearest first: indices of
        visible tubelets among all t·h·w tubelets, and their distances. The distance between
        neighbours in time, height or width is 1. Tubelets at equal distance are in the order of
        their indices.
    """
    visible, hidden = mask.tokens(grid)
    axes = [torch.arange(length, device=visible.device, dtype=torch.float) for length in grid]
    places = torch.cartesian_prod(*axes)
    found, distances = [], []
    # One clip at a time, since the distances of a whole batch may not fit into memory.
    for there, wanted in zip(visible, hidden, strict=True):
        # Avoid matrix products, which round equal distances differently.
        distance = torch.cdist(
            places[wanted], places[there], compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance, order = (x[:, :count] for x in distance.sort(dim=-1, stable=True))
        found.append(there[order])
        distances.append(distance)
    return torch.stack(found), torch.stack(distances)


def _block_rank(grid: Grid, numbers: Float[Tensor, "b numbers"]) -> Float[Tensor, "b n"]:
    """Rank the spatial positions of each clip (b, n); positions of low rank are hidden.

    Random rectangles are numbered. A position is ranked by the first rectangle that contains it.
    Positions of the same rectangle are ranked randomly. Hiding the lowest ranks hides whole
    rectangles one after another and a part of the last one, so that the number of hidden positions
    is exact.

    Args:
        grid: grid of the tokens of a clip.
        numbers: uniform random numbers, see :func:`draw_mask`.
    """
    numbers, within = numbers.split([3 * _BLOCKS, grid.n], dim=1)
    draw = rearrange(numbers, "b (what blocks) -> what b blocks", what=3)
    low, high = (torch.tensor(x).log() for x in _BLOCK_ASPECT)
    aspect = (low + draw[0] * (high - low)).exp()
    area = _BLOCK_AREA * grid.n
    height = (area * aspect).sqrt().round().clamp(1, grid.h)
    width = (area / aspect).sqrt().round().clamp(1, grid.w)
    top = (draw[1] * (grid.h - height + 1)).floor()
    left = (draw[2] * (grid.w - width + 1)).floor()
    row = torch.arange(grid.h).repeat_interleave(grid.w)
    column = torch.arange(grid.w).repeat(grid.h)

    def inside(at: Int[Tensor, " n"], start: Tensor, length: Tensor) -> Bool[Tensor, "b blocks n"]:
        return (at >= start[..., None]) & (at < (start + length)[..., None])

    covered = inside(row, top, height) & inside(column, left, width)
    number = torch.arange(_BLOCKS)[:, None].expand_as(covered)
    first = torch.where(covered, number, _BLOCKS).amin(1).float()
    return first + within
