"""Positions on the map, and the weights of the pixels that are read there.

Positions are (x, y). −1 and 1 are the outer edges of the map, or with ``align_corners`` the centres
of its outermost pixels, as in ``torch.nn.functional.grid_sample``.
"""

from __future__ import annotations

from typing import NamedTuple

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
    pitch, centre = _pixels(size, align_corners, position)
    place = position * pitch + centre
    low = place.detach().floor()
    high = place - low
    # (…, 2 ends, 2 axes), then every end in x with every end in y.
    cell = torch.stack((low, low + 1), dim=-2)
    inside = (cell >= 0) & (cell <= 2 * centre)
    weight = torch.stack((1 - high, high), dim=-2) * inside
    cell = torch.where(inside, cell, 0).long()
    pixel = cell[..., :, None, 1] * size[1] + cell[..., None, :, 0]
    return pixel.flatten(-2), (weight[..., :, None, 1] * weight[..., None, :, 0]).flatten(-2)


class Neighbourhood(NamedTuple):
    """Nine pixels around each position, which hold the four that it reads in every frame.

    Attributes:
        map: (b, d, t, h + 3, w + 3), each frame moved by the whole pixels of its shift and framed by
            zeros.
        pixel: (b, n, 9) number of each pixel in a frame of that map.
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

    A frame is moved by the whole pixels of its shift. What is left of a shift is less than a pixel,
    so a neuron reads from nine pixels, the same at all times. Their number is known without a look
    at the shifts, for which the host would wait.

    Args:
        map: features of the core.
        position: (x, y) on the map, in [−1, 1].
        shift: of all positions, in each frame.
        align_corners: where −1 and 1 are.
    """
    height, width = map.shape[3:]
    pitch, centre = _pixels((height, width), align_corners, position)
    place, step = position * pitch + centre, shift * pitch
    base, whole = place.detach().floor(), step.detach().floor()
    left = (place - base)[:, None] + (step - whole)[:, :, None]
    # Rounding may make two of a sum of two numbers below one.
    first = left.detach() < 1
    high = left - torch.where(first, 0, 1).to(left)
    ends = (torch.where(first, 1 - high, 0), torch.where(first, high, 1 - high),
            torch.where(first, 0, high))  # fmt: skip
    along_x, along_y = torch.stack(ends, dim=-1).unbind(-2)
    weight = (along_y[..., :, None] * along_x[..., None, :]).flatten(-2)
    three = torch.arange(3, device=map.device)
    # The frame of the map is one pixel before and two after.
    column, row = (base.long()[..., None] + 1 + three).unbind(-2)
    pixel = (row[..., :, None] * (width + 3) + column[..., None, :]).flatten(-2)
    return Neighbourhood(_moved(map, whole.long()), pixel, weight)


def _moved(
    map: Float[Tensor, "b d t h w"], by: Int[Tensor, "b t 2"]
) -> Float[Tensor, "b d t h3 w3"]:
    """Frames that show at (y, x) what the map has at (y − 1, x − 1) + by, and zeros beyond it."""
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
    """Pixels in a unit of the positions, and the pixel at position 0, along x and y."""
    outermost = _numbers(like, size[1] - 1, size[0] - 1)
    return (outermost if align_corners else outermost + 1) / 2, outermost / 2


def _numbers(like: Tensor, *numbers: float) -> Tensor:
    """Numbers on the device of a tensor, filled in there: no copy that the host would wait for."""
    return torch.stack([like.new_full((), number) for number in numbers])


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
    covariance = _widened(spread @ spread.mT, _numbers(spread, *pitch))
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
