"""Resampling between the frame rate of a recording and that of an encoder."""

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

# Exact for whole rates and for 30000/1001, the rate of NTSC video.
LARGEST_DENOMINATOR = 1001


@dataclass(frozen=True)
class FrameRates:
    """Causal resampling of a stimulus from its recorded rate r to an encoder's rate e.

    Resampled frame j shows recorded frame ⌊j·r/e⌋, the last one that had begun by then; nothing is
    blended. Recorded frame t may read resampled frames up to the last one that shows no frame
    later than t. Rates so stay at the recorded bins.

    Args:
        recorded: frames per second of the recording.
        encoder: frames per second that the encoder was trained on.

    Raises:
        NeuralModelError: for a rate that is not positive.
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
        """r/e, as an exact ratio of whole numbers."""
        return _fraction(self.recorded) / _fraction(self.encoder)

    def resampled(self, frames: int) -> int:
        """Count of resampled frames that show no frame beyond the first so many."""
        return _ceil_of_product(frames, 1 / self.recorded_per_resampled)

    def shown(self, frames: int, device: torch.device | None = None) -> Int[Tensor, " resampled"]:
        """Number of the recorded frame, of T, that each resampled frame shows."""
        ratio = self.recorded_per_resampled
        resampled = torch.arange(self.resampled(frames), device=device)
        return resampled * ratio.numerator // ratio.denominator

    def seen(self, frames: int, device: torch.device | None = None) -> Int[Tensor, " T"]:
        """Count of resampled frames that show no frame later than t, for each recorded frame t."""
        ratio = 1 / self.recorded_per_resampled
        ends = torch.arange(1, frames + 1, device=device)
        return -(-ends * ratio.numerator // ratio.denominator)

    def span(self, resampled: int) -> int:
        """Recorded frames that so many resampled ones reach over."""
        return max(_ceil_of_product(resampled, self.recorded_per_resampled), resampled, 1)


def match_fps(preprocessing: Mapping[str, Any] | None, recorded: float) -> FrameRates | None:
    """Return the resampling of a recording for an encoder; None where none is needed.

    An encoder without ``preprocessing`` takes any rate as its own. Otherwise its rate is ``fps``
    over ``frame_stride``.

    Args:
        preprocessing: of the encoder.
        recorded: frames per second of the recording.

    Raises:
        NeuralModelError: for rates that are not positive.
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
