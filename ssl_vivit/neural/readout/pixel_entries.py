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
    pixel: Int[Tensor, "b n corners"], weight: Float[Tensor, "b t n corners"], area: int
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """Entries of neurons that read the same few pixels throughout a clip.

    Args:
        pixel: what each neuron reads in each clip.
        weight: how strongly at each time; t is 1 where that stays.
        area: pixels of a map.
    """
    b, n, _ = pixel.shape
    clip = torch.arange(b, device=pixel.device)[:, None, None]
    neuron = torch.arange(n, device=pixel.device)[:, None].expand_as(pixel)
    by_entry = rearrange(weight, "b t n corner -> (b n corner) t")
    return (pixel + clip * area).flatten(), neuron.flatten(), by_entry


def of_masks(
    mask: Float[Tensor, "b t n p"],
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """Entries of masks; t is 1 where they stay.

    On a CPU weights that rounding would hide are left out. Elsewhere the host would wait to learn
    how many are left.
    """
    b, _, n, area = mask.shape
    if mask.device.type != "cpu":
        pixel = torch.arange(area, device=mask.device).expand(b, n, area)
        return of_points(pixel, mask, area)
    least = torch.finfo(mask.dtype).eps
    clip, neuron, where = (mask.detach() >= least).any(1).nonzero(as_tuple=True)
    return where + clip * area, neuron, mask.transpose(0, 1)[:, clip, neuron, where].T
