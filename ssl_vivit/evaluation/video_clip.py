"""One clip of a video file, prepared as the encoder's pretraining did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.augment import Augment, AugmentConfig
from ssl_vivit.data.clips import ClipConfig, clip_frames, even_starts, timeline_length
from ssl_vivit.data.decoding import decode_frames, probe_video
from ssl_vivit.data.errors import DataError
from ssl_vivit.encoders import ViViT


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
    mean, std = normalisation(encoder)
    prepared, config = encoder.preprocessing or {}, encoder.config
    info = probe_video(path)
    rate = prepared.get("fps") if info.fps else None
    clip = ClipConfig(config.num_frames, prepared.get("frame_stride") or 1, views=1, fps=rate)
    steps = int(timeline_length(np.array([info.num_frames]), np.array([info.fps]), rate)[0])
    count = steps - clip.span + 1
    per_second = rate or info.fps
    first = even_starts(count, 1) if start is None else np.array([round(start * per_second)])
    if not 0 <= first[0] < count:
        at = "" if start is None else f" from {start:g} s on"
        raise DataError(
            f"{path} has {info.num_frames} frames at {info.fps:g} a second; the encoder's clip of "
            f"{config.num_frames} at stride {clip.frame_stride} does not fit{at}; take a longer "
            "video or an earlier start"
        )
    frames = decode_frames(path, clip_frames(first, clip, info.fps)[0].tolist())
    augment = Augment(
        AugmentConfig(strength="none"), config.image_size, config.in_channels, mean, std
    )
    drawn = augment.draw(np.random.default_rng(0), *frames.shape[1:3])
    params = {name: value[None] for name, value in drawn.items()}
    return augment(torch.from_numpy(frames)[None], params)


def normalisation(encoder: ViViT) -> tuple[list[float], list[float]]:
    """Mean and std of pixels in [0, 1], one of each channel.

    Raises:
        DataError: where the encoder has no ``preprocessing`` that names them.
    """
    prepared: dict[str, Any] = encoder.preprocessing or {}
    channels = encoder.config.in_channels
    if "mean" not in prepared or "std" not in prepared or channels not in (1, 3):
        raise DataError(
            "the encoder does not say how pixels are normalised; set encoder.preprocessing, "
            'such as {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, and save it again'
        )
    low, high = prepared.get("pixel_range") or (0.0, 1.0)
    mean = [(value - low) / (high - low) for value in prepared["mean"]]
    std = [value / (high - low) for value in prepared["std"]]
    if len(mean) != len(std) or len(mean) not in (1, channels):
        raise DataError(
            f"the encoder's preprocessing has {len(mean)} means and {len(std)} stds for "
            f"{channels} channels; give one for each"
        )
    repeats = channels // len(mean)
    return mean * repeats, std * repeats
