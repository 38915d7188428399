"""Settings of a simulated recording."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from data_prep.command_line import option
from ssl_vivit.errors import DataError

StimulusKind = Literal["videos", "textures", "mix"]


@dataclass(frozen=True)
class SimulationConfig:
    """Settings of a simulated recording.

    Args:
        neurons: number of neurons.
        train_trials: number of training trials, each with a different movie.
        held_out_movies: number of movies of each of the tiers oracle and live_test_main.
        repeats: number of times that each held-out movie is shown.
        seconds: length of a trial.
        frames_per_second: rate of movies, behaviour and responses.
        size: (H, W) of the movies in pixels.
        stimuli: kind of movies: videos (needs shards), textures, or mix (half videos, half
            textures).
        mean_rate: lowest and highest mean rate in spikes per second.
        calcium: record a calcium signal instead of spikes.
        gaze_shift: shift of receptive fields, in pixels, by one standard deviation of gaze.
        seed: random seed; equal settings and seeds give equal sessions.
    """

    neurons: int = 200
    train_trials: int = 300
    held_out_movies: int = 6
    repeats: int = 8
    seconds: float = 5.0
    frames_per_second: float = 30.0
    size: tuple[int, int] = (36, 64)
    stimuli: StimulusKind = "mix"
    mean_rate: tuple[float, float] = (3.0, 12.0)
    calcium: bool = False
    gaze_shift: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("neurons", "train_trials", "held_out_movies", "repeats"):
            if getattr(self, name) < 1:
                raise DataError(f"{option(name)} {getattr(self, name)} must be at least 1")
        for name in ("seconds", "frames_per_second"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{option(name)} {getattr(self, name):g} must be above 0")
        if self.frames < 2:
            raise DataError(
                f"--seconds {self.seconds:g} at --fps {self.frames_per_second:g} is "
                "fewer than two frames; raise --seconds or --fps"
            )
        if min(self.size) < 8:
            raise DataError(f"--size {self.size[0]}x{self.size[1]} must be at least 8x8")
        if not 0 < self.mean_rate[0] <= self.mean_rate[1] < math.inf:
            low, high = self.mean_rate
            raise DataError(
                f"--mean-rate {low:g} {high:g} must be a lowest and a highest rate, both above 0"
            )
        if not math.isfinite(self.gaze_shift):
            raise DataError(f"--gaze-shift {self.gaze_shift} must be a number of pixels")
        if self.seed < 0:
            raise DataError(f"--seed {self.seed} must not be negative")

    @property
    def frames(self) -> int:
        """Number of frames of a trial."""
        return round(self.seconds * self.frames_per_second)
