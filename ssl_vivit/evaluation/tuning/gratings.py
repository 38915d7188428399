"""Drifting sinusoidal gratings on a grey screen, rendered at a model's frame size and rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.errors import NeuralModelError

# The edge of a circular patch fades over this many pixels, which allows fractional diameters.
_EDGE = 1.0


@dataclass(frozen=True)
class Grating:
    """A sinusoidal grating that drifts at right angles to its bars.

    Attributes:
        direction: direction of motion in degrees: 0 is to the right, 90 downwards.
        spatial_frequency: cycles per pixel; must be above 0 and at most 0.5.
        temporal_frequency: cycles per second.
        contrast: amplitude as a fraction of the largest that fits around the grey level, from 0 to
            1. Equals the Michelson contrast if the grey level is at most 127.5.
        diameter: diameter of the circular patch in pixels; infinite for the full field.
        centre: (x, y) of the patch; −1 and 1 are the outer edges of the frame.

    Raises:
        NeuralModelError: if the spatial frequency or the contrast is out of range.
    """

    direction: float
    spatial_frequency: float
    temporal_frequency: float
    contrast: float = 1.0
    diameter: float = math.inf
    centre: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not 0 < self.spatial_frequency <= 0.5:
            raise NeuralModelError(
                f"spatial frequency {self.spatial_frequency:g} must be above 0 and at most 0.5 "
                "cycles per pixel"
            )
        if not 0 <= self.contrast <= 1:
            raise NeuralModelError(f"contrast {self.contrast:g} must be from 0 to 1")


@dataclass(frozen=True)
class Protocol:
    """Timing of a trial, and the frames in which the response is measured.

    A trial shows grey for ``lead`` seconds, then the grating for ``seconds``. The first
    ``transient`` seconds of the grating are ignored. The window for the response is the last whole
    number of cycles in the remaining frames. The response is the mean rate in the window, minus the
    mean rate in the window of a trial that shows only grey.

    Args:
        frame_size: (H, W) in pixels.
        frames_per_second: frame rate of the model's session.
        grey: grey level of the background; must be above 0 and below 255.
        lead: seconds of grey before the grating.
        seconds: duration of the grating in seconds.
        transient: seconds at the start of the grating that are ignored; must be below ``seconds``.

    Raises:
        NeuralModelError: if a setting is out of range.
    """

    frame_size: tuple[int, int]
    frames_per_second: float
    grey: float = 127.5
    lead: float = 1.0
    seconds: float = 2.0
    transient: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.grey < 255:
            raise NeuralModelError(f"grey {self.grey:g} must be above 0 and below 255")
        if not (self.lead >= 0 and self.transient >= 0 and math.isfinite(self.seconds)):
            raise NeuralModelError(
                f"lead {self.lead:g} and transient {self.transient:g} must be at least 0 seconds, "
                f"and seconds {self.seconds:g} must be finite"
            )
        if self.transient >= self.seconds:
            raise NeuralModelError(
                f"transient {self.transient:g} must be below seconds {self.seconds:g}; give "
                "more seconds or a shorter transient"
            )

    @property
    def onset(self) -> int:
        """Index of the first frame of the grating."""
        return round(self.lead * self.frames_per_second)

    @property
    def frames(self) -> int:
        """Number of frames of a trial."""
        return self.onset + round(self.seconds * self.frames_per_second)

    def window(self, temporal_frequency: float) -> slice:
        """Return the frames in which the response is measured, a whole number of cycles.

        Raises:
            NeuralModelError: if less than one cycle fits after the transient, or if a cycle has
                fewer than three frames, which makes the direction of motion ambiguous.
        """
        rate = self.frames_per_second
        if not 0 < temporal_frequency <= rate / 3:
            raise NeuralModelError(
                f"temporal frequency {temporal_frequency:g} Hz cannot be shown at {rate:g} frames a "
                f"second; give more than 0 and at most {rate / 3:.3g} Hz"
            )
        # Rounded before floor, since 1.5 s · 2 Hz may be just below 3 cycles.
        cycles = math.floor(round((self.seconds - self.transient) * temporal_frequency, 6))
        if cycles < 1:
            raise NeuralModelError(
                f"seconds {self.seconds:g} is below transient {self.transient:g} plus one cycle "
                f"of {temporal_frequency:g} Hz; give at least "
                f"{self.transient + 1 / temporal_frequency:.3g} seconds"
            )
        return slice(self.frames - round(cycles / temporal_frequency * rate), self.frames)

    def blank(self) -> Float[Tensor, "T H W"]:
        """Return a trial that shows only grey."""
        return torch.full((self.frames, *self.frame_size), self.grey)

    def render(self, grating: Grating) -> Float[Tensor, "T H W"]:
        """Return the pixels of a trial, from 0 to 255.

        The phase at the patch's centre is 0 in the first frame of the grating.
        """
        height, width = self.frame_size
        x0, y0 = (grating.centre[0] + 1) / 2 * width, (grating.centre[1] + 1) / 2 * height
        x = (torch.arange(width) + 0.5 - x0)[None, :]
        y = (torch.arange(height) + 0.5 - y0)[:, None]
        angle = math.radians(grating.direction)
        place = grating.spatial_frequency * (x * math.cos(angle) + y * math.sin(angle))
        time = torch.arange(self.frames - self.onset) / self.frames_per_second
        phase = place - grating.temporal_frequency * time[:, None, None]
        amplitude = grating.contrast * min(self.grey, 255 - self.grey)
        inside = (grating.diameter / 2 - torch.hypot(x, y)) / _EDGE + 0.5
        trial = self.blank()
        trial[self.onset :] += amplitude * inside.clamp(0, 1) * torch.sin(2 * math.pi * phase)
        return trial
