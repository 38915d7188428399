"""Constraints on a stimulus: contrast, range of pixels, smoothness."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.errors import NeuralModelError


class Constraints:
    """Fixed contrast, pixels from 0 to 255, and smoothing over space and time.

    Args:
        shape: (T, H, W) of a stimulus.
        grey: grey level from which deviations are measured.
        contrast: root mean square of the deviations over all frames and pixels, in grey levels.
        blur: standard deviation of the Gaussian over space, in pixels; 0 for none.
        time_blur: standard deviation of the Gaussian over time, in frames; 0 for none.

    Raises:
        NeuralModelError: if the contrast is not above 0, or is too large for pixels from 0 to 255.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        grey: float,
        contrast: float,
        *,
        blur: float = 0.0,
        time_blur: float = 0.0,
    ) -> None:
        self.shape, self.grey, self.contrast = shape, grey, contrast
        largest = min(grey, 255 - grey)
        if not 0 < contrast < largest:
            raise NeuralModelError(
                f"a contrast of {contrast:.4g} grey levels around grey {grey:.4g} cannot be shown: it "
                f"must be above 0 and below {largest:.4g}; change --contrast"
            )
        self._smoothing = [
            smoothing(length, sigma)
            for length, sigma in zip(shape, (time_blur, blur, blur), strict=True)
        ]

    def projected(self, deviations: Float[Tensor, "b T H W"]) -> Float[Tensor, "b T H W"]:
        """Scale each stimulus to the contrast and clip its pixels to the range from 0 to 255.

        All pixels are multiplied by one factor before clipping. The factor is chosen such that the
        contrast after clipping is exact. A stimulus of zeros stays zero.
        """
        flat = deviations.flatten(1).double()
        power = self.contrast**2 * flat.shape[1]
        cut = torch.zeros_like(flat, dtype=torch.bool)
        while True:
            shown = torch.where(flat > 0, 255 - self.grey, -self.grey)
            lost = torch.where(cut, shown.square(), 0).sum(1)
            free = torch.where(cut, 0, flat.square()).sum(1)
            scale = ((power - lost).clamp(min=0) / free.clamp(min=1e-30)).sqrt()[:, None]
            # A clipped pixel stays clipped, because the factor only grows.
            beyond = cut | ((scale * flat).abs() > shown.abs())
            if bool((beyond == cut).all()):
                found = torch.where(cut, shown, scale * flat)
                return found.to(deviations).reshape(deviations.shape)
            cut = beyond

    def smoothed(self, values: Float[Tensor, "b T H W"]) -> Float[Tensor, "b T H W"]:
        """Smooth each stimulus or gradient over space and time."""
        time, rows, columns = (each.to(values) for each in self._smoothing)
        along_time = einsum(values, time, "b t h w, s t -> b s h w")
        return rows @ along_time @ columns.T


def smoothing(length: int, sigma: float) -> Float[Tensor, "length length"]:
    """Return the matrix of a Gaussian smoothing with reflecting ends; the identity if sigma is 0.

    The matrix is symmetric without negative eigenvalues, so that a smoothed gradient is still an
    ascent direction. Its rows sum to 1.
    """
    if sigma == 0:
        return torch.eye(length)
    place = torch.arange(length, dtype=torch.float64)
    reach = int(6 * sigma) + 1
    offsets = torch.arange(-reach, reach + 1)
    total = torch.exp(-0.5 * (offsets / sigma) ** 2).sum()
    matrix = torch.zeros(length, length, dtype=torch.float64)
    turns = reach // (2 * length) + 1
    for turn in range(-turns, turns + 1):
        for image in (place + 2 * length * turn, -1 - place + 2 * length * turn):
            matrix += torch.exp(-0.5 * ((place[:, None] - image) / sigma) ** 2)
    return (matrix / total).float()
