"""Where a token is: sinusoidal tables and rotary embedding by coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ssl_vivit.grid import Grid


def sinusoidal_1d(length: int, dim: int) -> Float[Tensor, "length dim"]:
    """Interleaved sines (even) and cosines (odd), base 10000 (Vaswani et al. 2017, Sec. 3.5).

    Over the flattened t·h·w index it is VideoMAE's table (Tong et al. 2022).
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = position * frequency
    return rearrange(torch.stack((angle.sin(), angle.cos())), "k p f -> p (f k)")


def sinusoidal_2d(grid: Grid, dim: int) -> Float[Tensor, "n dim"]:
    """[sin x, cos x, sin y, cos y], each dim/4 wide (He et al. 2022; x the column, y the row)."""
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row = torch.arange(grid.h, dtype=torch.float64).repeat_interleave(grid.w)
    column = torch.arange(grid.w, dtype=torch.float64).repeat(grid.h)
    parts = [f(p[:, None] * frequency) for p in (column, row) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1)


class Rotation(NamedTuple):
    """Cosines and sines that turn queries and keys, (…, length, head_dim / 2) each."""

    cos: Tensor
    sin: Tensor

    def padded(self, before: int, after: int = 0) -> Rotation:
        """With unrotated tokens (class token, registers) before and after in the sequence."""
        pad = (0, 0, before, after)
        return Rotation(F.pad(self.cos, pad, value=1.0), F.pad(self.sin, pad))

    def apply(self, x: Float[Tensor, "b heads length head_dim"]) -> Tensor:
        """Rotate the pairs (i, i + head_dim / 2) of ``x``."""
        first, second = x.chunk(2, dim=-1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.cat(turned, dim=-1).type_as(x)


def rotation(
    coordinates: Int[Tensor, "length axes"], head_dim: int, base: float, dtype: torch.dtype
) -> Rotation:
    """Axial rotary embedding by coordinates (Su et al. 2021, Sec. 3.2.2, one share an axis).

    Taking coordinates instead of indices lets dropped or masked tokens keep their places.

    Args:
        coordinates: positions of the tokens, in tokens (space) or tubelet strides (time).
        head_dim: width of a head; each axis turns head_dim / axes of it.
        base: wavelengths run geometrically from 2π towards 2π · base.
        dtype: of the model; angles are float64 for float64, float32 for all others.
    """
    axes = coordinates.shape[-1]
    pairs = head_dim // 2 // axes
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    order = torch.arange(pairs, dtype=exact, device=coordinates.device)
    angle = coordinates.to(exact)[:, :, None] * base ** (-order / pairs)
    angle = rearrange(angle, "length axes pairs -> length (axes pairs)")
    return Rotation(angle.cos(), angle.sin())


def spatial_coordinates(grid: Grid, device: torch.device) -> Int[Tensor, "n 2"]:
    """(row, column) of each spatial token, row-major."""
    rows = torch.arange(grid.h, device=device).repeat_interleave(grid.w)
    columns = torch.arange(grid.w, device=device).repeat(grid.h)
    return torch.stack((rows, columns), dim=1)


def temporal_coordinates(grid: Grid, device: torch.device) -> Int[Tensor, "t 1"]:
    """Time of each token, in tubelet strides."""
    return torch.arange(grid.t, device=device)[:, None]
