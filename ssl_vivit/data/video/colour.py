"""Colour changes of RGB clips in [0, 1], as defined by torchvision, with one factor for each clip.

The functions may modify their input in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.preprocessing import LUMA


def luma(video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n 1 t h w"]:
    """Return luma by ITU-R 601, with weights rounded as in torchvision."""
    red, green, blue = video.unbind(1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def _blend(video: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, video, factor).clamp_(0, 1)


def _brightness(video: Tensor, factor: Tensor) -> Tensor:
    return video.mul_(factor).clamp_(0, 1)


def _contrast(video: Tensor, factor: Tensor) -> Tensor:
    """Change the contrast about the clip's mean luma.

    The mean is over all frames, while torchvision uses the mean of each image. With the mean of
    each frame, a bright object that enters the scene would darken the frames in which it is
    visible.
    """
    return _blend(video, luma(video).mean((1, 2, 3, 4), keepdim=True), factor)


def _saturation(video: Tensor, factor: Tensor) -> Tensor:
    return _blend(video, luma(video), factor)


def _hue(video: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue in HSV by ``shift`` turns; value and saturation are unchanged."""
    red, green, blue = video.split(1, dim=1)
    value = video.amax(1, keepdim=True)
    chroma = value - video.amin(1, keepdim=True)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    offsets = torch.arange(5.0, 0.0, -2.0, device=video.device).view(1, 3, 1, 1, 1)
    place = sixths + 6 * shift + offsets
    place = torch.remainder(place, 6)
    return value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1)


adjust: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
JITTERS = tuple(adjust)
