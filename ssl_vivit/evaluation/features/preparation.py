"""Cutting and normalisation of clips for an encoder, by default as in its pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.clevrer import MEAN, STD
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.videos import ShortVideos, Videos
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.config import ClipChoice
from ssl_vivit.preprocessing import Preprocessing

if TYPE_CHECKING:
    from ssl_vivit.encoders import ViViT

# Labels describe whole frames, so clips must show at least this fraction of a frame.
LEAST_SHOWN = 0.8


@dataclass(frozen=True)
class Preparation:
    """Format of an encoder's clips. Encoders with equal formats can share a pass over the videos.

    Attributes:
        clip: number of frames, stride, frame rate and number of clips.
        size: (H, W) in pixels.
        in_channels: 3 for RGB, 1 for luma.
        mean, std: mean and standard deviation of each channel, for pixels from 0 to 1.
    """

    clip: ClipConfig
    size: tuple[int, int]
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def dataset(
        self,
        videos: Videos,
        *,
        labels: bool = False,
        frame_size: tuple[int, int] | None = None,
        spread: bool = True,
        short_videos: ShortVideos = "skip",
    ) -> ClipDataset:
        """Return a data set of clips without augmentation.

        Args:
            videos: a ShardSet or a VideoFolder.
            labels: whether to check and read CLEVRER's annotations.
            frame_size: (H, W) to which frames are decoded; None keeps the videos' size.
            spread: whether clips are evenly spaced over the video; if not, they start at random
                positions in each epoch.
            short_videos: treatment of videos that are too short for the clips.
        """
        return ClipDataset(
            videos,
            self.clip,
            self.augment(),
            0,
            labels=labels,
            frame_size=frame_size,
            evaluation=spread,
            short_videos=short_videos,
        )

    def augment(self, config: AugmentConfig | None = None) -> Augment:
        """Return a transform from the frames of clips to augmented and normalised clips.

        Args:
            config: settings of the augmentation; None only crops, resizes and normalises.
        """
        config = config or AugmentConfig(strength="none")
        return Augment(config, self.size, self.in_channels, self.mean, self.std)

    def one_long_clip(self) -> Preparation:
        """Return the preparation of one clip with the total number of frames of all clips."""
        clip = replace(self.clip, num_frames=self.clip.length * self.clip.views, views=1)
        return replace(self, clip=clip)


def preparation(
    encoder: ViViT,
    rates: Float[np.ndarray, " videos"],
    choice: ClipChoice | None = None,
    clips: int = 1,
) -> Preparation:
    """Return the preparation of clips for an encoder.

    Frame rate and stride are taken from ``choice``, or from the encoder's ``preprocessing`` if
    ``choice`` does not set them. The defaults are the videos' rate and a stride of 1. The
    encoder's rate is ignored if the rate of a video is unknown. Mean and standard deviation are
    taken from ``preprocessing``; the default is CLEVRER's statistics.

    Args:
        encoder: the encoder, adapted to the clips; see :meth:`ReadingForEncoder.open_encoder`.
        rates: frames per second of the videos; 0 or NaN if unknown.
        choice: settings that replace those of the encoder.
        clips: number of clips per video.

    Raises:
        DataError: if the encoder has neither 1 nor 3 channels, or if its statistics do not fit its
            channels.
    """
    choice = choice or ClipChoice()
    known = encoder.preprocessing or Preprocessing()
    config = encoder.config
    fps = choice.fps or known.fps
    if choice.fps is None and not (np.isfinite(rates) & (rates > 0)).all():
        fps = None
    if config.in_channels not in (1, 3):
        raise DataError(
            f"the encoder has {config.in_channels} channels, but clips have 3 (RGB) or 1 (luma); "
            "adapt it by load_encoder(path, in_channels=3)"
        )
    channels = config.in_channels
    mean, std = known.statistics(channels) if known.normalised else (MEAN, STD)
    return Preparation(
        ClipConfig(
            num_frames=config.num_frames,
            frame_stride=choice.frame_stride or known.frame_stride or 1,
            views=clips,
            fps=fps,
        ),
        (config.image_size[0], config.image_size[1]),
        config.in_channels,
        tuple(mean),
        tuple(std),
    )


def check_whole_frames(encoder: ViViT, dataset: ClipDataset, name: str) -> None:
    """Check that an encoder's clips show most of each frame, because labels describe whole frames.

    Args:
        encoder: the encoder, whose clips are central crops of the frames.
        dataset: the videos.
        name: name of the encoder, for messages.

    Raises:
        DataError: if clips show less than 80 % of a frame; the message suggests an image size.
    """
    frames = dataset.decoded_size
    shown = fraction_shown(encoder.config.image_size, frames)
    if shown < LEAST_SHOWN:
        height, width = encoder.config.image_size
        fitting = fitting_size(encoder, frames)
        raise DataError(
            f"{name} takes clips of {height}×{width}, which show {shown:.0%} of frames of "
            f"{frames[0]}×{frames[1]}, but labels describe whole frames; adapt the encoder by "
            f"--data.image_size '{list(fitting)}'"
        )


def fraction_shown(size: Sequence[int], frames: Sequence[int]) -> float:
    """Return the fraction of a frame inside its largest central crop of ``size``'s aspect ratio."""
    ours, theirs = size[1] / size[0], frames[1] / frames[0]
    return min(ours, theirs) / max(ours, theirs)


def fitting_size(encoder: ViViT, frames: tuple[int, int]) -> tuple[int, int]:
    """Return an image size whose central crop shows over 95 % of a frame.

    Tubelets cover the image size without remainder. Of all such sizes, the size with the number of
    pixels closest to the encoder's is returned. If no size shows over 95 %, the size that shows
    most of a frame is returned.
    """
    (height, width), (_, down, across) = encoder.config.image_size, encoder.config.kernel_stride
    (_, tall, wide) = encoder.config.kernel_size
    sizes = [
        (tall + i * down, wide + j * across)
        for i in range(2 * height // down)
        for j in range(2 * width // across)
    ]
    good = [size for size in sizes if fraction_shown(size, frames) > 0.95]
    if not good:
        return max(sizes, key=lambda size: fraction_shown(size, frames))
    return min(good, key=lambda size: abs(size[0] * size[1] - height * width))
