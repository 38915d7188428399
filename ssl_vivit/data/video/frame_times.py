"""Times at which the frames of a video are shown, at a constant or a varying rate.

Times are seconds from the first shown frame on, ascending. A video has them only where its rate
varies. The frame at time t is the last one that has begun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# A time that falls on a frame's border by arithmetic must not miss it by rounding. Times are
# stored in whole microseconds.
_ROUNDING = 1e-6
_DECIMALS = 6
# Stamps are often whole milliseconds, so a difference of two is known to about so many seconds.
_STAMPS = 0.002


def rate_and_times(
    seconds: Float[np.ndarray, " n"], named: float
) -> tuple[float, tuple[float, ...] | None]:
    """The frame rate that time stamps tell, and the times where the rate varies.

    Args:
        seconds: time stamps of the frames, ascending, from any origin.
        named: frames per second as the file's header has it; 0 if unknown.

    Returns:
        Frames per second, and None if frame i begins at i / rate within half a frame. The header's
        rate is taken where it fits so, else the mean rate. Otherwise the mean rate and all times.
    """
    if len(seconds) < 2 or not seconds[-1] > seconds[0]:
        return named, None
    seconds = seconds - seconds[0]
    mean = (len(seconds) - 1) / float(seconds[-1])
    for rate in (named, mean):
        if rate and (np.abs(seconds * rate - np.arange(len(seconds))) < 0.5).all():
            return rate, None
    return mean, tuple(np.round(seconds, _DECIMALS).tolist())


def check_times(stored: Any, num_frames: int) -> Float[np.ndarray, " n"]:
    """Times as an index or a ``video.json`` stores them.

    Raises:
        ValueError: if they are not one ascending, finite number for each frame, the first 0.
    """
    try:
        times = np.array(stored, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        times = np.empty(0)
    if (
        times.shape != (num_frames,)
        or num_frames < 2
        or times[0] != 0
        or not np.isfinite(times).all()
        or (np.diff(times) < 0).any()
    ):
        raise ValueError(f"times must be {num_frames} ascending numbers of seconds from 0 on")
    return times


def frames_at(
    seconds: Float[np.ndarray, "*shape"], times: Float[np.ndarray, " n"]
) -> Int[np.ndarray, "*shape"]:
    """Numbers of the frames that are shown at some times."""
    return np.searchsorted(times, seconds + _ROUNDING, side="right") - 1


def covered_steps(times: Float[np.ndarray, " n"], fps: float) -> int:
    """The number of k ≥ 0 with a frame at k / fps.

    The last frame is taken to last as long as the one before it: few files say how long.
    """
    begun = math.floor((times[-1] + _ROUNDING) * fps) + 1
    end = 2 * times[-1] - times[-2] - _STAMPS
    return max(begun, math.ceil(end * fps))


def resampled(times: Sequence[float], fps: float) -> Int[np.ndarray, " k"]:
    """Numbers of the frames shown at 0, 1/fps, 2/fps …; a frame repeats while it is shown."""
    there = np.asarray(times, dtype=np.float64)
    return frames_at(np.arange(covered_steps(there, fps)) / fps, there)
