"""Learned position tables at another size."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def resample_spatial(
    table: Float[Tensor, "n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "m d"]:
    """A table of row-major spatial positions on another grid.

    Bicubic with antialiasing, as ``timm.layers.resample_abs_pos_embed``.

    Args:
        table: positions, n = old[0] · old[1].
        old: (h, w) of the table.
        new: (h, w) wanted; the table itself comes back where it is the same.
    """
    if tuple(old) == tuple(new):
        return table
    # One axis after the other, each as a row: torch is wrong where the output is one column.
    rows = rearrange(table, "(h w) d -> h d 1 w", h=old[0])
    rows = F.interpolate(rows, size=(1, new[1]), mode="bicubic", antialias=True)
    columns = rearrange(rows, "h d 1 w -> w d 1 h")
    columns = F.interpolate(columns, size=(1, new[0]), mode="bicubic", antialias=True)
    return rearrange(columns, "w d 1 h -> (h w) d")


def resample_temporal(table: Float[Tensor, "t d"], new: int) -> Float[Tensor, "new d"]:
    """A table of time steps at another length, linear between the centres of steps.

    The table itself comes back where the length is the same.
    """
    if len(table) == new:
        return table
    curves = rearrange(table, "t d -> 1 d t")
    return rearrange(F.interpolate(curves, size=new, mode="linear"), "1 d t -> t d")
