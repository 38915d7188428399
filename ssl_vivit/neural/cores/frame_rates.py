"""Resampling between the frame rates of a recording and of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.preprocessing import Preprocessing

# Represents whole frame rates and 30000/1001 (NTSC video) exactly.
LARGEST_DENOMINATOR = 1001


@dataclass(frozen=True)
class FrameRates:
    """Causal resampling of a stimulus from its recorded rate r to an encoder's rate e.

    Resampled frame j is recorded frame ⌊j·r/e⌋, which is on the screen at time j/e. Frames are not
    blended. Rates are predicted for each recorded frame t, from the resampled frames that show
    recorded frames up to t.

    Args:
        recorded: frames per second of the recording.
        encoder: frames per second at which the encoder was trained.

    Raises:
        NeuralModelError: if a rate is not positive.
    """

    recorded: float
    encoder: float

    def __post_init__(self) -> None:
        for name, rate in (("recorded", self.recorded), ("encoder", self.encoder)):
            if not 0 < rate < float("inf") or not _fraction(rate):
                raise NeuralModelError(
                    f"the {name} frame rate {rate} must be a positive number of frames per second"
                )

    @property
    def recorded_per_resampled(self) -> Fraction:
        """Number of recorded frames per resampled frame, r/e, as a fraction."""
        return _fraction(self.recorded) / _fraction(self.encoder)

    def resampled(self, frames: int) -> int:
        """Return the number of resampled frames of a recording of ``frames`` frames."""
        return _ceil_of_product(frames, 1 / self.recorded_per_resampled)

    def shown(self, frames: int, device: torch.device | None = None) -> Int[Tensor, " resampled"]:
        """Return, for each resampled frame of a recording, the index of the recorded frame shown.

        Args:
            frames: number of recorded frames.
            device: device of the result.
        """
        ratio = self.recorded_per_resampled
        resampled = torch.arange(self.resampled(frames), device=device)
        return resampled * ratio.numerator // ratio.denominator

    def seen(self, frames: int, device: torch.device | None = None) -> Int[Tensor, " T"]:
        """Return, for each recorded frame t, how many resampled frames show t or earlier ones.

        Args:
            frames: number of recorded frames.
            device: device of the result.
        """
        ratio = 1 / self.recorded_per_resampled
        ends = torch.arange(1, frames + 1, device=device)
        return -(-ends * ratio.numerator // ratio.denominator)

    def span(self, resampled: int) -> int:
        """Return how many recorded frames ``resampled`` resampled frames span, rounded up.

        The result is never below ``resampled`` or 1.
        """
        return max(_ceil_of_product(resampled, self.recorded_per_resampled), resampled, 1)


def match_fps(preprocessing: Mapping[str, Any] | None, recorded: float) -> FrameRates | None:
    """Return the resampling of a recording for an encoder, or None if none is needed.

    The encoder's frame rate is ``fps`` divided by ``frame_stride`` of ``preprocessing``. If ``fps``
    is unknown, the recording is not resampled.

    Args:
        preprocessing: preprocessing of the encoder, or None if unknown.
        recorded: frames per second of the recording.

    Raises:
        NeuralModelError: if a rate is not positive.
    """
    prepared = Preprocessing.of(preprocessing)
    if prepared is None or prepared.fps is None:
        return None
    rates = FrameRates(float(recorded), prepared.fps / (prepared.frame_stride or 1))
    return None if rates.recorded_per_resampled == 1 else rates


def _fraction(rate: float) -> Fraction:
    return Fraction(rate).limit_denominator(LARGEST_DENOMINATOR)


def _ceil_of_product(count: int, ratio: Fraction) -> int:
    return -(-count * ratio.numerator // ratio.denominator)
