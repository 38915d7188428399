"""Frame numbers of clips: view starts, strides and frame rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from ssl_vivit.data.video.frame_times import covered_steps, frames_at
from ssl_vivit.data.video.videos import ShortVideos, Videos
from ssl_vivit.errors import DataError

# Tolerance in frames, so that rounding does not move a time across the border of a frame.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ClipConfig:
    """Settings of the clips that are cut from a video.

    Args:
        num_frames: number of frames of a clip. null means the encoder's number.
        frame_stride: number of time steps from one frame of a clip to the next. A time step is one
            frame of the video, or 1 / ``fps`` seconds if ``fps`` is set.
        views: number of clips drawn from each video.
        fps: frame rate to which videos are resampled. Frames of slower videos are repeated, and
            frames of faster videos are skipped. null uses the frames of each video without
            resampling.
        view_gap: distribution of the time between two views. ``near`` prefers short gaps: the
            density falls linearly to zero at the longest possible gap (CVRL, Qian et al. 2021, Sec.
            3.2). ``uniform`` makes all gaps equally likely.
    """

    num_frames: int | None = None
    frame_stride: int = 1
    views: int = 2
    fps: float | None = None
    view_gap: Literal["near", "uniform"] = "near"

    def __post_init__(self) -> None:
        for name in ("num_frames", "frame_stride", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"--data.clip.{name} is {value}; it must be 1 or more")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise DataError(f"--data.clip.fps is {self.fps}; it must be above 0, or null")

    @property
    def span(self) -> int:
        """Number of time steps from a clip's first frame to its last frame, including both."""
        return (self.length - 1) * self.frame_stride + 1

    @property
    def length(self) -> int:
        """Number of frames of a clip.

        Raises:
            DataError: if ``num_frames`` is None.
        """
        if self.num_frames is None:
            raise DataError(
                "--data.clip.num_frames is null, and there is no encoder that determines it; set "
                "--data.clip.num_frames"
            )
        return self.num_frames

    def for_encoder(self, num_frames: int) -> ClipConfig:
        """Return these settings with the encoder's number of frames.

        Raises:
            DataError: if ``num_frames`` is set to another number.
        """
        if self.num_frames not in (None, num_frames):
            raise DataError(
                f"--data.clip.num_frames is {self.num_frames}, but the encoder takes {num_frames}; "
                "set "
                "--encoder.overrides.num_frames, and remove --data.clip.num_frames"
            )
        return replace(self, num_frames=num_frames)


def timeline_length(
    num_frames: Int[np.ndarray, " n"], source_fps: Float[np.ndarray, " n"], fps: float | None
) -> Int[np.ndarray, " n"]:
    """Return the length of each video in time steps of 1 / ``fps`` seconds.

    A video has time step k ≥ 0 if it shows a frame at k / fps seconds. If ``fps`` is None, the time
    steps are the frames of the video.

    Args:
        num_frames: number of frames of each video.
        source_fps: frame rate of each video, which must be constant. Ignored if ``fps`` is None.
        fps: frame rate to which videos are resampled, or None.
    """
    frames = np.asarray(num_frames, dtype=np.int64)
    if fps is None:
        return frames
    steps = np.ceil((frames - _ROUNDING) * fps / np.asarray(source_fps, dtype=np.float64))
    return steps.astype(np.int64)


def timeline_lengths(videos: Videos, fps: float | None) -> Int[np.ndarray, " n"]:
    """Return the length of each video in time steps of 1 / ``fps`` seconds.

    If ``fps`` is None, the time steps are the frames of the video. For a video whose frame rate
    varies, the length is computed from the times of its frames.

    Args:
        videos: the videos; none of them is opened.
        fps: frame rate to which videos are resampled, or None.

    Raises:
        DataError: if ``fps`` is set and the frame rate of a video is unknown.
    """
    source_fps = np.asarray(videos.fps, dtype=np.float64)
    if fps is not None:
        timeless = np.flatnonzero(~(np.isfinite(source_fps) & (source_fps > 0)))
        if len(timeless):
            raise DataError(
                f"{_example(videos.keys, timeless)} has no frame rate, but --data.clip.fps "
                f"{fps:g} needs it; set --data.clip.fps to null or pack the videos "
                "again"
            )
    steps = timeline_length(np.asarray(videos.num_frames), source_fps, fps)
    if fps is not None:
        for i in range(len(steps)):
            if (times := videos.times(i)) is not None:
                steps[i] = covered_steps(times, fps)
    return steps


def start_counts(
    videos: Videos, config: ClipConfig, short_videos: ShortVideos = "refuse"
) -> Int[np.ndarray, " n"]:
    """Return the number of time steps in each video at which a clip can start.

    Args:
        videos: the videos; none of them is opened.
        config: settings of the clips.
        short_videos: treatment of a video that is shorter than a clip or has fewer starts than
            views. "skip" returns 0 for it. "pad" returns the number of views, and clips repeat the
            last frame. "refuse" raises an error.

    Raises:
        DataError: if a video is too short with "refuse", all videos are too short with "skip", or
            ``config.fps`` is set and the frame rate of a video is unknown.
    """
    steps = timeline_lengths(videos, config.fps)
    counts = steps - config.span + 1
    fits = counts >= config.views
    if short_videos == "pad":
        return np.where(
            fits | (np.asarray(videos.num_frames) < 1), np.maximum(counts, 0), config.views
        )
    if short_videos == "skip" and fits.any():
        return np.where(fits, counts, 0)
    short = np.flatnonzero(counts < 1)
    if len(short):
        worst = short[np.argmin(steps[short])]
        needed = f"{config.span} frames"
        if config.fps is not None:
            needed = f"{config.span} steps ({(config.span - 1) / config.fps:.4g} s)"
        raise DataError(
            f"{_example(videos.keys, short, worst)} has {_length(videos, worst, steps, config)}; "
            f"--data.clip.num_frames {config.num_frames} × --data.clip.frame_stride "
            f"{config.frame_stride} needs {needed}; lower one of them, or set --data.short_videos "
            "pad"
        )
    few = np.flatnonzero(counts < config.views)
    if len(few):
        worst = few[np.argmin(counts[few])]
        raise DataError(
            f"{_example(videos.keys, few, worst)} has {_length(videos, worst, steps, config)}, in "
            f"which a clip of {config.span} steps can start at {counts[worst]} "
            f"{'place' if counts[worst] == 1 else 'places'}, but --data.clip.views {config.views} "
            f"needs {config.views}; lower views, num_frames or frame_stride, or set "
            f"--data.short_videos pad"
        )
    return counts


def _example(keys: Sequence[str], which: np.ndarray, first: int | None = None) -> str:
    named = keys[which[0] if first is None else first]
    return named if len(which) == 1 else f"{named} (one of {len(which)} such videos)"


def _length(videos: Videos, i: int, steps: np.ndarray, config: ClipConfig) -> str:
    if config.fps is None:
        return f"{videos.num_frames[i]} frames"
    return f"{videos.num_frames[i]} frames, {steps[i]} at --data.clip.fps {config.fps:g}"


def too_short(videos: Videos, clip: ClipConfig) -> dict[int, str]:
    """Return the videos that are too short for the clips.

    The result is a dictionary from the index of each such video to a text with the reason.

    Raises:
        DataError: if ``clip.fps`` is set and the frame rate of a video is unknown.
    """
    short = timeline_lengths(videos, clip.fps) < _needed_steps(clip)
    reasons = {}
    for i in np.flatnonzero(short).tolist():
        times = None if clip.fps is None else videos.times(i)
        reasons[i] = shortage(int(videos.num_frames[i]), float(videos.fps[i]), times, clip)
    return reasons


def shortage(
    num_frames: int, source_fps: float, times: Float[np.ndarray, " n"] | None, clip: ClipConfig
) -> str:
    """Return a message with the length of a video and the length that the clips need.

    Args:
        num_frames: number of frames of the video.
        source_fps: frame rate of the video. Ignored if ``clip.fps`` is None.
        times: times in seconds at which the video's frames begin. None if the rate is constant.
        clip: settings of the clips.
    """
    clips = needed_length(clip)
    if clip.fps is None:
        return f"has {num_frames} frames; {clips}"
    if times is not None:
        lasts = 2 * times[-1] - times[-2]
        return f"has {num_frames} frames at a varying rate ({lasts:.4g} s); {clips}"
    steps = _needed_steps(clip) - 1
    s = "s" if clip.views == 1 else ""
    needed = int(np.floor(steps * source_fps / clip.fps + _ROUNDING)) + 1
    return (
        f"has {num_frames} frames at {source_fps:.4g} frames/s ({num_frames / source_fps:.4g} s); "
        f"{clips} and need{s} {needed} frames"
    )


def needed_length(clip: ClipConfig) -> str:
    """Return a clause for a message: the least length that a video needs for the clips.

    For example ``a clip of 16 frames at stride 4 needs 61 frames``. The length is in seconds if
    ``clip.fps`` is set.
    """
    steps = _needed_steps(clip) - 1
    clips, s = f"a clip of {clip.length} frames", "s"
    if clip.views > 1:
        clips, s = f"{clip.views} clips of {clip.length} frames with different starts", ""
    if clip.fps is None:
        return f"{clips} at stride {clip.frame_stride} need{s} {steps + 1} frames"
    rate = clip.fps / clip.frame_stride
    return f"{clips} at {rate:.4g} frames/s span{s} {steps / clip.fps:.4g} s"


def _needed_steps(clip: ClipConfig) -> int:
    """Return how many time steps a video needs so that all views can have different starts."""
    return clip.span + clip.views - 1


def draw_starts(
    rng: np.random.Generator, count: int, views: int, view_gap: Literal["near", "uniform"]
) -> Int[np.ndarray, " views"]:
    """Draw the starts of the views of one video: distinct time steps < ``count``, in random order.

    "near" draws a set of ``views`` distinct starts; all sets have equal probability. The gap g ≥ 1
    between two views then has a probability proportional to count − g, the linearly decreasing
    density of CVRL (Qian et al. 2021, Sec. 3.2). CVRL draws the gap first and then a uniform start;
    for two views the distributions are equal.

    "uniform" draws the gap between the first and the last view uniformly, then the start of the
    first view, then the views in between.

    Args:
        rng: random generator of the sample.
        count: number of possible starts; must be at least ``views``.
        views: number of starts to draw.
        view_gap: "near" or "uniform".
    """
    if view_gap == "near":
        starts = rng.choice(count, size=views, replace=False)
    elif views == 1:
        starts = rng.integers(count, size=1)
    else:
        gap = int(rng.integers(views - 1, count))
        inner = rng.permutation(gap - 1)[: views - 2] + 1
        starts = rng.integers(count - gap) + np.array([0, gap, *inner])
    return rng.permutation(starts).astype(np.int64)


def even_starts(count: int, views: int) -> Int[np.ndarray, " views"]:
    """Return evenly spaced starts of the views of one video, from time step 0 to count − 1.

    A single view starts in the middle.

    Args:
        count: number of time steps at which a clip can start.
        views: number of starts.
    """
    if views == 1:
        return np.array([(count - 1) // 2], dtype=np.int64)
    return np.arange(views, dtype=np.int64) * (count - 1) // (views - 1)


def clip_frames(
    starts: Int[np.ndarray, " views"],
    config: ClipConfig,
    source_fps: float,
    times: Float[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, "views t"]:
    """Return the frame numbers (views, t) of the clips that start at the given time steps.

    Frame j of a clip is the frame that the video shows at (start + j · frame_stride) / fps seconds,
    that is, the last frame that has begun by then. If ``config.fps`` is None, time steps are frames
    of the video, and frame j has the number start + j · frame_stride.

    Args:
        starts: time step at which each clip starts.
        config: settings of the clips.
        source_fps: frames per second of the video.
        times: times in seconds at which the video's frames begin. None if the rate is constant.
    """
    steps = starts[:, None] + np.arange(config.length) * config.frame_stride
    if config.fps is None:
        return steps.astype(np.int64)
    if times is not None:
        return frames_at(steps / config.fps, times).astype(np.int64)
    return np.floor(steps * (source_fps / config.fps) + _ROUNDING).astype(np.int64)
