"""Local energy and orientation of edges in a movie, in the cells of a coarse grid.

Two orientation features complement the energy. They are components of the structure tensor (Bigün &
Granlund 1987, ICCV, 433-438), divided by the energy. They are proportional to cosine and sine of
twice the angle, so weights on them give a cosine tuning to orientation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

FEATURES = 3
# Frames with more than _PIXELS pixels are reduced to about this number; the grid has about _CELLS
# cells.
_PIXELS = 2304
_CELLS = 252
# Standard deviation of the blur before gradients are taken, in pixels, and standard deviation of
# the window of local means, in cells.
_BLUR, _WINDOW = 1.0, 0.8
# For squared gradients below this value (grey levels from 0 to 1), the energy is about linear in
# the squared gradient.
_FLOOR = 1e-4


def oriented_energy(video: Shaped[Tensor, "T H W"]) -> Float[Tensor, "T h w 3"]:
    """Return the local root mean square of gradients, and two features of their orientation.

    Features are computed from the mean of a frame and the frame before it.

    Args:
        video: grey levels from 0 to 255.

    Returns:
        Three features for each cell, which are the energy √(xx + yy), (xx − yy) / energy and
        2xy / energy. Here xx, yy and xy are local means of products of the gradients to the right
        and downwards. There are about 252 nearly square cells, or fewer if there are fewer pixels.
    """
    grey = video.float() / 255
    height, width = grey.shape[1:]
    smaller = (_PIXELS / (height * width)) ** 0.5
    if smaller < 1:
        height, width = (max(1, round(length * smaller)) for length in (height, width))
        grey = F.adaptive_avg_pool2d(grey[:, None], (height, width))[:, 0]
    side = max(1.0, (height * width / _CELLS) ** 0.5)
    cells = [max(1, round(length / side)) for length in (height, width)]
    y, x = (_averages(length, length, _BLUR) for length in (height, width))
    grey = y @ grey @ x.mT
    grey = torch.cat([grey[:1], (grey[1:] + grey[:-1]) / 2])
    edged = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    right = (edged[:, 1:-1, 2:] - edged[:, 1:-1, :-2]) / 2
    down = (edged[:, 2:, 1:-1] - edged[:, :-2, 1:-1]) / 2
    rows = _averages(cells[0], height, _WINDOW * side)
    columns = _averages(cells[1], width, _WINDOW * side)
    xx, yy, xy = (rows @ part @ columns.mT for part in (right**2, down**2, right * down))
    energy = (xx + yy + _FLOOR).sqrt()
    return torch.stack([energy, (xx - yy) / energy, 2 * xy / energy], dim=-1)


def _averages(count: int, length: int, deviation: float) -> Float[Tensor, "count length"]:
    """Return weights of ``count`` Gaussian windows that are evenly spaced along an axis of pixels.

    Each window is one row of the result, (count, length), and sums to 1.

    Args:
        count: number of averages.
        length: number of pixels of the axis.
        deviation: standard deviation of the Gaussian in pixels.
    """
    centres = (torch.arange(count) + 0.5) * length / count
    away = centres[:, None] - (torch.arange(length) + 0.5)
    weights = torch.exp(-0.5 * (away / deviation) ** 2)
    return weights / weights.sum(1, keepdim=True)
