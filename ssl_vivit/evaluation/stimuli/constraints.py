"""Constraints on a stimulus: its contrast, the range of pixels, its smoothness."""

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
        grey: level that deviations are from.
        contrast: root mean square of the deviations over all frames and pixels, in grey levels.
        blur: standard deviation of the Gaussian over space, in pixels; 0 for none.
        time_blur: standard deviation of the Gaussian over time, in frames; 0 for none.

    Raises:
        NeuralModelError: for a contrast that pixels cannot show.
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
        """Scale each stimulus to the contrast, its pixels cut off at black and white.

        Pixels that are cut off lack contrast, which the others make up for: of one common factor
        before the cut, each stimulus has the contrast exactly. A stimulus of zeros stays one.
        """
        flat = deviations.flatten(1).double()
        power = self.contrast**2 * flat.shape[1]
        cut = torch.zeros_like(flat, dtype=torch.bool)
        while True:
            shown = torch.where(flat > 0, 255 - self.grey, -self.grey)
            lost = torch.where(cut, shown.square(), 0).sum(1)
            free = torch.where(cut, 0, flat.square()).sum(1)
            scale = ((power - lost).clamp(min=0) / free.clamp(min=1e-30)).sqrt()[:, None]
            # Once cut off, always: the factor only grows.
            beyond = cut | ((scale * flat).abs() > shown.abs())
            if bool((beyond == cut).all()):
                found = torch.where(cut, shown, scale * flat)
                return found.to(deviations).reshape(deviations.shape)
            cut = beyond

    def smoothed(self, values: Float[Tensor, "b T H W"]) -> Float[Tensor, "b T H W"]:
        """Smooth each stimulus, or each gradient."""
        time, rows, columns = (each.to(values) for each in self._smoothing)
        along_time = einsum(values, time, "b t h w, s t -> b s h w")
        return rows @ along_time @ columns.T


def smoothing(length: int, sigma: float) -> Float[Tensor, "length length"]:
    """Matrix of a Gaussian smoothing with reflecting ends; the identity for 0.

    It is symmetric with no negative eigenvalue, so that a gradient that is smoothed by it still leads
    upwards, and its rows add up to 1, so that nothing is lost at the ends.
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
