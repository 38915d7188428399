"""Lists of the pixels that neurons read in each clip, with their weights.

Lists of entries (pixel (e,), neuron (e,), weight (e, 1) or (e, t)), as
:func:`ssl_vivit.neural.readout.pixel_products.read_pixels` takes them; pixel y·w + x of clip b has the number
b·h·w + y·w + x.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def of_points(
    pixel: Int[Tensor, "b n 4"], weight: Float[Tensor, "b n 4"], area: int
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e 1"]]:
    """Entries of neurons that read the same four pixels throughout a clip.

    Args:
        pixel: what each neuron reads in each clip.
        weight: how strongly.
        area: pixels of a map.
    """
    b, n, _ = pixel.shape
    clip = torch.arange(b, device=pixel.device)[:, None, None]
    neuron = torch.arange(n, device=pixel.device)[:, None].expand_as(pixel)
    return (pixel + clip * area).flatten(), neuron.flatten(), weight.reshape(-1, 1)


def of_moving_points(
    pixel: Int[Tensor, "b t n 4"], weight: Float[Tensor, "b t n 4"], area: int
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """Entries of neurons whose position moves: one for each pixel that is read at any time."""
    b, t, n, _ = pixel.shape
    place = rearrange(pixel, "b t n corner -> b n (t corner)")
    visited = torch.zeros(b, n, area, dtype=torch.bool, device=pixel.device)
    visited.scatter_(2, place, True)
    number = visited.flatten().cumsum(0).view_as(visited) - 1
    clip, neuron, where = visited.nonzero(as_tuple=True)
    entry = rearrange(number.gather(2, place), "b n (t corner) -> b t n corner", t=t)
    column = torch.arange(t, device=pixel.device)[:, None, None]
    # Corners outside of the map share a pixel with others, so weights add up.
    table = weight.new_zeros(len(neuron) * t)
    table = table.scatter_add(0, (entry * t + column).flatten(), weight.flatten())
    return where + clip * area, neuron, table.view(-1, t)


def of_masks(
    mask: Float[Tensor, "b t n p"],
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """Entries of masks; t is 1 where they stay. Weights that rounding would hide are left out."""
    area = mask.shape[-1]
    least = torch.finfo(mask.dtype).eps
    clip, neuron, where = (mask.detach() >= least).any(1).nonzero(as_tuple=True)
    return where + clip * area, neuron, mask.transpose(0, 1)[:, clip, neuron, where].T
