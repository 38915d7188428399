"""Lists of the pixels that neurons read in each clip, with their weights.

An entry is a pixel that a neuron reads. The functions return e entries as three tensors: indices of
pixels (e,), indices of neurons (e,) and weights, (e, 1) or (e, t). These tensors are arguments of
:func:`ssl_vivit.neural.readout.pixel_products.read_pixels`. Pixel (x, y) of clip b has the index
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
    """List the pixels that neurons read, for neurons that read fixed places throughout a clip.

    Args:
        pixel: index y·w + x of each pixel that a neuron reads in a clip.
        weight: weight of each pixel in each frame; t is 1 if the weights are constant.
        area: number of pixels of a map, h·w.

    Returns:
        Indices of pixels (e,), indices of neurons (e,) and weights (e, t), for all clips together.
    """
    b, n, _ = pixel.shape
    clip = torch.arange(b, device=pixel.device)[:, None, None]
    neuron = torch.arange(n, device=pixel.device)[:, None].expand_as(pixel)
    by_entry = rearrange(weight, "b t n corner -> (b n corner) t")
    return (pixel + clip * area).flatten(), neuron.flatten(), by_entry


def of_masks(
    mask: Float[Tensor, "b t n p"],
) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, "e t"]]:
    """List the pixels of neurons that read the map under a mask.

    On a CPU, pixels with weights below the rounding error are left out. On other devices all pixels
    are listed, since the host would have to wait for their number.

    Args:
        mask: weight of each pixel; t is 1 if the masks are constant over time.

    Returns:
        Indices of pixels (e,), indices of neurons (e,) and weights (e, t), for all clips together.
    """
    b, _, n, area = mask.shape
    if mask.device.type != "cpu":
        pixel = torch.arange(area, device=mask.device).expand(b, n, area)
        return of_points(pixel, mask, area)
    least = torch.finfo(mask.dtype).eps
    clip, neuron, where = (mask.detach() >= least).any(1).nonzero(as_tuple=True)
    return where + clip * area, neuron, mask.transpose(0, 1)[:, clip, neuron, where].T
