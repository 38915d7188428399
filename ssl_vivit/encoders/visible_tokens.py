"""Visible tokens of a clip: their indices and positions, checks of indices, and patch dropout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.grid import Grid


class Places(NamedTuple):
    """Token grid of a clip, and the indices of the tokens that are kept.

    Attributes:
        grid: token grid (t, h, w) of the whole clip.
        visible: indices of the kept spatial positions: (b, v) for all time steps, or (b, t, v) for
            each time step; None keeps all.
        visible_tokens: (b, k) indices of the kept tokens among all t·h·w tokens, or None.
        start: index of the first time step; above 0 if the clip continues an earlier clip.
    """

    grid: Grid
    visible: Tensor | None = None
    visible_tokens: Tensor | None = None
    start: int = 0

    @property
    def varying(self) -> Tensor | None:
        """Indices (b, t, v) of each time step's kept positions; None if equal in all time steps."""
        return self.visible if self.visible is not None and self.visible.ndim == 3 else None

    @property
    def space(self) -> Tensor | slice:
        """Spatial positions of the kept tokens.

        Indices (b, v) or (b, t, v) with ``visible``, (b, k) with ``visible_tokens``, else a slice
        of all positions.
        """
        if self.visible_tokens is not None:
            return self.visible_tokens % self.grid.n
        return slice(None) if self.visible is None else self.visible

    def steps(self, device: torch.device) -> Int[Tensor, " t"]:
        """Return the indices of the clip's time steps, from ``start`` on."""
        return torch.arange(self.start, self.start + self.grid.t, device=device)

    def times(self, device: torch.device) -> Int[Tensor, "... length"]:
        """Return the time step index of each token, (b, k) with ``visible_tokens``, else (t·n,)."""
        if self.visible_tokens is not None:
            return self.visible_tokens // self.grid.n
        n = self.grid.n if self.visible is None else self.visible.shape[-1]
        return self.steps(device).repeat_interleave(n, dim=0)

    def spread(self, table: Float[Tensor, "t n d"]) -> Float[Tensor, "#b t n d"]:
        """Select the rows of the kept tokens from a position table (t, n, d) of the whole grid."""
        if self.visible_tokens is not None:
            return table.flatten(0, 1)[self.visible_tokens][:, None]
        if self.varying is not None:
            return table[torch.arange(self.grid.t, device=table.device)[:, None], self.varying]
        if self.visible is not None:
            return table[:, self.visible].transpose(0, 1)
        return table[None]


class Kept(NamedTuple):
    """Tokens that patch dropout kept.

    Attributes:
        slots: indices of the kept tokens among the tokens before dropout.
        total: number of tokens before dropout: in each time step, or with ``visible_tokens`` in the
            clip.
        visible: indices of the kept spatial positions; None with ``visible_tokens``.
        visible_tokens: indices of the kept tokens among all t·h·w tokens, or None.
    """

    slots: Tensor
    total: int
    visible: Tensor | None
    visible_tokens: Tensor | None

    def restore(self, tokens: Float[Tensor, "b t k d"]) -> Float[Tensor, "b t n d"]:
        """Insert zeros for the dropped tokens."""
        b, t, _, d = tokens.shape
        slots = self.slots if self.slots.ndim == 3 else self.slots[:, None]
        index = slots[..., None].expand(b, t, -1, d)
        return tokens.new_zeros(b, t, self.total, d).scatter(2, index, tokens)


def check_visible(
    config: ViViTConfig, video: Tensor, visible: Tensor | None, visible_tokens: Tensor | None
) -> None:
    """Check indices of visible tokens; arguments as in :meth:`ViViT.forward`.

    Raises:
        ValueError: if the indices do not fit the encoder or the video.
    """
    if visible_tokens is not None and config.variant != "joint":
        raise ValueError(
            f"visible_tokens is not supported by {config.variant}, which needs equal "
            "numbers of tokens at all time steps; use visible, or variant='joint'"
        )
    if visible is not None and visible_tokens is not None:
        raise ValueError("give visible or visible_tokens, not both")
    for name, index in (("visible", visible), ("visible_tokens", visible_tokens)):
        if index is None:
            continue
        if not isinstance(index, Tensor):
            raise ValueError(f"{name} is a {type(index).__name__}; give a tensor of indices")
        grid = config.grid_of(*video.shape[2:])
        shapes, allowed = [(2, 1)], "(B, kept)"
        if name == "visible":
            shapes, allowed = [(2, 1), (3, grid.t)], f"(B, kept) or (B, {grid.t}, kept)"
        fits = (index.ndim, index.shape[1] if index.ndim == 3 else 1) in shapes
        if not fits or len(index) != len(video) or index.is_floating_point():
            raise ValueError(
                f"{name} of shape {tuple(index.shape)} and {index.dtype} must be whole-number "
                f"indices of shape {allowed} with B = {len(video)}, the number of clips"
            )
        if index.dtype == torch.bool:
            raise ValueError(f"{name} is a boolean mask; give the indices of visible positions")
        if index.shape[-1] == 0:
            raise ValueError(
                f"{name} of shape {tuple(index.shape)} hides all tokens; keep one or more"
            )
        # On a GPU this check would wait for the device, which checks bounds itself.
        if index.device.type == "cpu" and index.numel() and not torch.compiler.is_compiling():
            count = grid.n if name == "visible" else grid.t * grid.n
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= count:
                raise ValueError(
                    f"{name} has indices from {low} to {high}; for a clip of this size "
                    f"indices must be 0 to {count - 1}"
                )
            if (index.sort(dim=-1).values.diff(dim=-1) == 0).any():
                raise ValueError(f"{name} has an index twice; give each index once")


def drop_patches(
    grid: Grid,
    rate: float,
    video: Tensor,
    visible: Tensor | None,
    visible_tokens: Tensor | None,
    patch_draw: Tensor | None,
) -> Kept:
    """Draw the patches of each clip that patch dropout keeps.

    Args:
        grid: token grid of a clip.
        rate: fraction of the patches to drop. Their number is rounded down; at least one patch is
            kept.
        video: the clips, (B, C, T, H, W).
        visible: spatial positions from which patches are drawn, as in :meth:`ViViT.forward`.
            If ``visible`` and ``visible_tokens`` are None, patches are drawn from all positions.
        visible_tokens: tokens from which patches are drawn, as in :meth:`ViViT.forward`.
        patch_draw: random numbers that select the patches, as in :meth:`ViViT.forward`.

    Raises:
        ValueError: if ``patch_draw`` does not have one number for each patch to draw from.
    """
    given = visible if visible_tokens is None else visible_tokens
    shape = (len(video), grid.n) if given is None else given.shape
    total = shape[-1]
    keep = max(1, total - int(total * rate))
    if patch_draw is None:
        patch_draw = torch.rand(shape, device=video.device)
    elif patch_draw.shape != shape:
        raise ValueError(
            f"patch_draw of shape {tuple(patch_draw.shape)} must be {tuple(shape)}, one number "
            "for each patch that may be dropped"
        )
    slots = patch_draw.argsort(-1)[..., :keep].sort(-1).values
    index = slots if given is None else given.gather(-1, slots)
    if visible_tokens is None:
        return Kept(slots, total, index, None)
    return Kept(slots, total, None, index)
