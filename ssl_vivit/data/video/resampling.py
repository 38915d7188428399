"""Resizing and blurring by matrices, so that each clip of a batch can have its own parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def resize_matrices(
    start: Float[Tensor, " n"], length: Float[Tensor, " n"], size_in: int, size_out: int
) -> Float[Tensor, "n out in"]:
    """Return weights (n, out, in) that crop a window of an axis and resize it with antialiasing.

    The result equals ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)`` of the
    cropped window. The filter is a triangle, which is widened where the axis shrinks. Its weights
    inside the window sum to 1.

    Args:
        start: first input pixel of the window, for each clip.
        length: length of the window in pixels, for each clip.
        size_in: number of pixels of the input axis.
        size_out: number of pixels of the output axis.
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
    """Return weights (n, size, size) of a Gaussian blur of an axis with reflected borders.

    The result equals torchvision's ``gaussian_blur`` with a kernel of 2 · radius + 1 pixels.

    Args:
        sigma: standard deviation in pixels for each clip; must be above 0.
        radius: radius of the kernel in pixels; must be below ``size``.
        size: number of pixels of the axis.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    pixel = torch.arange(size, device=sigma.device)
    source = (pixel[:, None] + offsets).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    taps = (source[:, :, None] == pixel).to(kernel.dtype)
    return torch.einsum("nk,okj->noj", kernel, taps)
