"""Lists of the pixels that neurons read in each clip, with their weights.

The functions return entries as three tensors: pixel (e,), neuron (e,) and weight (e, 1) or (e, t).
They are arguments of :func:`ssl_vivit.neural.readout.pixel_products.read_pixels`. Pixel (x, y) of
clip b has the number b·h·w + y·w + x.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


def of_points(
    pixel: Int[Tensor, "b n corners"], weight: Float[Tensor, "b t n corners"], area: int
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """Return entries of neurons that read fixed pixels throughout a clip.

    Args:
        pixel: pixels that each neuron reads in each clip.
        weight: weight of each pixel in each frame; t is 1 if the weights are constant.
        area: number of pixels of a map, h·w.
    """
    b, n, _ = pixel.shape
    clip = torch.arange(b, device=pixel.device)[:, None, None]
    neuron = torch.arange(n, device=pixel.device)[:, None].expand_as(pixel)
    by_entry = rearrange(weight, "b t n corner -> (b n corner) t")
    return (pixel + clip * area).flatten(), neuron.flatten(), by_entry


def of_masks(
    mask: Float[Tensor, "b t n p"],
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """Return entries of masks; t is 1 if the masks are constant over time.

    On a CPU, weights below the rounding error are left out. On other devices all weights are kept,
    since the host would have to wait for the number of entries.
    """
    b, _, n, area = mask.shape
    if mask.device.type != "cpu":
        pixel = torch.arange(area, device=mask.device).expand(b, n, area)
        return of_points(pixel, mask, area)
    least = torch.finfo(mask.dtype).eps
    clip, neuron, where = (mask.detach() >= least).any(1).nonzero(as_tuple=True)
    return where + clip * area, neuron, mask.transpose(0, 1)[:, clip, neuron, where].T
