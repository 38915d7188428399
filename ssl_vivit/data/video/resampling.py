"""Resizing and blurring as matrices, so that every clip of a batch can have its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def resize_matrices(
    start: Float[Tensor, " n"], length: Float[Tensor, " n"], size_in: int, size_out: int
) -> Float[Tensor, "n out in"]:
    """Weights that cut a window out of an axis and resize it, antialiased.

    A triangle filter, as wide as an output pixel where the axis shrinks, its weights inside the
    window adding up to 1: what ``torch.nn.functional.interpolate(mode="bilinear",
    antialias=True)`` does to a window that was cut out beforehand.

    Args:
        start: the window's first input pixel, for each clip.
        length: its length in pixels.
        size_in: pixels of the input axis.
        size_out: pixels of the output axis.
    """
    device = start.device
    scale = (length / size_out)[:, None, None]
    centre = scale * (torch.arange(size_out, device=device)[:, None] + 0.5)
    pixel = torch.arange(size_in, device=device) - start[:, None, None] + 0.5
    weights = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(-1, keepdim=True)


def blur_matrices(
    sigma: Float[Tensor, " n"], radius: int, size: int
) -> Float[Tensor, "n size size"]:
    """Gaussian blur of an axis with reflected borders, one standard deviation for each clip.

    The same as torchvision's ``gaussian_blur`` with a kernel of 2 · radius + 1 pixels.

    Args:
        sigma: standard deviations in pixels, above 0.
        radius: pixels to either side that the kernel reaches, below ``size``.
        size: pixels of the axis.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    pixel = torch.arange(size, device=sigma.device)
    source = (pixel[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    taps = (source[:, :, None] == pixel).to(kernel.dtype)
    return torch.einsum("nk,okj->noj", kernel, taps)
