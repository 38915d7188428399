"""Uniform frame sampling of a clip."""

from __future__ import annotations

import math


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """Return indices of frames spread evenly over a clip (Arnab et al. 2021, Sec. 3.2).

    They are the boundaries between count + 1 equal parts of the clip, rounded half to even, as in
    google-research/scenic. As there, floating-point rounding can add a last index, so that count +
    1 indices are returned.

    Args:
        num_frames: number of frames T of the clip.
        count: number of frames to sample; shorter clips are sampled completely.
    """
    if num_frames <= count:
        return list(range(num_frames))
    step = num_frames / (count + 1)
    # Repeat numpy's arange in plain Python: torch.compile and torch.export would trace numpy's.
    points = math.ceil((num_frames - step) / step)
    return [min(round(step + i * step), num_frames - 1) for i in range(points)]
