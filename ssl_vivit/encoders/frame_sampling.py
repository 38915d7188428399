"""Uniform frame sampling of a clip."""

from __future__ import annotations

import math


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
    # Python's numbers, in numpy's steps: torch.compile and torch.export would trace numpy's.
    points = math.ceil((num_frames - step) / step)
    return [min(round(step + i * step), num_frames - 1) for i in range(points)]
