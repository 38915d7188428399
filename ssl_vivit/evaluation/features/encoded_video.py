"""Encoding of a video, given as a file or as an array of frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.data.video.decoding import VideoInfo, decode_frames, iterate_frames, probe_video
from ssl_vivit.encoders.vivit import EncoderOutput, ViViT
from ssl_vivit.errors import DataError, DecodingError, MissingError
from ssl_vivit.evaluation.features.extraction import half_precision
from ssl_vivit.evaluation.features.video_clip import ClipCutting
from ssl_vivit.evaluation_mode import evaluation_mode


@torch.no_grad()
def encode_video(
    video: str | Path | UInt8[np.ndarray, "T H W 3"] | UInt8[Tensor, "T H W 3"] | Sequence[Any],
    encoder: ViViT,
    *,
    clips: Literal["central", "all"] = "central",
    fps: float | None = None,
    tokens: bool = True,
    batch_size: int = 8,
) -> EncoderOutput:
    """Encode one or all clips of a video, prepared by ``encoder.preprocessing``.

    Frames are sampled at the encoder's frame rate, by their time stamps. Clips are then cropped to
    the largest central window with the encoder's aspect ratio, resized and normalised. If the
    frame rate of the video or of the encoder is unknown, the encoder's stride counts frames of the
    video.

    Args:
        video: a file, or uint8 RGB frames (T, H, W, 3) of any size.
        encoder: an encoder with ``preprocessing``, on any device; its mode is not changed.
        clips: ``central`` takes one clip from the middle. ``all`` takes consecutive clips from the
            start; a remainder shorter than a clip is left out. Clip i starts at
            i · num_frames · frame_stride / fps seconds, with the settings of the encoder.
        fps: frame rate of an array of frames, or None if unknown; must be None for a file.
        tokens: whether to return patch tokens; False saves computation and memory.
        batch_size: number of clips in a batch.

    Returns:
        :class:`EncoderOutput` in float32 on the CPU, without gradients, with a row for each of the
        n clips: ``pooled`` (n, d); ``tokens`` (n, t, h·w, d) or None; ``cls`` (n, t, d), in Model 1
        (n, 1, d), or None. ``map`` has the tokens as (n, d, t, h, w).

    Raises:
        DataError: if the encoder has no preprocessing, if ``clips`` or ``fps`` is invalid, if an
            array is not uint8 (T, H, W, 3), or if the video is shorter than a clip.
        DecodingError: if the file is not a video or is broken.
        MissingError: if the file does not exist.
        TypeError: if the encoder is not a ViViT.
    """
    if not isinstance(getattr(encoder, "_orig_mod", encoder), ViViT):
        raise TypeError(
            f"encoder is a {type(encoder).__name__}; give a ViViT, such as load_encoder(path), "
            "or the encoder of a classifier"
        )
    if clips not in ("central", "all"):
        raise DataError(f"clips {clips!r} is unknown; use 'central' or 'all'")
    frames: Tensor | None = None
    if isinstance(video, str | Path):
        if not Path(video).is_file():
            raise MissingError(f"{video} is no file; give the path of a video")
        if fps is not None:
            raise DataError(f"fps {fps} is for arrays of frames, but {video} is a file; omit fps")
        name = str(video)
        with _naming(name):
            info = probe_video(video)
    else:
        frames = _as_tensor(video)
        name, info = "the array", _measures(frames, fps)
    cutting = ClipCutting(encoder, info, name)
    numbers = cutting.central() if clips == "central" else cutting.consecutive()
    if frames is not None:
        parts: Iterator[Any] = (frames[torch.from_numpy(clip)] for clip in numbers)
    elif clips == "central":
        # Decoded lazily, inside the context that adds the file's name to errors.
        parts = (decode_frames(str(video), clip.tolist()) for clip in numbers)
    else:
        parts = _in_one_pass(str(video), numbers)
    weight = encoder.tubelets.weight
    outputs = []
    with (
        tqdm(total=len(numbers), desc=name, unit="clip", leave=False, dynamic_ncols=True,
             disable=len(numbers) == 1) as progress,
        evaluation_mode(encoder),
        half_precision(weight.device),
        _naming(name),
    ):  # fmt: skip
        while batch := [cutting.prepared(part) for part in islice(parts, max(batch_size, 1))]:
            outputs.append(_on_cpu(encoder(torch.stack(batch).to(weight), tokens=tokens)))
            progress.update(len(batch))
    first = outputs[0]
    return EncoderOutput(
        None if first.tokens is None else torch.cat([out.tokens for out in outputs]),  # type: ignore[misc]
        None if first.cls is None else torch.cat([out.cls for out in outputs]),  # type: ignore[misc]
        torch.cat([out.pooled for out in outputs]),
        first.grid,
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Context that adds the name of the video to errors of the decoder."""
    try:
        yield
    except DecodingError as error:
        raise DecodingError(f"{name}: {error}") from error


def _as_tensor(video: Any) -> Tensor:
    try:
        return video if isinstance(video, Tensor) else torch.as_tensor(np.asarray(video))
    except (TypeError, ValueError):  # arrays of several shapes, paths, other objects
        raise DataError(
            f"video is a {type(video).__name__}, not an array of frames; give one video: a file, "
            "or uint8 RGB frames (T, H, W, 3)"
        ) from None


def _measures(frames: Tensor, fps: float | None) -> VideoInfo:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        how = ", such as (frames * 255).round() as uint8 if they are from 0 to 1"
        raise DataError(
            f"frames are {frames.dtype} of shape {tuple(frames.shape)}; give uint8 RGB frames "
            f"(T, H, W, 3) of one video{how if frames.is_floating_point() else ''}"
        )
    if fps is not None and not 0 < fps < float("inf"):
        raise DataError(f"fps {fps} must be above 0 and finite, or None if unknown")
    count, height, width, _ = frames.shape
    return VideoInfo(count, height, width, fps or 0.0)


def _in_one_pass(path: str, numbers: Int[np.ndarray, "clips t"]) -> Iterator[np.ndarray]:
    """Yield the clips (t, H, W, 3) of a video file, and decode the file only once.

    ``numbers`` holds the frame numbers of each clip. They must not decrease within a clip or from
    clip to clip.
    """
    wanted = numbers.ravel()
    clip: list[np.ndarray] = []
    taken = 0
    for number, frame in enumerate(iterate_frames(path)):
        while taken < len(wanted) and wanted[taken] == number:
            clip.append(frame)
            taken += 1
            if len(clip) == numbers.shape[1]:
                yield np.stack(clip)
                clip = []
        if taken == len(wanted):
            return


def _on_cpu(out: EncoderOutput) -> EncoderOutput:
    tokens, cls, pooled = (None if x is None else x.float().cpu() for x in out[:3])
    assert pooled is not None
    return EncoderOutput(tokens, cls, pooled, out.grid)
