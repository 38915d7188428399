"""Positions on the map, and the weights of the pixels that are read there.

Positions are (x, y). −1 and 1 are the outer edges of the map, or with ``align_corners`` the centres
of its outermost pixels, as in ``torch.nn.functional.grid_sample``.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

# The least width of a mask, in pixels: below it all would look the same, and a mask's shape would
# have no gradient.
_LEAST_WIDTH = 0.25


def corners(
    position: Float[Tensor, "*any 2"], size: tuple[int, int], *, align_corners: bool
) -> tuple[Int[Tensor, "*any 4"], Float[Tensor, "*any 4"]]:
    """The four pixels around positions and their bilinear weights, as ``grid_sample`` has them.

    Args:
        position: (x, y).
        size: height and width of the map.
        align_corners: where −1 and 1 are.

    Returns:
        Number of each pixel, y·w + x, and its weight; a corner outside of the map weighs 0.
    """
    extent = position.new_tensor((size[1], size[0]))
    if align_corners:
        place = (position + 1) / 2 * (extent - 1)
    else:
        place = ((position + 1) * extent - 1) / 2
    low = place.detach().floor()
    high = place - low
    # (…, 2 ends, 2 axes), then every end in x with every end in y.
    cell = torch.stack((low, low + 1), dim=-2)
    inside = (cell >= 0) & (cell < extent)
    weight = torch.stack((1 - high, high), dim=-2) * inside
    cell = torch.where(inside, cell, 0).long()
    pixel = cell[..., :, None, 1] * size[1] + cell[..., None, :, 0]
    return pixel.flatten(-2), (weight[..., :, None, 1] * weight[..., None, :, 0]).flatten(-2)


def gaussian_mask(
    position: Float[Tensor, "*any n 2"],
    spread: Float[Tensor, "n 2 2"],
    size: tuple[int, int],
    *,
    align_corners: bool,
) -> Float[Tensor, "*any n p"]:
    """Gaussians over the pixels of the map, each of sum 1.

    The covariance is spread · spreadᵀ; one that is narrower than a quarter of a pixel somewhere is
    widened to that, so that a width of zero still has a mask. Only pixels of the map count towards
    the sum.

    Args:
        position: (x, y) of the centres.
        spread: square root of the covariance, in units of the positions.
        size: height and width of the map.
        align_corners: where −1 and 1 are.

    Returns:
        Weights of the pixels, in the order y·w + x.
    """
    h, w = size
    pitch = [2 / (max(n - 1, 1) if align_corners else n) for n in (w, h)]
    covariance = _widened(spread @ spread.mT, spread.new_tensor(pitch))
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    x, y = _pixel_centres(w, position, align_corners), _pixel_centres(h, position, align_corners)
    # Squared distances in units of the covariance, by the inverse of a 2×2 matrix.
    dx = x[None, :] - position[..., 0, None]
    dy = y[:, None] - position[..., 1, None, None]
    a, b, c = (part[..., None] for part in (a, b, c))
    determinant = a * c - b.square()
    along_x = (c * dx.square() / determinant)[..., None, :]
    along_y = (a[..., None] * dy.square()) / determinant[..., None]
    across = 2 * (b * dx / determinant)[..., None, :] * dy
    return rearrange(along_x + along_y - across, "... h w -> ... (h w)").div(-2).softmax(-1)


def _widened(
    covariance: Float[Tensor, "n 2 2"], pitch: Float[Tensor, " 2"]
) -> Float[Tensor, "n 2 2"]:
    """Covariances with as much of a round Gaussian (in pixels) added as the narrow ones lack.

    What is added has no gradient of its own, so a narrow one learns as if it were that wide.
    """
    in_pixels = covariance.detach() / torch.outer(pitch, pitch)
    a, b, c = in_pixels[..., 0, 0], in_pixels[..., 0, 1], in_pixels[..., 1, 1]
    narrowest = (a + c) / 2 - torch.hypot((a - c) / 2, b)
    missing = (_LEAST_WIDTH**2 - narrowest).clamp(min=0)
    return covariance + missing[..., None, None] * pitch.square().diag()


def _pixel_centres(count: int, like: Tensor, align_corners: bool) -> Float[Tensor, " count"]:
    number = torch.arange(count, dtype=like.dtype, device=like.device)
    if align_corners:
        # grid_sample reads the one pixel of a map of one at every position.
        return 2 * number / (count - 1) - 1 if count > 1 else number
    return (2 * number + 1) / count - 1


def projected(position: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
    """Positions moved onto the map where they left it, with the gradient of where they were moved.

    A plain clamp would give a position outside no gradient, and hold it there for good.
    """
    return position + (position.clamp(-1, 1) - position).detach()


def drawn(
    position: Float[Tensor, "n 2"], spread: Float[Tensor, "n 2 2"], noise: Float[Tensor, "b n 2"]
) -> Float[Tensor, "b n 2"]:
    """Draws from Gaussians with covariance spread · spreadᵀ, moved onto the map.

    Args:
        position: means of the Gaussians.
        spread: square roots of their covariances.
        noise: standard normal numbers that the draws are made of.
    """
    # A sum of products, as autocast would round a matrix product's to bfloat16.
    return projected(position + (spread * noise[..., None, :]).sum(-1))
