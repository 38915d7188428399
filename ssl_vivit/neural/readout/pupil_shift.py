"""Shift of all receptive fields by the pupil's centre."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SHIFT_WIDTH = 5


class PupilShift(nn.Module):
    """Network that predicts the shift of all receptive fields from the pupil's centre.

    This is Sensorium's MLP shifter (Willeke et al. 2022, Sec. 4), started at zero shift. The shift
    is 0 in frames with an unknown pupil (NaN).
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, _SHIFT_WIDTH), nn.Tanh(),
            nn.Linear(_SHIFT_WIDTH, _SHIFT_WIDTH), nn.Tanh(),
            nn.Linear(_SHIFT_WIDTH, 2),
        )  # fmt: skip
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, pupil_centre: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Return the shift (x, y) of all positions, between −1 and 1. The map is 2 wide and 2 high.

        Args:
            pupil_centre: standardised.
        """
        known = pupil_centre.isfinite().all(-1, keepdim=True)
        shift = self.layers(torch.where(known, pupil_centre, 0)).tanh()
        return torch.where(known, shift, 0)
