"""Times at which the frames of a video are shown, at a constant or a varying rate.

Times are in seconds from the first shown frame, in ascending order. They are stored only for videos
with a varying rate. The frame at time t is the last frame that has begun by t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Tolerance in seconds, so that rounding does not move a time across the border of a frame. Times
# are stored with this number of decimals.
_ROUNDING = 1e-6
_DECIMALS = 6
# Uncertainty in seconds of a difference of two timestamps, which are often whole milliseconds.
_STAMPS = 0.002


def rate_and_times(
    seconds: Float[np.ndarray, " n"], named: float
) -> tuple[float, tuple[float, ...] | None]:
    """Return the frame rate of timestamps, and all times if the rate varies.

    Args:
        seconds: timestamps of the frames in seconds, ascending, with any origin.
        named: frames per second in the file's header; 0 if unknown.

    Returns:
        Frames per second and times. A rate fits if frame i begins at i / rate within half a frame.
        The header's rate is returned if it fits, else the mean rate. If one of them fits, times are
        None. If neither fits, the mean rate and all times are returned.
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
    """Check times from a shard's index or a ``KEY.video.json``, and return them as an array.

    Raises:
        ValueError: unless there is one finite number for each frame, in ascending order from 0.
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
    """Return the numbers of the frames that are shown at the given times."""
    return np.searchsorted(times, seconds + _ROUNDING, side="right") - 1


def covered_steps(times: Float[np.ndarray, " n"], fps: float) -> int:
    """Return the number of steps k ≥ 0 for which a frame is shown at k / fps seconds.

    The last frame is assumed to last as long as the frame before it, since few files store the
    duration of the last frame.
    """
    begun = math.floor((times[-1] + _ROUNDING) * fps) + 1
    end = 2 * times[-1] - times[-2] - _STAMPS
    return max(begun, math.ceil(end * fps))


def resampled(times: Sequence[float], fps: float) -> Int[np.ndarray, " k"]:
    """Return the numbers of the frames that are shown at 0, 1/fps, 2/fps, … seconds."""
    there = np.asarray(times, dtype=np.float64)
    return frames_at(np.arange(covered_steps(there, fps)) / fps, there)
