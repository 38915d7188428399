"""Energy of a movie's edges by orientation, in the cells of a coarse grid.

Two numbers beside the energy itself say how far one orientation outweighs that at right angles to
it: the structure tensor (Bigün & Granlund 1987, ICCV, 433-438) over its energy. They double the
angle, so a weight on each is a cosine tuning to orientation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

FEATURES = 3
# Frames of more pixels are averaged to about as many.
_PIXELS = 2304
_CELLS = 252
# Standard deviations: in pixels, of the blur before gradients are taken; in cells, of the window.
_BLUR, _WINDOW = 1.0, 0.8
# Squared gradients, where grey levels are 0 to 1, below which energy is linear in them.
_FLOOR = 1e-4


def oriented_energy(video: Shaped[Tensor, "T H W"]) -> Float[Tensor, "T h w 3"]:
    """Root mean square of gradients around cells, and how far it is horizontal and diagonal.

    Features of a frame depend on it and the frame before, of which it takes the mean.

    Args:
        video: grey levels, 0 to 255.

    Returns:
        For each of some 252 cells (fewer where there are fewer pixels), about square, the energy
        √(xx + yy), (xx − yy) / energy and 2xy / energy, where xx, yy and xy are local means of
        products of the gradients to the right and downwards.
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
    """Weights of Gaussian averages of ``length`` pixels around ``count`` evenly spaced places."""
    centres = (torch.arange(count) + 0.5) * length / count
    away = centres[:, None] - (torch.arange(length) + 0.5)
    weights = torch.exp(-0.5 * (away / deviation) ** 2)
    return weights / weights.sum(1, keepdim=True)
