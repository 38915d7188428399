"""Presentation of a stimulus, and the frames whose mean rate is the response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.errors import NeuralModelError

Kind = Literal["video", "image"]


@dataclass(frozen=True)
class Presentation:
    """Presentation of a video or an image for ``frames`` frames, after ``lead`` frames of grey.

    Args:
        kind: "video" or "image".
        frame_size: (H, W) in pixels.
        grey: grey level of the screen; must be above 0 and below 255.
        lead: number of grey frames.
        frames: number of frames of the stimulus.
        response: number of last frames over which the rate is averaged; must be from 1 to
            ``frames``.

    Raises:
        NeuralModelError: if ``grey`` or ``response`` is out of range.
    """

    kind: Kind
    frame_size: tuple[int, int]
    grey: float
    lead: int
    frames: int
    response: int

    def __post_init__(self) -> None:
        if not 0 < self.grey < 255:
            raise NeuralModelError(f"--grey {self.grey:g} must be above 0 and below 255")
        if not 1 <= self.response <= self.frames:
            raise NeuralModelError(
                f"--response of {self.response} frames must be at least one and at most the "
                f"{self.frames} frames of the stimulus; give more --seconds or a shorter --response"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W) of a stimulus; T is 1 for an image."""
        return (self.frames if self.kind == "video" else 1, *self.frame_size)

    def clips(self, deviations: Float[Tensor, "b T H W"]) -> Float[Tensor, "b frames H W"]:
        """Return the pixels of whole presentations, including the grey lead.

        Args:
            deviations: stimuli as deviations from grey.
        """
        stimulus = deviations
        if self.kind == "image":
            stimulus = repeat(deviations, "b 1 h w -> b t h w", t=self.frames)
        lead = stimulus.new_zeros(len(stimulus), self.lead, *self.frame_size)
        return torch.cat([lead, stimulus], 1) + self.grey

    def responses(self, rates: Float[Tensor, "b frames n"]) -> Float[Tensor, "b n"]:
        """Return each neuron's mean rate over the last ``response`` frames."""
        return rates[:, -self.response :].mean(1)
