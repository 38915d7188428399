"""Learned resampling of the stimulus, from a session's screen to an encoder's usual scale."""

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
        kind: ``scale`` learns one magnification about the centre. ``affine`` learns a 2×2 matrix
            and a shift. ``none`` leaves the stimulus unchanged.
    """

    kind: AdapterKind = "none"

    def __post_init__(self) -> None:
        check_type("adapter.kind", self.kind, AdapterKind)


class StimulusAdapter(nn.Module):
    """Affine resampling of every frame, with antialiasing.

    Pixel (u, v) of the output shows the place A · (u, v) + s of the input. Both places are in
    pixels from the centre. Resampling is cubic, along rows and then along columns (Catmull and
    Smith 1980). If the image is shrunk, the kernel is widened to prevent aliasing. Pixels at the
    edge are repeated beyond the edge. A new adapter returns its input exactly.

    Args:
        kind: ``scale`` or ``affine``; see :class:`AdapterConfig`.

    Attributes:
        log_scale: only with ``scale``; A is exp(log_scale) times the identity.
        matrix: only with ``affine``; A, whose first row gives x and whose second row gives y.
        shift: only with ``affine``; s as (x, y), in fractions of width and height.
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
        """Return the resampled video.

        Args:
            video: floating-point pixels, standardised or not.
        """
        height, width = video.shape[3:]
        if self.kind == "scale":
            factor = self.log_scale.exp()
            across = resampling(width, factor, factor.new_zeros(()))
            down = resampling(height, factor, factor.new_zeros(()))
            video = einsum(video, across.to(video), "b c T y x, u x -> b c T y u")
            return einsum(video, down.to(video), "b c T y u, v y -> b c T v u")
        # Resample along rows first: in row y of the input, output column u reads place x, where
        # A · (u, v) = (x, y).
        a, b, c, d = self.matrix.flatten()
        shift_x, shift_y = self.shift[0] * width, self.shift[1] * height
        rows = from_centre(height, self.matrix)
        across = resampling(width, a - b * c / d, b / d * (rows - shift_y) + shift_x)
        columns = from_centre(width, self.matrix)
        down = resampling(height, d, c * columns + shift_y)
        video = einsum(video, across.to(video), "b c T y x, y u x -> b c T y u")
        return einsum(video, down.to(video), "b c T y u, u v y -> b c T v u")

    def to_config(self) -> dict[str, Any]:
        """Return the kind as a JSON-serialisable dictionary."""
        return {"kind": self.kind}


def from_centre(size: int, like: Tensor) -> Float[Tensor, " size"]:
    """Return the positions of the pixels of an axis relative to its centre, in pixels."""
    return torch.arange(size, device=like.device, dtype=like.dtype) - (size - 1) / 2


def resampling(
    size: int, step: Float[Tensor, ""], offset: Float[Tensor, " *lines"]
) -> Float[Tensor, "*lines new old"]:
    """Return the weight of each input pixel in each output pixel along one axis.

    Args:
        size: number of pixels along the axis.
        step: distance between neighbouring output pixels, in input pixels. A step above 1 widens
            the kernel.
        offset: position in the input that the centre of the output reads, in pixels from the
            centre of the input. Either one number, or one for each row or column of the image.

    Returns:
        (…, output pixels, input pixels) weights, which sum to 1 for each output pixel.
    """
    centre = (size - 1) / 2
    places = step * from_centre(size, step) + offset[..., None] + centre
    places = places.clamp(0, size - 1)
    old = torch.arange(size, device=step.device, dtype=step.dtype)
    weights = cubic((old - places[..., None]) / step.abs().clamp(min=1))
    return weights / weights.sum(-1, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Evaluate the cubic convolution kernel of Keys (1981): 1 at 0, and 0 at all other integers."""
    x = x.abs()
    near = ((SLOPE + 2) * x - (SLOPE + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * SLOPE - 4 * SLOPE
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def build_adapter(config: AdapterConfig) -> StimulusAdapter | None:
    """Build the adapter that a config describes. Return None if the kind is ``none``."""
    return None if config.kind == "none" else StimulusAdapter(config.kind)
