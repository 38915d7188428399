"""Uniform frame sampling of a clip."""

from __future__ import annotations

import math


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """Return indices of frames spread evenly over a clip (Arnab et al. 2021, Sec. 3.2).

    The indices are the boundaries between count + 1 equal parts of the clip, rounded half to even,
    as in google-research/scenic. Floating-point rounding can add a last index, also in scenic, so
    that count + 1 indices are returned.

    Args:
        num_frames: number of frames T of the clip.
        count: number of frames to sample; all frames of shorter clips are returned.
    """
    if num_frames <= count:
        return list(range(num_frames))
    step = num_frames / (count + 1)
    # Equal to numpy.arange, but constant for torch.compile and torch.export, which trace numpy.
    points = math.ceil((num_frames - step) / step)
    return [min(round(step + i * step), num_frames - 1) for i in range(points)]
