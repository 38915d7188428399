"""Sets of videos: settings for opening them, selection, and central windows of one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ssl_vivit.data.downloading import STALL_TIMEOUT
from ssl_vivit.data.video.decoding import Decoder
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.video_folder import VideoFolder

ShortVideos = Literal["skip", "pad", "refuse"]


class Videos(Protocol):
    """Protocol of a set of videos: ShardSet, VideoFolder, CentralWindows or Chosen.

    Attributes:
        keys: names of the videos, which are unique.
        num_frames: int array (len,), number of frames of each video.
        heights: int array (len,), in pixels.
        widths: int array (len,), in pixels.
        fps: float array (len,), frames per second: the mean if the rate varies, 0 or NaN if
            unknown.
        has_annotation: bool array (len,), whether a video has an annotation.
    """

    keys: list[str]
    num_frames: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    fps: np.ndarray
    has_annotation: np.ndarray

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> dict | None: ...

    def times(self, i: int) -> np.ndarray | None:
        """Return the times in seconds at which frames begin; None if the rate is constant."""

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class VideoReading:
    """Settings of reading videos, shared by training, probes and features.

    Args:
        cache_dir: directory for copies of remote shards. null means ~/.cache/ssl_vivit/shards.
        stall_timeout: seconds without data after which a connection to a remote shard fails. Four
            failures in a row end the run.
        decoder: "pyav", "torchcodec", or "auto", which uses torchcodec if it can be loaded.
        frame_size: height and width to which frames are decoded. null keeps their size, which then
            must be equal for all videos.
        workers: number of processes that decode. null means the number of free cores, at most 8.
        short_videos: treatment of videos that are too short for the clips. "skip" leaves them out,
            "pad" repeats their last frame, "refuse" ends the run.
    """

    cache_dir: str | None = None
    stall_timeout: float = STALL_TIMEOUT
    decoder: Decoder = "auto"
    frame_size: tuple[int, int] | None = None
    workers: int | None = None
    short_videos: ShortVideos = "skip"

    def open_shards(self, shards: str | list[str]) -> ShardSet:
        """Open shards; see :class:`~ssl_vivit.data.video.shards.ShardSet`."""
        return ShardSet(shards, self.cache_dir, self.decoder, self.stall_timeout)

    def open_folder(self, root: str, option: str) -> VideoFolder:
        """Open a folder of videos; messages name the setting ``option``, which gives the folder."""
        return VideoFolder(root, decoder=self.decoder, option=option)


class CentralWindows:
    """Videos of different sizes, which are all resized and cropped to a central window of one size.

    Each video is resized so that it just covers the window.

    Args:
        videos: a ShardSet or a VideoFolder.
        size: (H, W) of the window in pixels.
    """

    def __init__(self, videos: Videos, size: tuple[int, int]) -> None:
        self._videos, self.size = videos, size
        self.keys, self.num_frames, self.fps = videos.keys, videos.num_frames, videos.fps
        self.has_annotation = videos.has_annotation
        self.heights, self.widths = (np.full(len(videos), side, np.int64) for side in size)

    def __len__(self) -> int:
        return len(self._videos)

    def annotation(self, i: int) -> dict | None:
        """Return the annotation of the video, unchanged."""
        return self._videos.annotation(i)

    def times(self, i: int) -> np.ndarray | None:
        """Return the times of the video's frames, unchanged."""
        return self._videos.times(i)

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return the frames with numbers ``indices``, cropped to the window, uint8 (n, H, W, 3)."""
        height, width = size or self.size
        own = int(self._videos.heights[i]), int(self._videos.widths[i])
        scale = max(height / own[0], width / own[1])
        # Round up, so that no side is shorter than the window.
        whole = max(height, math.ceil(own[0] * scale)), max(width, math.ceil(own[1] * scale))
        pixels = self._videos.frames(i, indices, whole)
        top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
        return np.ascontiguousarray(pixels[:, top : top + height, left : left + width])


def of_one_size(videos: Videos, size: tuple[int, int]) -> Videos:
    """Return the videos unchanged if all have the same size, else their central windows."""
    sizes = {*zip(videos.heights.tolist(), videos.widths.tolist(), strict=True)}
    return videos if len(sizes) <= 1 else CentralWindows(videos, size)


class Chosen:
    """Selection of videos of a set, with new indices.

    Args:
        videos: the set.
        indices: indices of the selected videos.
    """

    def __init__(self, videos: Videos, indices: np.ndarray) -> None:
        self._videos, self._indices = videos, indices
        self.keys = [videos.keys[i] for i in indices]
        self.num_frames, self.fps = videos.num_frames[indices], videos.fps[indices]
        self.heights, self.widths = videos.heights[indices], videos.widths[indices]
        self.has_annotation = videos.has_annotation[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def annotation(self, i: int) -> dict | None:
        """Return the annotation of the video, unchanged."""
        return self._videos.annotation(int(self._indices[i]))

    def times(self, i: int) -> np.ndarray | None:
        """Return the times of the video's frames, unchanged."""
        return self._videos.times(int(self._indices[i]))

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Return the frames with numbers ``indices``, uint8 (n, H, W, 3)."""
        return self._videos.frames(int(self._indices[i]), indices, size)
