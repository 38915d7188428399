"""Which tubelets are hidden: tube, block and random masks with an exact count in every clip."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_vivit.grid import Grid
from ssl_vivit.objectives.config import MaskKind

# Multi-block masks of Bardes et al. 2024 (V-JEPA), Sec. 3.2.
_BLOCK_AREA = 0.15
_BLOCK_ASPECT = (0.75, 1.5)
_BLOCKS = 64


class TubeletMask(NamedTuple):
    """Indices of visible and of hidden tubelets, both ascending, as the encoder takes them.

    Attributes:
        visible: (b, v) kept spatial positions, or kept tokens among t·h·w where ``by_token``.
        hidden: (b, m) all the others.
        by_token: whether indices run over all tokens; otherwise over positions, at all times.
    """

    visible: Tensor
    hidden: Tensor
    by_token: bool

    @property
    def for_encoder(self) -> dict[str, Tensor]:
        """The visible ones as an argument of an encoder."""
        return {"visible_tokens" if self.by_token else "visible": self.visible}

    def to(self, device: torch.device) -> TubeletMask:
        """The same on a device."""
        return TubeletMask(self.visible.to(device), self.hidden.to(device), self.by_token)


def hidden_count(total: int, ratio: float, what: str) -> int:
    """How many of ``total`` a ratio hides, rounded down as VideoMAE does.

    Raises:
        ValueError: if that is none or all of them; the message names the ratios that would do.
    """
    if total < 2:
        raise ValueError(
            f"there is {total} of {what}, so none can be hidden beside a visible one; use smaller "
            "tubelets or larger images"
        )
    hidden = int(total * min(max(ratio, 0.0), 1.0) + 1e-9) if math.isfinite(ratio) else 0
    if not 0 < hidden < total:
        # Rounded inwards: both bounds must do.
        least, most = math.ceil(1e4 / total) / 1e4, math.floor(1e4 * (1 - 1 / total)) / 1e4
        raise ValueError(
            f"objective.mask_ratio {ratio} hides {hidden} of {total} {what}; some must be hidden "
            f"and some visible: use {least:g} to {most:g}"
        )
    return hidden


def draw_mask(
    kind: MaskKind,
    grid: Grid,
    ratio: float,
    batch: int,
    generator: torch.Generator | None = None,
) -> TubeletMask:
    """Draw a mask for each clip, on the CPU.

    Args:
        kind: ``tube`` hides random positions at all times (VideoMAE, Tong et al. 2022, Sec. 3.2);
            ``block`` the union of rectangles, at all times (V-JEPA, Bardes et al. 2024, Sec. 3.2);
            ``random`` other random positions at every time.
        grid: tokens of a clip.
        ratio: share of the h·w positions that is hidden, rounded down.
        batch: clips.
        generator: of the random numbers; None is torch's own.

    Raises:
        ValueError: for a ratio that hides nothing or everything.
    """
    hidden = hidden_count(grid.n, ratio, f"positions ({grid.h}×{grid.w})")
    steps = grid.t if kind == "random" else 1
    if kind == "block":
        rank = _block_rank(grid, batch, generator)
    else:
        rank = torch.rand(batch, steps, grid.n, generator=generator)
    order = rank.argsort(-1)
    offset = torch.arange(steps)[:, None] * grid.n
    visible, hidden_ones = (
        (part.sort(-1).values + offset).flatten(1)
        for part in (order[..., hidden:], order[..., :hidden])
    )
    return TubeletMask(visible, hidden_ones, by_token=kind == "random")


def nearest_visible(mask: TubeletMask, grid: Grid) -> Int[Tensor, "b m"]:
    """For each hidden tubelet the nearest visible one, as an index of the mask's own kind.

    Distances are between tubelets' centres in steps of the grid, time included where indices are
    over tokens; of several nearest the first.
    """
    axes = [torch.arange(count, device=mask.visible.device, dtype=torch.float) for count in grid]
    places = torch.cartesian_prod(*(axes if mask.by_token else axes[1:]))
    distance = torch.cdist(places[mask.hidden], places[mask.visible])
    return mask.visible.gather(1, distance.argmin(-1))


def _block_rank(
    grid: Grid, batch: int, generator: torch.Generator | None
) -> Float[Tensor, "b 1 n"]:
    """Lowest where rectangles drawn first lie; random among places of the same rectangle.

    Hiding the lowest ranks hides whole rectangles one after the other, the last one in part, so
    that the count is exact.
    """
    draw = torch.rand(4, batch, _BLOCKS, generator=generator)
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
    return (first + torch.rand(batch, grid.n, generator=generator))[:, None]
