"""Cutting and normalisation of clips for an encoder: as in its pretraining, unless told otherwise."""

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

# Labels tell of whole frames, so a clip must not leave much of them out.
LEAST_SHOWN = 0.8


@dataclass(frozen=True)
class Preparation:
    """The clips that an encoder takes; equal ones can share a pass over the videos.

    Attributes:
        clip: frames, stride, rate and number of clips.
        size: (H, W).
        in_channels: 3 for RGB, 1 for luma.
        mean, std: of each channel in units of [0, 1].
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
        """Videos as clips without augmentation.

        Args:
            videos: a ShardSet or a VideoFolder.
            labels: whether to check and read CLEVRER's annotations.
            frame_size: (H, W) that frames are decoded to; None keeps theirs.
            spread: clips at even distances over the video; otherwise drawn for each epoch.
            short_videos: what becomes of videos that are too short for the clips.
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
        """Frames → normalised clips, without augmentation unless told otherwise."""
        config = config or AugmentConfig(strength="none")
        return Augment(config, self.size, self.in_channels, self.mean, self.std)

    def one_long_clip(self) -> Preparation:
        """Return the preparation of one clip with as many frames as all clips together."""
        clip = replace(self.clip, num_frames=self.clip.length * self.clip.views, views=1)
        return replace(self, clip=clip)


def preparation(
    encoder: ViViT,
    rates: Float[np.ndarray, " videos"],
    choice: ClipChoice | None = None,
    clips: int = 1,
) -> Preparation:
    """Clips for an encoder.

    Frame rate, stride and normalisation are what ``choice`` says, else what the encoder's
    ``preprocessing`` says, else the videos' own rate, every frame, and CLEVRER's statistics. Where
    a video names no rate, frames are counted as they come.

    Args:
        encoder: fitted to the geometry that is wanted, see :meth:`ReadingForEncoder.open_encoder`.
        rates: frames per second of the videos that clips are cut from, 0 or NaN where unknown.
        choice: what is to differ.
        clips: clips from each video.

    Raises:
        DataError: for channels that clips do not have, or statistics that do not fit them.
    """
    choice = choice or ClipChoice()
    known = encoder.preprocessing or Preprocessing()
    config = encoder.config
    fps = choice.fps or known.fps
    if choice.fps is None and not (np.isfinite(rates) & (rates > 0)).all():
        fps = None
    if config.in_channels not in (1, 3):
        raise DataError(
            f"the encoder takes {config.in_channels} channels, clips have 3 (RGB) or 1 (luma); "
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
    """Refuse an encoder whose clips cut off much of the frames that the labels describe.

    Args:
        encoder: it takes a central window of the shape of its clips.
        dataset: the videos.
        name: the encoder's, for messages.

    Raises:
        DataError: with the image_size that would fit.
    """
    frames = dataset.decoded_size
    shown = _share_shown(encoder.config.image_size, frames)
    if shown < LEAST_SHOWN:
        height, width = encoder.config.image_size
        fitting = _fitting_size(encoder, frames)
        raise DataError(
            f"{name} takes clips of {height}×{width}, which show {shown:.0%} of frames of "
            f"{frames[0]}×{frames[1]} while the labels tell of all; fit it to them by "
            f"--data.image_size '{list(fitting)}'"
        )


def _share_shown(size: Sequence[int], frames: Sequence[int]) -> float:
    """Share of a frame that its largest central window of the size's shape holds."""
    ours, theirs = size[1] / size[0], frames[1] / frames[0]
    return min(ours, theirs) / max(ours, theirs)


def _fitting_size(encoder: ViViT, frames: tuple[int, int]) -> tuple[int, int]:
    """The size of whole tubelets that shows almost all of a frame, as many pixels as now."""
    (height, width), (_, down, across) = encoder.config.image_size, encoder.config.kernel_stride
    (_, tall, wide) = encoder.config.kernel_size
    sizes = [
        (tall + i * down, wide + j * across)
        for i in range(2 * height // down)
        for j in range(2 * width // across)
    ]
    good = [size for size in sizes if _share_shown(size, frames) > 0.95]
    if not good:
        return max(sizes, key=lambda size: _share_shown(size, frames))
    return min(good, key=lambda size: abs(size[0] * size[1] - height * width))
