"""Which frames of a clip uniform frame sampling takes."""

from __future__ import annotations

import numpy as np


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """Indices of frames spread evenly over a clip (Arnab et al. 2021, Sec. 3.2).

    The interior points of count + 1 equal parts of the clip, rounded half to even, as
    google-research/scenic takes them. In its floating-point steps a last point can appear, so the
    length may exceed ``count`` by one.

    Args:
        num_frames: frames T of the clip.
        count: frames to take; all, where there are no more.
    """
    if num_frames <= count:
        return list(range(num_frames))
    step = num_frames / (count + 1)
    points = np.round(np.arange(step, num_frames, step))
    return [int(point) for point in np.minimum(points, num_frames - 1)]
