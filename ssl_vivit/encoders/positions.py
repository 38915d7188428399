"""Position embeddings: learned and sinusoidal tables, and rotary embeddings of coordinates."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.visible_tokens import Places
from ssl_vivit.grid import Grid


def sinusoidal_1d(
    length: int, dim: int, first: int = 0, device: torch.device | None = None
) -> Float[Tensor, "length dim"]:
    """Return a table (length, dim) of sinusoidal positions (Vaswani et al. 2017, Sec. 3.5).

    Row i is position ``first`` + i. Even columns are sines and odd columns cosines; the base is
    10000. With one row for each of the t·h·w tokens of a clip, the table is that of VideoMAE (Tong
    et al. 2022).
    """
    exact: dict[str, Any] = {"dtype": _exact(device), "device": device}
    position = torch.arange(first, first + length, **exact)[:, None]
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, **exact) / dim)
    angle = position * frequency
    return rearrange(torch.stack((angle.sin(), angle.cos())), "k p f -> p (f k)")


def sinusoidal_2d(
    grid: Grid, dim: int, device: torch.device | None = None
) -> Float[Tensor, "n dim"]:
    """Return a table (h·w, dim) of sinusoidal positions in two dimensions (He et al. 2022).

    A row of the table is [sin x, cos x, sin y, cos y], each dim/4 wide, where x is the column and y
    the row of a token in the grid. Tokens are in row-major order.
    """
    exact: dict[str, Any] = {"dtype": _exact(device), "device": device}
    frequency = 10000.0 ** (-torch.arange(dim // 4, **exact) / (dim // 4))
    row = torch.arange(grid.h, **exact).repeat_interleave(grid.w)
    column = torch.arange(grid.w, **exact).repeat(grid.h)
    parts = [f(p[:, None] * frequency) for p in (column, row) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1)


def resample_spatial(
    table: Float[Tensor, "n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "m d"]:
    """Resample a table of row-major spatial positions to another grid.

    Bicubic with antialiasing, as ``timm.layers.resample_abs_pos_embed``.

    Args:
        table: positions (h·w, d) of the old grid.
        old: (h, w) of the old grid.
        new: (h, w) of the new grid; if it equals ``old``, the table itself is returned.
    """
    if tuple(old) == tuple(new):
        return table
    # Resample each axis as rows: torch is wrong if the output has one column.
    rows = rearrange(table, "(h w) d -> h d 1 w", h=old[0])
    rows = F.interpolate(rows, size=(1, new[1]), mode="bicubic", antialias=True)
    columns = rearrange(rows, "h d 1 w -> w d 1 h")
    columns = F.interpolate(columns, size=(1, new[0]), mode="bicubic", antialias=True)
    return rearrange(columns, "w d 1 h -> (h w) d")


def resample_temporal(table: Float[Tensor, "t d"], new: int) -> Float[Tensor, "new d"]:
    """Resample temporal positions (t, d) to ``new`` time steps, by linear interpolation.

    Each row of the table stands for the centre of its time step. If the number of time steps is
    unchanged, the table itself is returned.
    """
    if len(table) == new:
        return table
    curves = rearrange(table, "t d -> 1 d t")
    return rearrange(F.interpolate(curves, size=new, mode="linear"), "1 d t -> t d")


class Rotation(NamedTuple):
    """Cosines and sines that rotate queries and keys, (…, length, head_dim / 2) each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, angle: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation by the given angles: float64 if ``dtype`` is float64, else float32."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        return cls(angle.cos().to(exact), angle.sin().to(exact))

    def of_tokens(self, chosen: slice) -> Rotation:
        """Return the rotation of a slice of the tokens."""
        return Rotation(self.cos[..., chosen, :], self.sin[..., chosen, :])

    def padded(self, before: int, after: int = 0) -> Rotation:
        """Return the rotation with unrotated tokens added before and after the sequence."""
        pad = (0, 0, before, after)
        return Rotation(F.pad(self.cos, pad, value=1.0), F.pad(self.sin, pad))

    def apply(self, x: Float[Tensor, "b heads length head_dim"]) -> Tensor:
        """Rotate the components i and i + head_dim / 2 of queries or keys ``x`` as pairs."""
        first, second = x.chunk(2, dim=-1)
        turned = (
            torch.addcmul(first * self.cos, second, self.sin, value=-1),
            torch.addcmul(second * self.cos, first, self.sin),
        )
        return torch.cat(turned, dim=-1).type_as(x)


def angles(
    coordinates: Int[Tensor, "*shape length"], pairs: int, base: float
) -> Float[Tensor, "*shape length pairs"]:
    """Return the angles of a rotary embedding along one axis (Su et al. 2021, Sec. 3.2.2).

    They are computed from coordinates instead of indices, so that positions do not change if other
    tokens are dropped or masked. They are float64: in float32 an angle of 1000 has errors up to
    3e-5.

    Args:
        coordinates: positions of the tokens, in tokens (space) or tubelet strides (time).
        pairs: number of pairs of a head's components that rotate with this axis.
        base: wavelengths grow geometrically from 2π towards 2π · base.
    """
    exact = _exact(coordinates.device)
    order = torch.arange(pairs, dtype=exact, device=coordinates.device)
    return coordinates.to(exact)[..., None] * base ** (-order / pairs)


def _exact(device: torch.device | None) -> torch.dtype:
    """Return the most precise float type of a device; Apple's GPUs have no float64."""
    return torch.float32 if device is not None and device.type == "mps" else torch.float64


class Positions(nn.Module):
    """Position embedding of each token: learned tables, sinusoids or rotations.

    Learned tables have an extra row before the patches for the class token (in the spatial table,
    or the joint table of Model 1) and for the temporal class token (in the temporal table).
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        grid, width = config.grid, config.embed_dim
        self.class_slots = int(bool(config.class_token))
        self.temporal_slots = int(config.pooling == "temporal_cls")
        # Model 1 has one class token in the sequence of all tokens, Model 2 one per time step.
        self.joint_slots = self.class_slots if config.variant == "joint" else 0
        # Without a temporal transformer its parameters must not exist: DDP refuses parameters
        # without gradients.
        has_time = config.variant != "factorized_encoder" or config.temporal_depth != 0
        self.spatial = self.temporal = self.joint = None
        self._sinusoids: dict[tuple[Hashable, ...], Tensor] = {}
        if config.spatial_positions == "learned":
            self.spatial = token_parameter(self.class_slots + grid.n, width)
        if config.temporal_positions == "learned" and has_time:
            self.temporal = token_parameter(self.temporal_slots + grid.t, width)
        if config.joint_positions == "learned":
            self.joint = token_parameter(self.joint_slots + grid.t * grid.n, width)

    def add_spatial(self, x: Float[Tensor, "b t n d"], places: Places) -> Float[Tensor, "b t n d"]:
        """Add spatial or joint position embeddings to patch tokens."""
        table = self._spatial_table(places.grid, x)
        if table is not None:
            placed = table[places.space]
            x = x + (placed[:, None] if placed.ndim == 3 else placed)
        table = self._joint_table(places, x)
        return x if table is None else x + places.spread(table)

    def of_class_token(self) -> Float[Tensor, " d"] | None:
        """Return the class token's learned position embedding; None if not learned."""
        if self.joint is not None and self.joint_slots:
            return self.joint[0]
        return None if self.spatial is None else self.spatial[0]

    def add_temporal(self, x: Float[Tensor, "b t n d"], places: Places) -> Float[Tensor, "b t n d"]:
        """Add to every token the position embedding of its time step."""
        table = self._temporal_table(places, x)
        if table is None:
            return x
        if places.visible_tokens is not None:
            return x + table[places.times(x.device)][:, None]
        return x + table[:, None]

    def of_temporal_class_token(self) -> Float[Tensor, " d"] | None:
        """Return the temporal class token's learned position embedding; None if not learned."""
        return None if self.temporal is None else self.temporal[0]

    def rotations(self, places: Places, like: Tensor) -> tuple[Rotation | None, Rotation | None]:
        """Return the rotary embeddings of sequences over space and of sequences over time.

        Each is None if the positions of that axis are not rotary. Class tokens and registers are
        not rotated.
        """
        config = self.config
        assert config.head_dim is not None
        space = time = None
        if config.spatial_positions == "rotary":
            angle = self._spatial_angles(places, config.head_dim // 4, like)
            space = Rotation.of(angle, like.dtype)
            if places.varying is not None:
                space = Rotation(*(rearrange(part, "b t v f -> (b t) 1 v f") for part in space))
            elif places.visible is not None:
                shape = "b v f -> (b t) 1 v f"
                space = Rotation(*(repeat(part, shape, t=places.grid.t) for part in space))
            space = space.padded(config.register_tokens + self.class_slots)
        if config.temporal_positions == "rotary":
            steps, base = places.steps(like.device), config.rotary_base_temporal
            time = Rotation.of(angles(steps, config.head_dim // 2, base), like.dtype)
            time = time.padded(config.register_tokens, self.temporal_slots)
        return space, time

    def joint_rotation(self, places: Places, like: Tensor) -> Rotation | None:
        """Return the rotary embedding of Model 1's sequence of all tokens; None if not rotary.

        Class tokens and registers are not rotated. If positions in space and in time are rotary,
        row, column and time each rotate a third of the pairs of a head's components. Pairs that
        remain are rotated by time.
        """
        config = self.config
        assert config.head_dim is not None
        pairs = config.head_dim // 2
        in_space = config.spatial_positions == "rotary"
        in_time = config.temporal_positions == "rotary"
        if not (in_space or in_time):
            return None
        per_axis = 0 if not in_space else pairs // (3 if in_time else 2)
        parts = []
        if in_space:
            parts.append(self._spatial_angles(places, per_axis, like))
            if places.varying is not None:
                parts[0] = parts[0].flatten(1, 2)
            elif places.visible_tokens is None:
                parts[0] = repeat(parts[0], "... n f -> ... (t n) f", t=places.grid.t)
        if in_time:
            base, times = config.rotary_base_temporal, places.times(like.device)
            parts.append(angles(times, pairs - 2 * per_axis, base))
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        angle = torch.cat([part.expand(*lead, -1) for part in parts], dim=-1)
        if angle.ndim == 3:
            angle = angle[:, None]
        specials = config.register_tokens + self.class_slots
        return Rotation.of(angle, like.dtype).padded(specials)

    def _spatial_angles(
        self, places: Places, pairs: int, like: Tensor
    ) -> Float[Tensor, "... n angles"]:
        grid, base = places.grid, self.config.rotary_base_spatial
        rows = torch.arange(grid.h, device=like.device).repeat_interleave(grid.w, dim=0)
        columns = torch.arange(grid.w, device=like.device).repeat(grid.h)
        parts = [angles(axis, pairs, base) for axis in (rows, columns)]
        return torch.cat(parts, dim=-1)[places.space]

    def _spatial_table(self, grid: Grid, like: Tensor) -> Float[Tensor, "n d"] | None:
        config = self.config
        if config.spatial_positions == "sinusoidal":
            return self._sinusoid(like, sinusoidal_2d, grid)
        if self.spatial is None:
            return None
        self._check_fit(grid[1:] == config.grid[1:], grid)
        return resample_spatial(self.spatial[self.class_slots :], config.grid[1:], grid[1:])

    def _temporal_table(self, places: Places, like: Tensor) -> Float[Tensor, "t d"] | None:
        config = self.config
        if config.temporal_positions == "sinusoidal":
            return self._sinusoid(like, sinusoidal_1d, places.grid.t, places.start)
        if self.temporal is None:
            return None
        return self._in_time(self.temporal[self.temporal_slots :], places)

    def _joint_table(self, places: Places, like: Tensor) -> Float[Tensor, "t n d"] | None:
        config, grid = self.config, places.grid
        if config.joint_positions == "sinusoidal":
            table = self._sinusoid(like, sinusoidal_1d, grid.t * grid.n, places.start * grid.n)
            return rearrange(table, "(t n) d -> t n d", t=grid.t)
        if self.joint is None:
            return None
        table = self.joint[self.joint_slots :]
        if grid == config.grid and not places.start:
            return rearrange(table, "(t n) d -> t n d", t=grid.t)
        self._check_fit(grid[1:] == config.grid[1:], grid)
        table = rearrange(table, "(t n) d -> t (n d)", n=config.grid.n)
        table = rearrange(self._in_time(table, places), "t (n d) -> n (t d)", n=config.grid.n)
        table = resample_spatial(table, config.grid[1:], grid[1:])
        return rearrange(table, "n (t d) -> t n d", t=grid.t)

    def _sinusoid(
        self, like: Tensor, make: Callable[..., Tensor], size: Grid | int, first: int = 0
    ) -> Float[Tensor, "places d"]:
        """Return a sinusoidal table with dtype and device of ``like``; row 0 is position ``first``.

        The table is cached, since computing it takes as long as a transformer block. It is not
        cached in a compiled graph, which computes it in one kernel. A table with ``first`` above 0
        is not cached either: it is used only once, when a video is encoded step by step.
        """
        compiling, dim, device = torch.compiler.is_compiling(), self.config.embed_dim, like.device
        if first:
            return make(size, dim, first, device=device).to(like)
        key = (make, size, like.dtype, device)
        if not compiling and key in self._sinusoids:
            return self._sinusoids[key]
        table = make(size, dim, device=device).to(like)
        # Do not cache a tensor made by a tracer or in inference mode: it cannot be used later.
        if not compiling and type(table) is Tensor and not table.is_inference():
            self._sinusoids[key] = table
        return table

    def _in_time(self, table: Float[Tensor, "t d"], places: Places) -> Float[Tensor, "t d"]:
        """Return the rows of a learned table for the clip's time steps.

        They are resampled if the clip has another number of time steps than configured. A causal
        encoder instead takes the rows from ``places.start`` on, without resampling.
        """
        config, grid = self.config, places.grid
        end = places.start + grid.t
        # In a causal encoder a shorter clip is the start of a longer one.
        if config.temporal_causal and end <= config.grid.t:
            return table[places.start : end]
        self._check_fit(end == config.grid.t, grid, stretch=not config.temporal_causal)
        return resample_temporal(table, grid.t)

    def _check_fit(self, fits: bool, grid: Grid, stretch: bool = True) -> None:
        config = self.config
        if fits or (config.interpolate_positions and stretch):
            return
        mend = (
            "interpolate_positions=True"
            if stretch
            else f"at most {config.grid.t} time steps, since causal tables are not resampled in the "
            "forward pass (load_encoder(…, num_frames=…) resamples them once)"
        )
        raise ValueError(
            f"a clip of {'×'.join(map(str, grid))} tokens does not fit the learned positions of "
            f"{'×'.join(map(str, config.grid))}; use num_frames {config.num_frames} and image_size "
            f"{config.image_size}, {mend}, or rotary or sinusoidal positions"
        )


def token_parameter(*shape: int, std: float = 0.02) -> nn.Parameter:
    """Make a learned table or token with truncated-normal initial values."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=std, a=-2 * std, b=2 * std))
