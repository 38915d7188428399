"""Simulate an animal's behaviour: pupil size, running speed and gaze, smooth and stationary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of an animal in one trial.

    Attributes:
        state: (T, 2), pupil size and running speed in standard deviations from their means; they
            modulate the neurons.
        gaze: (T, 2), direction of gaze (x, y) in standard deviations.
    """

    state: Float[np.ndarray, "t 2"]
    gaze: Float[np.ndarray, "t 2"]

    @property
    def recorded(self) -> Float[np.ndarray, "t 2"]:
        """Pupil diameter (pixels of an eye camera) and running speed (cm/s), as in Sensorium."""
        return (self.state * [6.0, 4.0] + [45.0, 5.0]).astype(np.float32)

    @property
    def pupil_centre(self) -> Float[np.ndarray, "t 2"]:
        """Centre of the pupil in pixels of an eye camera."""
        return (self.gaze * [4.0, 3.0] + [90.0, 70.0]).astype(np.float32)


def draw_behaviour(draw: np.random.Generator, frames: int, frames_per_second: float) -> Behaviour:
    """Return random behaviour of one trial.

    The correlation time is about 1.5 seconds for running speed, 3 seconds for pupil size and 1
    second for gaze. Pupil size and running speed have correlation 0.6.

    Args:
        draw: random generator.
        frames: number of frames T.
        frames_per_second: frame rate of the movie.
    """
    running = _wander(draw, frames, 1.5 * frames_per_second, 1)
    own = _wander(draw, frames, 3.0 * frames_per_second, 1)
    pupil = 0.6 * running + 0.8 * own
    gaze = _wander(draw, frames, 1.0 * frames_per_second, 2)
    return Behaviour(np.concatenate([pupil, running], 1), gaze)


def _wander(
    draw: np.random.Generator, frames: int, memory: float, channels: int
) -> Float[np.ndarray, "t channels"]:
    """Sample an Ornstein-Uhlenbeck process: unit variance, time constant of ``memory`` frames."""
    keep = math.exp(-1 / memory)
    noise = draw.standard_normal((frames, channels))
    path = np.empty_like(noise)
    path[0] = noise[0]
    for t in range(1, frames):
        path[t] = keep * path[t - 1] + math.sqrt(1 - keep**2) * noise[t]
    return path
