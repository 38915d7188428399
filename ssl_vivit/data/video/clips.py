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

# A time that falls on a frame's border by arithmetic must not miss it by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ClipConfig:
    """Settings of the clips that are cut from a video.

    Args:
        num_frames: frames in a clip; null takes the encoder's.
        frame_stride: steps between a clip's frames, in frames of the video, or of the rate that
            ``fps`` asks for.
        views: clips drawn from each video.
        fps: frames per second that the stride counts in; a slower video's frames are repeated, a
            faster one's left out. None takes each video's frames as they come.
        view_gap: time between two views: "near" makes short gaps more frequent, the density
            falling linearly to zero at the longest possible gap (CVRL, Qian et al. 2021,
            Sec. 3.2); "uniform" makes all gaps equally frequent.
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
        """Steps from a clip's first frame to its last, both counted."""
        return (self.length - 1) * self.frame_stride + 1

    @property
    def length(self) -> int:
        """Frames in a clip, once it is known."""
        if self.num_frames is None:
            raise DataError("--data.clip.num_frames is not set, and no encoder says it")
        return self.num_frames

    def for_encoder(self, num_frames: int) -> ClipConfig:
        """Return these settings with the encoder's number of frames.

        Raises:
            DataError: if this one asks for another number.
        """
        if self.num_frames not in (None, num_frames):
            raise DataError(
                f"--data.clip.num_frames is {self.num_frames}, the encoder takes {num_frames}; set "
                "--encoder.overrides.num_frames, and leave --data.clip.num_frames out"
            )
        return replace(self, num_frames=num_frames)


def timeline_length(
    num_frames: Int[np.ndarray, " n"], source_fps: Float[np.ndarray, " n"], fps: float | None
) -> Int[np.ndarray, " n"]:
    """Steps of a clip's time grid that a video covers.

    Step k lies at k / fps seconds; it is covered when the video shows a frame then. Without
    ``fps`` a step is a frame of the video.
    """
    frames = np.asarray(num_frames, dtype=np.int64)
    if fps is None:
        return frames
    steps = np.ceil((frames - _ROUNDING) * fps / np.asarray(source_fps, dtype=np.float64))
    return steps.astype(np.int64)


def timeline_lengths(videos: Videos, fps: float | None) -> Int[np.ndarray, " n"]:
    """:func:`timeline_length` of each video; by the times of its frames where its rate varies.

    Raises:
        DataError: if ``fps`` is given and a video names no frame rate.
    """
    source_fps = np.asarray(videos.fps, dtype=np.float64)
    if fps is not None:
        timeless = np.flatnonzero(~(np.isfinite(source_fps) & (source_fps > 0)))
        if len(timeless):
            raise DataError(
                f"{_some(videos.keys, timeless)} names no frame rate, which --data.clip.fps "
                f"{fps:g} needs; set --data.clip.fps to null or pack the videos again"
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
    """The number of places in each video at which a clip can start.

    Args:
        videos: the videos, none of which is opened.
        config: what is to be cut.
        short_videos: what becomes of a video that is shorter than a clip or has fewer starts than
            views: "skip" counts 0 for it; "pad" as many as there are views, whose clips repeat its
            last frame; "refuse" raises.

    Raises:
        DataError: if a video is too short and is refused, all are too short and are skipped, or
            one names no frame rate where one is needed.
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
        raise DataError(
            f"{_some(videos.keys, short, worst)} has {_length(videos, worst, steps, config)}; "
            f"--data.clip.num_frames {config.num_frames} × --data.clip.frame_stride "
            f"{config.frame_stride} needs {config.span}; lower either, or set --data.short_videos pad"
        )
    few = np.flatnonzero(counts < config.views)
    if len(few):
        worst = few[np.argmin(counts[few])]
        raise DataError(
            f"{_some(videos.keys, few, worst)} has {_length(videos, worst, steps, config)}, in "
            f"which clips of {config.span} can start at {counts[worst]} "
            f"{'place' if counts[worst] == 1 else 'places'}; --data.clip.views {config.views} "
            f"needs as many; lower views, num_frames or frame_stride, or set "
            f"--data.short_videos pad"
        )
    return counts


def _some(keys: Sequence[str], which: np.ndarray, first: int | None = None) -> str:
    named = keys[which[0] if first is None else first]
    return named if len(which) == 1 else f"{named} (one of {len(which)} such videos)"


def _length(videos: Videos, i: int, steps: np.ndarray, config: ClipConfig) -> str:
    if config.fps is None:
        return f"{videos.num_frames[i]} frames"
    return f"{videos.num_frames[i]} frames, {steps[i]} at --data.clip.fps {config.fps:g}"


def too_short(videos: Videos, clip: ClipConfig) -> dict[int, str]:
    """Videos in which the clips do not fit: number → reason.

    Raises:
        DataError: if a video names no frame rate and the clips need one.
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
    """Say how long a video is, and how long it must be for the clips.

    Args:
        num_frames: frames of the video.
        source_fps: its frames per second; not read where ``clip`` names no rate.
        times: seconds at which its frames begin; None if the rate is constant.
        clip: how many clips, and how they are cut.
    """
    steps = _needed_steps(clip) - 1
    clips = f"a clip of {clip.length} frames"
    if clip.views > 1:
        clips = f"{clip.views} clips of {clip.length} frames with different starts"
    s = "s" if clip.views == 1 else ""
    if clip.fps is None:
        return f"has {num_frames} frames; {clips} at stride {clip.frame_stride} need{s} {steps + 1}"
    clips += f" at {clip.fps / clip.frame_stride:.4g} frames/s span{s} {steps / clip.fps:.4g} s"
    if times is not None:
        lasts = 2 * times[-1] - times[-2]
        return f"has {num_frames} frames at a varying rate ({lasts:.4g} s); {clips}"
    needed = int(np.floor(steps * source_fps / clip.fps + _ROUNDING)) + 1
    return (
        f"has {num_frames} frames at {source_fps:.4g} frames/s ({num_frames / source_fps:.4g} s); "
        f"{clips} and need{s} {needed} frames"
    )


def _needed_steps(clip: ClipConfig) -> int:
    """Steps that a video must cover, so that each view has a start of its own."""
    return clip.span + clip.views - 1


def draw_starts(
    rng: np.random.Generator, count: int, views: int, view_gap: Literal["near", "uniform"]
) -> Int[np.ndarray, " views"]:
    """Draw where the views of one video start: distinct steps in [0, count), in random order.

    "near" draws ``views`` distinct starts, every set of them equally likely. The gap g ≥ 1 between
    any two of them then has a probability proportional to count − g, which is CVRL's linearly
    decreasing density (Qian et al. 2021, Sec. 3.2), for any number of views. (CVRL draws the gap
    first and then a uniform start; for two views that is the same distribution.) "uniform" draws
    the gap between the first and the last view uniformly, then the place, then the views between.

    Args:
        rng: the sample's generator.
        count: possible starts, at least ``views``.
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
    """Starts spread evenly over [0, count), first and last included; one view starts midway."""
    if views == 1:
        return np.array([(count - 1) // 2], dtype=np.int64)
    return np.arange(views, dtype=np.int64) * (count - 1) // (views - 1)


def clip_frames(
    starts: Int[np.ndarray, " views"],
    config: ClipConfig,
    source_fps: float,
    times: Float[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, "views t"]:
    """The frame numbers of the clips that start at the given steps.

    Frame j of a clip lies at (start + j · frame_stride) / fps seconds and is the frame which the
    video shows then: the last one that has begun. No frame of the future is ever taken. Without
    ``config.fps`` the steps are frames.

    Args:
        starts: the steps.
        config: how clips are cut.
        source_fps: frames per second of the video.
        times: seconds at which its frames begin; None if the rate is constant.
    """
    steps = starts[:, None] + np.arange(config.length) * config.frame_stride
    if config.fps is None:
        return steps.astype(np.int64)
    if times is not None:
        return frames_at(steps / config.fps, times).astype(np.int64)
    return np.floor(steps * (source_fps / config.fps) + _ROUNDING).astype(np.int64)
