"""Clips of one video, cut and prepared as the encoder's pretraining did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ssl_vivit.data.video.clips import clip_frames, even_starts, shortage, timeline_length
from ssl_vivit.data.video.decoding import VideoInfo, decode_frames, probe_video
from ssl_vivit.data.video.frame_times import covered_steps, frames_at
from ssl_vivit.encoders import ViViT
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.preparation import preparation
from ssl_vivit.preprocessing import Preprocessing


class ClipCutting:
    """The clips of a video for an encoder.

    Frame rate, stride, normalisation and channels are those of ``encoder.preprocessing``; the
    largest central window of the encoder's shape is resized to its size. A rate that either side
    does not name leaves the stride in frames of the video.

    Args:
        encoder: an encoder with ``preprocessing``.
        info: the video's measures.
        name: the video's, for messages.

    Attributes:
        clip: frames, stride and rate of a clip.

    Raises:
        DataError: for an encoder without preprocessing, or a video that is shorter than the clip.
    """

    def __init__(self, encoder: ViViT, info: VideoInfo, name: str) -> None:
        channels = encoder.config.in_channels
        known = encoder.preprocessing or Preprocessing()
        known.statistics(channels)  # refuses where `preparation` would take a guess
        self.clip = preparation(encoder, np.array([info.fps])).clip
        self._info, self._name = info, name
        self._times = None if info.times is None else np.array(info.times)
        colours = "rgb" if channels == 3 else "luma"
        self._prepare = known | {"resize": encoder.config.image_size, "channels": colours}
        if self.clip.fps is not None and self._times is not None:
            steps = covered_steps(self._times, self.clip.fps)
        else:
            frames, rate = np.array([info.num_frames]), np.array([info.fps])
            steps = int(timeline_length(frames, rate, self.clip.fps)[0])
        self._starts = steps - self.clip.span + 1
        if self._starts < 1:
            raise self._misfit("", "take a longer video")

    def central(self) -> Int[np.ndarray, "1 t"]:
        """Frame numbers of the clip in the middle."""
        return self._frames(even_starts(self._starts, 1))

    def at(self, start: float) -> Int[np.ndarray, "1 t"]:
        """Frame numbers of the clip that starts at so many seconds.

        Raises:
            DataError: if it reaches beyond the video, or the video names no frame rate.
        """
        rate = self.clip.fps or self._info.fps
        if start and not rate:
            raise DataError(
                f"{self._name} names no frame rate, so {start:g} s is no place in it; leave start out"
            )
        if self.clip.fps is None and self._times is not None:
            first = int(frames_at(np.array([start]), self._times)[0])
        else:
            first = round(start * rate)
        if not 0 <= first < self._starts:
            raise self._misfit(
                f", and does not fit from {start:g} s on", "take a longer video or an earlier start"
            )
        return self._frames(np.array([first]))

    def consecutive(self) -> Int[np.ndarray, "clips t"]:
        """Frame numbers of clips that follow each other from the start; ascending.

        Each clip goes on at the step after the one before; what is left at the end and is shorter
        than a clip belongs to none.
        """
        return self._frames(np.arange(0, self._starts, self.clip.length * self.clip.frame_stride))

    def prepared(self, frames: UInt8[Tensor, "t h w 3"] | np.ndarray) -> Float[Tensor, "c T H W"]:
        """Turn a clip's RGB frames into the encoder's video."""
        return self._prepare(torch.as_tensor(frames))

    def _frames(self, starts: Int[np.ndarray, " clips"]) -> Int[np.ndarray, "clips t"]:
        return clip_frames(starts, self.clip, self._info.fps, self._times)

    def _misfit(self, where: str, mend: str) -> DataError:
        why = shortage(self._info.num_frames, self._info.fps, self._times, self.clip)
        return DataError(f"{self._name} {why}{where}; {mend}")


def clip_of_video(
    encoder: ViViT, path: str | Path, *, start: float | None = None
) -> Float[Tensor, "1 c T H W"]:
    """Read the clip that an encoder would see of a video file; see :class:`ClipCutting`.

    Args:
        encoder: an encoder with ``preprocessing``.
        path: the video.
        start: where the clip starts, in seconds; None takes the clip from the middle.

    Raises:
        DataError: for an encoder without preprocessing, or a video that is shorter than the clip.
        DecodingError: for a file that is no video, or broken.
    """
    return numbered_clip(encoder, path, start=start)[0]


def numbered_clip(
    encoder: ViViT, path: str | Path, *, start: float | None = None
) -> tuple[Float[Tensor, "1 c T H W"], list[int]]:
    """Read a clip as :func:`clip_of_video` does, with the numbers of its frames in the video."""
    cutting = ClipCutting(encoder, probe_video(path), str(path))
    (numbers,) = cutting.central() if start is None else cutting.at(start)
    return cutting.prepared(decode_frames(path, numbers.tolist()))[None], numbers.tolist()
