"""Onset of a movie's stimulus, and the direction of its drift."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Shaped

# Least share of the gradients' power along one axis, by which a movie is a grating.
_ONE_WAY = 0.9


def onset_of(video: Shaped[np.ndarray, "T H W"]) -> int:
    """The first frame whose pixels are not all alike; 0 where there is none."""
    varied = np.ptp(video.reshape(len(video), -1), axis=1) > 0
    return int(varied.argmax())


def drift_direction(video: Shaped[np.ndarray, "T H W"]) -> float:
    """Direction in degrees in which a pattern of straight bars drifts; NaN for other movies.

    0 is to the right, 90 downwards. The axis is the first principal axis of the spatial gradients,
    the sense of motion the sign of the velocity along it that explains the change over time best
    by least squares (Lucas & Kanade 1981).
    """
    frames = np.asarray(video, dtype=np.float64)
    if len(frames) < 2:
        return math.nan
    # Between frames, so that all three derivatives are of one moment.
    middle = (frames[1:] + frames[:-1]) / 2
    down, across = np.gradient(middle, axis=1), np.gradient(middle, axis=2)
    change = np.diff(frames, axis=0)
    tensor = np.array(
        [[(across**2).sum(), (across * down).sum()], [(across * down).sum(), (down**2).sum()]]
    )
    power, axes = np.linalg.eigh(tensor)
    if not power[1] >= _ONE_WAY * power.sum() > 0:
        return math.nan
    x, y = axes[:, 1]
    along = across * x + down * y
    speed = -float((along * change).sum())
    still = np.abs(speed) < 1e-3 * np.sqrt((along**2).sum() * (change**2).sum())
    if still or not change.any():
        return math.nan
    return float(np.degrees(np.arctan2(y * speed, x * speed)) % 360)
