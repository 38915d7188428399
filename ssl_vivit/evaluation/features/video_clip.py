"""One clip of a video file, prepared as the encoder's pretraining did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.video.clips import clip_frames, even_starts, timeline_length
from ssl_vivit.data.video.decoding import decode_frames, probe_video
from ssl_vivit.data.video.frame_times import covered_steps, frames_at
from ssl_vivit.encoders import ViViT
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.preparation import preparation
from ssl_vivit.preprocessing import Preprocessing


def clip_of_video(
    encoder: ViViT, path: str | Path, *, start: float | None = None
) -> Float[Tensor, "1 c T H W"]:
    """Read the clip that an encoder would see of a video file.

    Frame rate, stride, normalisation and channels are those of ``encoder.preprocessing``; the
    largest central window of the encoder's shape is resized to its size. A rate that either side
    does not name leaves the stride in frames of the video.

    Args:
        encoder: an encoder with ``preprocessing``.
        path: the video.
        start: where the clip starts, in seconds; None takes the clip from the middle.

    Raises:
        DataError: for an encoder without preprocessing, or a video that is shorter than the clip.
        DecodingError: for a file that is no video, or broken.
    """
    channels = encoder.config.in_channels
    known = encoder.preprocessing or Preprocessing()
    known.statistics(channels)  # refuses where `preparation` would take a guess
    info = probe_video(path)
    prepared = preparation(encoder, np.array([info.fps]))
    clip = prepared.clip
    times = None if info.times is None else np.array(info.times)
    if clip.fps is not None and times is not None:
        steps = covered_steps(times, clip.fps)
    else:
        rate = np.array([info.fps])
        steps = int(timeline_length(np.array([info.num_frames]), rate, clip.fps)[0])
    count = steps - clip.span + 1
    if start is None:
        first = even_starts(count, 1)
    elif clip.fps is None and times is not None:
        first = frames_at(np.array([start]), times)
    else:
        first = np.array([round(start * (clip.fps or info.fps))])
    if not 0 <= first[0] < count:
        at = "" if start is None else f" from {start:g} s on"
        raise DataError(
            f"{path} has {info.num_frames} frames at {info.fps:g} a second; the encoder's clip of "
            f"{clip.length} at stride {clip.frame_stride} does not fit{at}; take a longer "
            "video or an earlier start"
        )
    frames = decode_frames(path, clip_frames(first, clip, info.fps, times)[0].tolist())
    colours = "rgb" if channels == 3 else "luma"
    return (known | {"resize": encoder.config.image_size, "channels": colours})(frames[None])
