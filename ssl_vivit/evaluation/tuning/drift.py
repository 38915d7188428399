"""Onset of a movie's stimulus, and the direction of its drift."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Shaped

# A movie counts as a grating if at least this fraction of its gradients' power lies along one axis.
_ONE_WAY = 0.9


def onset_of(video: Shaped[np.ndarray, "T H W"]) -> int:
    """Return the index of the first frame that is not uniform, or 0 if all frames are uniform."""
    varied = np.ptp(video.reshape(len(video), -1), axis=1) > 0
    return int(varied.argmax())


def drift_direction(video: Shaped[np.ndarray, "T H W"]) -> float:
    """Return the drift direction in degrees of a pattern of straight bars; NaN for other movies.

    0 is to the right, 90 downwards. The axis of motion is the first principal axis of the spatial
    gradients. The sign along the axis is that of the least-squares velocity (Lucas & Kanade 1981).
    """
    frames = np.asarray(video, dtype=np.float64)
    if len(frames) < 2:
        return math.nan
    # Midpoints between frames, so that all three derivatives refer to the same time.
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
