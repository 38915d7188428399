"""Shift of all receptive fields by the pupil's centre."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SHIFT_WIDTH = 5


class PupilShift(nn.Module):
    """Pupil centre → shift of all receptive fields on the screen.

    Sensorium's MLP shifter (Willeke et al. 2022, Sec. 4), which starts without any shift. Frames
    whose pupil is unknown (NaN) are not shifted.
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
        """Shifts in units of the positions, less than 1 each way.

        Args:
            pupil_centre: standardised.
        """
        known = pupil_centre.isfinite().all(-1, keepdim=True)
        shift = self.layers(torch.where(known, pupil_centre, 0)).tanh()
        return torch.where(known, shift, 0)
