"""Positions on the map, and weights of the pixels around them.

Positions are (x, y). −1 and 1 are the outer edges of the map. With ``align_corners`` they are the
centres of its outermost pixels, as in ``torch.nn.functional.grid_sample``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

# Smallest standard deviation of a mask in pixels. Narrower masks would all cover one pixel, and
# their shape would have no gradient.
_LEAST_WIDTH = 0.25


def corners(
    position: Float[Tensor, "*any 2"], size: tuple[int, int], *, align_corners: bool
) -> tuple[Int[Tensor, "*any 4"], Float[Tensor, "*any 4"]]:
    """Return the four pixels around each position and their weights, as in ``grid_sample``.

    Args:
        position: positions (x, y).
        size: height and width of the map.
        align_corners: whether −1 and 1 are the centres of the map's outermost pixels instead of its
            edges.

    Returns:
        Index y·w + x of each pixel, and the weight of each pixel, which is 0 outside the map.
    """
    pitch, centre = _pixels(size, align_corners, position)
    place = position * pitch + centre
    low = place.detach().floor()
    high = place - low
    # Lower and upper pixel along each axis, (…, 2, 2), and then the four pairs of column and row.
    cell = torch.stack((low, low + 1), dim=-2)
    inside = (cell >= 0) & (cell <= 2 * centre)
    weight = torch.stack((1 - high, high), dim=-2) * inside
    cell = torch.where(inside, cell, 0).long()
    pixel = cell[..., :, None, 1] * size[1] + cell[..., None, :, 0]
    return pixel.flatten(-2), (weight[..., :, None, 1] * weight[..., None, :, 0]).flatten(-2)


class Neighbourhood(NamedTuple):
    """Nine pixels around each neuron's position, for positions that shift in each frame.

    They include the four pixels that the neuron reads in each frame.

    Attributes:
        map: (b, d, t, h + 3, w + 3) map, padded with zeros. Each frame is moved by its shift, which
            is rounded down to whole pixels.
        pixel: (b, n, 9) index of each pixel in a frame of this map.
        weight: (b, t, n, 9) bilinear weights.
    """

    map: Tensor
    pixel: Tensor
    weight: Tensor


def moving_corners(
    map: Float[Tensor, "b d t h w"],
    position: Float[Tensor, "b n 2"],
    shift: Float[Tensor, "b t 2"],
    *,
    align_corners: bool,
) -> Neighbourhood:
    """Return pixels and weights, as :func:`corners` does, for positions that shift in each frame.

    Each frame of the map is moved by its shift, rounded down to whole pixels. The rest of the shift
    is less than a pixel, so a neuron reads from nine pixels that are constant over time. The number
    of pixels then does not depend on the values of the shifts, so the host need not wait for the
    device.

    Args:
        map: feature map of the core.
        position: positions (x, y) on the map, in [−1, 1].
        shift: shift of all positions in each frame.
        align_corners: whether −1 and 1 are the centres of the map's outermost pixels instead of its
            edges.
    """
    height, width = map.shape[3:]
    pitch, centre = _pixels((height, width), align_corners, position)
    place, step = position * pitch + centre, shift * pitch
    base, whole = place.detach().floor(), step.detach().floor()
    left = (place - base)[:, None] + (step - whole)[:, :, None]
    # By rounding, the sum of two numbers below 1 can be 2.
    first = left.detach() < 1
    high = left - torch.where(first, 0, 1).to(left)
    ends = (torch.where(first, 1 - high, 0), torch.where(first, high, 1 - high),
            torch.where(first, 0, high))  # fmt: skip
    along_x, along_y = torch.stack(ends, dim=-1).unbind(-2)
    weight = (along_y[..., :, None] * along_x[..., None, :]).flatten(-2)
    three = torch.arange(3, device=map.device)
    # The map is padded by one pixel before and two after.
    column, row = (base.long()[..., None] + 1 + three).unbind(-2)
    pixel = (row[..., :, None] * (width + 3) + column[..., None, :]).flatten(-2)
    return Neighbourhood(_moved(map, whole.long()), pixel, weight)


def _moved(
    map: Float[Tensor, "b d t h w"], by: Int[Tensor, "b t 2"]
) -> Float[Tensor, "b d t h3 w3"]:
    """Move each frame by ``by`` = (x, y) whole pixels, and pad it with zeros to (h + 3, w + 3).

    Pixel (x, y) of the result is pixel (x − 1, y − 1) + ``by`` of the map, or 0 outside the map.
    """
    b, _, t, height, width = map.shape
    x, y = (
        torch.arange(-1, size + 2, device=map.device) + by[..., axis, None]
        for axis, size in enumerate((width, height))
    )
    inside = ((y >= 0) & (y < height))[..., None] & ((x >= 0) & (x < width))[..., None, :]
    place = y.clamp(0, height - 1)[..., None] * width + x.clamp(0, width - 1)[..., None, :]
    frame = torch.arange(b * t, device=map.device).view(b, t, 1, 1)
    pixels = rearrange(map, "b d t h w -> (b t h w) d")
    moved = pixels.index_select(0, (frame * height * width + place).flatten())
    moved = moved.view(b, t, height + 3, width + 3, -1).masked_fill(~inside[..., None], 0)
    return rearrange(moved, "b t h w d -> b d t h w")


def _pixels(
    size: tuple[int, int], align_corners: bool, like: Tensor
) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
    """Return factor and offset, each as (x, y), that convert positions to pixel coordinates."""
    outermost = _numbers(like, size[1] - 1, size[0] - 1)
    return (outermost if align_corners else outermost + 1) / 2, outermost / 2


def _numbers(like: Tensor, *numbers: float) -> Tensor:
    """Create a 1-D tensor of numbers on the device of ``like``, without a blocking copy to it."""
    return torch.stack([like.new_full((), number) for number in numbers])


def gaussian_mask(
    position: Float[Tensor, "*any n 2"],
    spread: Float[Tensor, "n 2 2"],
    size: tuple[int, int],
    *,
    align_corners: bool,
) -> Float[Tensor, "*any n p"]:
    """Return the weight of each pixel of the map under a Gaussian. Weights sum to 1 over the map.

    The covariance is spread · spreadᵀ. A standard deviation below a quarter of a pixel along any
    axis is widened to this size, so a width of zero is allowed.

    Args:
        position: centres (x, y).
        spread: square root of the covariance, in units of the positions.
        size: height and width of the map.
        align_corners: whether −1 and 1 are the centres of the map's outermost pixels instead of its
            edges.

    Returns:
        (…, neurons, h·w) weights. Pixel (x, y) has the index y·w + x.
    """
    h, w = size
    pitch = [2 / (max(n - 1, 1) if align_corners else n) for n in (w, h)]
    covariance = _widened(spread @ spread.mT, _numbers(spread, *pitch))
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    x, y = _pixel_centres(w, position, align_corners), _pixel_centres(h, position, align_corners)
    # Squared Mahalanobis distances, by the inverse of the 2×2 covariance.
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
    """Widen covariances whose smallest standard deviation is below a quarter of a pixel.

    A multiple of the identity matrix, in squared pixels, is added. The added term has no gradient,
    so a narrow covariance gets the gradient of the widened one.
    """
    in_pixels = covariance.detach() / torch.outer(pitch, pitch)
    a, b, c = in_pixels[..., 0, 0], in_pixels[..., 0, 1], in_pixels[..., 1, 1]
    narrowest = (a + c) / 2 - torch.hypot((a - c) / 2, b)
    missing = (_LEAST_WIDTH**2 - narrowest).clamp(min=0)
    return covariance + missing[..., None, None] * pitch.square().diag()


def _pixel_centres(count: int, like: Tensor, align_corners: bool) -> Float[Tensor, " count"]:
    number = torch.arange(count, dtype=like.dtype, device=like.device)
    if align_corners:
        # If there is only one pixel, grid_sample reads it at every position.
        return 2 * number / (count - 1) - 1 if count > 1 else number
    return (2 * number + 1) / count - 1


def projected(position: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
    """Clamp positions to the map, but pass gradients through as if there were no clamp.

    A plain clamp would have no gradient outside the map, so a position there would never return.
    """
    return position + (position.clamp(-1, 1) - position).detach()


def drawn(
    position: Float[Tensor, "n 2"], spread: Float[Tensor, "n 2 2"], noise: Float[Tensor, "b n 2"]
) -> Float[Tensor, "b n 2"]:
    """Draw positions from Gaussians with covariance spread · spreadᵀ, and clamp them to the map.

    Args:
        position: means of the Gaussians.
        spread: square roots of their covariances.
        noise: standard normal numbers from which positions are computed.
    """
    # Use a sum of products, since autocast would round a matrix product to bfloat16.
    return projected(position + (spread * noise[..., None, :]).sum(-1))
