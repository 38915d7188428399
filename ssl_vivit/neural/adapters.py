"""Learned resampling of the stimulus: from a session's screen to what an encoder is used to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.settings import check_type

# The cubic convolution kernel with this slope has third-order accuracy (Keys 1981).
SLOPE = -0.5


AdapterKind = Literal["scale", "affine", "none"]


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of the resampling before the encoder.

    Args:
        kind: ``scale`` learns one magnification about the centre, ``affine`` a 2×2 matrix and a
            shift, ``none`` leaves the stimulus as it is.
    """

    kind: AdapterKind = "none"

    def __post_init__(self) -> None:
        check_type("adapter.kind", self.kind, AdapterKind)


class StimulusAdapter(nn.Module):
    """Affine resampling of every frame, with as much blur as it shrinks.

    Pixel (u, v) of what comes out shows the place A (u, v) + s of what goes in, in pixels from the
    centre. Resampling is cubic, along rows and then along columns (Catmull and Smith 1980), and
    each kernel widens with the step that it takes, so nothing aliases. Beyond the edge, the edge
    goes on. A fresh adapter gives its input back, bit by bit.

    Args:
        kind: ``scale`` or ``affine``, as of :class:`AdapterConfig`.

    Attributes:
        log_scale: A is exp(log_scale) times the identity; of ``scale``.
        matrix: A as [[x←u, x←v], [y←u, y←v]]; of ``affine``.
        shift: s as a share (x, y) of width and height; of ``affine``.
    """

    def __init__(self, kind: Literal["scale", "affine"] = "scale") -> None:
        super().__init__()
        self.kind: Literal["scale", "affine"] = kind
        if kind == "scale":
            self.log_scale = nn.Parameter(torch.zeros(()))
        else:
            self.matrix = nn.Parameter(torch.eye(2))
            self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b c T H W"]:
        """The resampled video.

        Args:
            video: floats of any standardisation.
        """
        height, width = video.shape[3:]
        if self.kind == "scale":
            factor = self.log_scale.exp()
            across = resampling(width, factor, factor.new_zeros(()))
            down = resampling(height, factor, factor.new_zeros(()))
            video = einsum(video, across.to(video), "b c T y x, u x -> b c T y u")
            return einsum(video, down.to(video), "b c T y u, v y -> b c T v u")
        # In row y, before columns are resampled: u stands at x of the input where A (u, v) = (x, y).
        a, b, c, d = self.matrix.flatten()
        shift_x, shift_y = self.shift[0] * width, self.shift[1] * height
        rows = from_centre(height, self.matrix)
        across = resampling(width, a - b * c / d, b / d * (rows - shift_y) + shift_x)
        columns = from_centre(width, self.matrix)
        down = resampling(height, d, c * columns + shift_y)
        video = einsum(video, across.to(video), "b c T y x, y u x -> b c T y u")
        return einsum(video, down.to(video), "b c T y u, u v y -> b c T v u")

    def to_config(self) -> dict[str, Any]:
        """Kind, JSON-serialisable."""
        return {"kind": self.kind}


def from_centre(size: int, like: Tensor) -> Float[Tensor, " size"]:
    """Places of pixels along an axis, from its centre."""
    return torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2


def resampling(
    size: int, step: Float[Tensor, ""], offset: Float[Tensor, " *lines"]
) -> Float[Tensor, "*lines new old"]:
    """Weights of old pixels in new ones along one axis.

    Args:
        size: pixels of the axis.
        step: old pixels from one new pixel to the next; the kernel widens with it beyond 1.
        offset: where the centre falls, in old pixels from the centre; of each line.

    Returns:
        rows that sum to 1.
    """
    centre = (size - 1) / 2
    places = step * from_centre(size, step) + offset[..., None] + centre
    places = places.clamp(0, size - 1)
    old = torch.arange(size, device=step.device, dtype=step.dtype)
    weights = cubic((old - places[..., None]) / step.abs().clamp(min=1))
    return weights / weights.sum(-1, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel (1981): 1 at 0, 0 at every other whole number."""
    x = x.abs()
    near = ((SLOPE + 2) * x - (SLOPE + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * SLOPE - 4 * SLOPE
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def build_adapter(config: AdapterConfig) -> StimulusAdapter | None:
    """The adapter that a config describes."""
    return None if config.kind == "none" else StimulusAdapter(config.kind)
