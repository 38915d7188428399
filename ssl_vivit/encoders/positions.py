"""Where a token is: learned and sinusoidal tables, and rotary embedding by coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
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


class Positions(nn.Module):
    """Where each token is, as the config says: learned tables, sinusoids or rotations.

    Learned tables have a slot before the patches for the class token (space) and for the temporal
    class token (time).
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        grid, width = config.grid, config.embed_dim
        self.temporal_slots = int(config.pooling == "temporal_cls")
        # What only a temporal transformer reads must not exist without one: DDP refuses parameters
        # that have no gradient.
        has_time = config.variant != "factorized_encoder" or config.temporal_depth != 0
        self.spatial = self.temporal = self.joint = None
        if config.spatial_positions == "learned":
            self.spatial = token_parameter(int(bool(config.class_token)) + grid.n, width)
        if config.temporal_positions == "learned" and has_time:
            self.temporal = token_parameter(self.temporal_slots + grid.t, width)
        if config.joint_positions == "learned":
            self.joint = token_parameter(grid.t * grid.n, width)

    def add_spatial(
        self, x: Float[Tensor, "b t n d"], grid: Grid, visible: Int[Tensor, "b v"] | None
    ) -> Float[Tensor, "b t n d"]:
        """Spatial or joint positions on patch tokens."""
        config = self.config
        table: Tensor | None = None
        if config.spatial_positions == "sinusoidal":
            table = sinusoidal_2d(grid, config.embed_dim).to(x)
        elif self.spatial is not None:
            self._check_grid(grid[1:] == config.grid[1:], grid)
            table = self.spatial[-grid.n :]
        if table is not None:
            x = x + (table if visible is None else table[visible][:, None])
        if config.joint_positions == "sinusoidal":
            table = sinusoidal_1d(grid.t * grid.n, config.embed_dim).to(x)
        elif self.joint is not None:
            self._check_grid(grid == config.grid, grid)
            table = self.joint
        else:
            return x
        table = rearrange(table, "(t n) d -> t n d", t=grid.t)
        return x + (table if visible is None else table[:, visible].transpose(0, 1))

    def of_class_token(self) -> Float[Tensor, " d"] | None:
        """The class token's own spatial position, where it is learned."""
        return None if self.spatial is None else self.spatial[0]

    def add_temporal(self, x: Float[Tensor, "b t n d"], grid: Grid) -> Float[Tensor, "b t n d"]:
        """Temporal positions on every token of each time step."""
        config = self.config
        if config.temporal_positions == "sinusoidal":
            return x + sinusoidal_1d(grid.t, config.embed_dim).to(x)[:, None]
        if self.temporal is None:
            return x
        # Causal tokens know nothing of later ones, so a shorter clip is the start of a longer one.
        fits = grid.t <= config.grid.t if config.temporal_causal else grid.t == config.grid.t
        self._check_grid(fits, grid)
        return x + self.temporal[self.temporal_slots :][: grid.t, None]

    def of_temporal_class_token(self) -> Float[Tensor, " d"] | None:
        """The temporal class token's own position, where it is learned."""
        return None if self.temporal is None else self.temporal[0]

    def rotations(
        self, grid: Grid, visible: Int[Tensor, "b v"] | None, like: Tensor
    ) -> tuple[Rotation | None, Rotation | None]:
        """Rotations of sequences over space and over time, special tokens left unrotated."""
        config, device = self.config, like.device
        assert config.head_dim is not None
        space = time = None
        if config.spatial_positions == "rotary":
            places, base = spatial_coordinates(grid, device), config.rotary_base_spatial
            space = rotation(places, config.head_dim, base, like.dtype)
            if visible is not None:
                shape = "b v f -> (b t) 1 v f"
                space = Rotation(*(repeat(part[visible], shape, t=grid.t) for part in space))
            space = space.padded(config.register_tokens + int(bool(config.class_token)))
        if config.temporal_positions == "rotary":
            places, base = temporal_coordinates(grid, device), config.rotary_base_temporal
            time = rotation(places, config.head_dim, base, like.dtype)
            time = time.padded(config.register_tokens, self.temporal_slots)
        return space, time

    def _check_grid(self, fits: bool, grid: Grid) -> None:
        if not fits:
            config = self.config
            raise ValueError(
                f"a clip of {grid.t}×{grid.h}×{grid.w} tokens does not fit the learned positions "
                f"of {'×'.join(map(str, config.grid))}; use num_frames {config.num_frames} and "
                f"image_size {config.image_size}, or rotary or sinusoidal positions"
            )


def token_parameter(*shape: int, std: float = 0.02) -> nn.Parameter:
    """A table or token that is added to or stands among tokens, truncated-normal."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=std, a=-2 * std, b=2 * std))
