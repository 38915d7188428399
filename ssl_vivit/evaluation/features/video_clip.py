"""Clips of one video, cut and prepared as in the encoder's pretraining."""

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
    """Cutting of clips from a video for an encoder.

    Frame rate, stride and normalisation are those of ``encoder.preprocessing``. The largest central
    crop with the encoder's aspect ratio is resized to the encoder's size. If the rate of the video
    or of the encoder is unknown, the stride counts frames of the video.

    Args:
        encoder: an encoder with ``preprocessing``.
        info: size, frame rate and number of frames of the video.
        name: name of the video, for messages.

    Attributes:
        clip: number of frames, stride and rate of a clip.

    Raises:
        DataError: if the encoder has no preprocessing, or if the video is shorter than a clip.
    """

    def __init__(self, encoder: ViViT, info: VideoInfo, name: str) -> None:
        channels = encoder.config.in_channels
        known = encoder.preprocessing or Preprocessing()
        # Raises an error if statistics are missing; `preparation` would use defaults.
        known.statistics(channels)
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
            # The most frames that fit, in whole tubelets.
            tubelet = encoder.config.tubelet_size[0]
            most = ((steps - 1) // self.clip.frame_stride + 1) // tubelet * tubelet
            shorter = f", or call load_encoder(…, num_frames={most})" if most > 0 else ""
            raise self._misfit("", f"take a longer video{shorter}")

    def central(self) -> Int[np.ndarray, "1 t"]:
        """Return the frame numbers of the clip in the middle of the video."""
        return self._frames(even_starts(self._starts, 1))

    def at(self, start: float) -> Int[np.ndarray, "1 t"]:
        """Return the frame numbers of the clip that starts at ``start`` seconds.

        Raises:
            DataError: if the clip extends beyond the video, or if the frame rate is unknown and
                ``start`` is not 0.
        """
        rate = self.clip.fps or self._info.fps
        if start and not rate:
            raise DataError(
                f"{self._name} states no frame rate, so the frame at start {start:g} s is unknown; "
                "omit start"
            )
        if self.clip.fps is None and self._times is not None:
            first = int(frames_at(np.array([start]), self._times)[0])
        else:
            first = round(start * rate)
        if not 0 <= first < self._starts:
            raise self._misfit(
                f", and does not fit at start {start:g} s",
                "take a longer video or an earlier start",
            )
        return self._frames(np.array([first]))

    def consecutive(self) -> Int[np.ndarray, "clips t"]:
        """Return the frame numbers (clips, t) of consecutive clips from the start of the video.

        Frame numbers ascend. A remainder shorter than a clip is left out.
        """
        return self._frames(np.arange(0, self._starts, self.clip.length * self.clip.frame_stride))

    def prepared(self, frames: UInt8[Tensor, "t h w 3"] | np.ndarray) -> Float[Tensor, "c T H W"]:
        """Crop, resize and normalise a clip for the encoder.

        Args:
            frames: RGB frames, uint8 (T, H, W, 3) of the video's size.

        Returns:
            The clip (c, T, H, W), of the encoder's size.
        """
        return self._prepare(torch.as_tensor(frames))

    def _frames(self, starts: Int[np.ndarray, " clips"]) -> Int[np.ndarray, "clips t"]:
        return clip_frames(starts, self.clip, self._info.fps, self._times)

    def _misfit(self, where: str, fix: str) -> DataError:
        why = shortage(self._info.num_frames, self._info.fps, self._times, self.clip)
        return DataError(f"{self._name} {why}{where}; {fix}")


def clip_of_video(
    encoder: ViViT, path: str | Path, *, start: float | None = None
) -> Float[Tensor, "1 c T H W"]:
    """Read a clip of a video file as input of an encoder; see :class:`ClipCutting`.

    Args:
        encoder: an encoder with ``preprocessing``.
        path: the video file.
        start: start of the clip in seconds; None takes the clip in the middle.

    Raises:
        DataError: if the encoder has no preprocessing, or if the clip does not fit the video.
        DecodingError: if the file is not a video or is broken.
    """
    return numbered_clip(encoder, path, start=start)[0]


def numbered_clip(
    encoder: ViViT, path: str | Path, *, start: float | None = None
) -> tuple[Float[Tensor, "1 c T H W"], list[int]]:
    """Read a clip like :func:`clip_of_video`; return the clip and the numbers of its frames."""
    cutting = ClipCutting(encoder, probe_video(path), str(path))
    (numbers,) = cutting.central() if start is None else cutting.at(start)
    return cutting.prepared(decode_frames(path, numbers.tolist()))[None], numbers.tolist()
