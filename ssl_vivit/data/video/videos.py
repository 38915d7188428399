"""Sets of videos: opened, chosen from, made of one size, refused where many are broken."""

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
    """A set of videos: a ShardSet, a VideoFolder, or one of the classes below.

    Attributes:
        keys: names, each once.
        num_frames, heights, widths: int arrays (len,).
        fps: float array (len,), 0 or NaN where unknown, the mean where it varies.
        has_annotation: bool array (len,).
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
        """Seconds at which each frame begins, float (num_frames,); None at a constant rate."""

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class VideoReading:
    """Settings of reading videos, shared by training, probes and features.

    Args:
        cache_dir: where remote shards are kept; null is ~/.cache/ssl_vivit/shards.
        stall_timeout: seconds without a byte after which a connection to a remote shard has failed.
            Four failures in a row end the run.
        decoder: "pyav", "torchcodec", or "auto": the latter if it loads.
        frame_size: height and width that frames are decoded to; null keeps theirs. Needed where
            videos have several sizes.
        workers: processes that decode; null takes the cores that are free, 8 at most.
        short_videos: "skip" leaves out videos that are too short for the clips, "pad" repeats
            their last frame, "refuse" ends the run.
    """

    cache_dir: str | None = None
    stall_timeout: float = STALL_TIMEOUT
    decoder: Decoder = "auto"
    frame_size: tuple[int, int] | None = None
    workers: int | None = None
    short_videos: ShortVideos = "skip"

    def open_shards(self, shards: str | list[str]) -> ShardSet:
        """Open shards, as :class:`~ssl_vivit.data.video.shards.ShardSet` takes them."""
        return ShardSet(shards, self.cache_dir, self.decoder, self.stall_timeout)

    def open_folder(self, root: str, option: str) -> VideoFolder:
        """Open a folder of videos; ``option`` is the setting that names it, for messages."""
        return VideoFolder(root, decoder=self.decoder, option=option)


class CentralWindows:
    """Videos of several sizes, each resized and cut to the central window of one size.

    Args:
        videos: a ShardSet or a VideoFolder.
        size: (H, W) of the window; a video's shorter side, as the window sees it, fills it.
    """

    def __init__(self, videos: Videos, size: tuple[int, int]) -> None:
        self._videos, self.size = videos, size
        self.keys, self.num_frames, self.fps = videos.keys, videos.num_frames, videos.fps
        self.has_annotation = videos.has_annotation
        self.heights, self.widths = (np.full(len(videos), side, np.int64) for side in size)

    def __len__(self) -> int:
        return len(self._videos)

    def annotation(self, i: int) -> dict | None:
        """The annotation of the video, unchanged."""
        return self._videos.annotation(i)

    def times(self, i: int) -> np.ndarray | None:
        """The times of the video's frames, unchanged."""
        return self._videos.times(i)

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Frames of the window's size, uint8 (n, H, W, 3)."""
        height, width = size or self.size
        own = int(self._videos.heights[i]), int(self._videos.widths[i])
        scale = max(height / own[0], width / own[1])
        # Rounding must not make a side shorter than the window.
        whole = max(height, math.ceil(own[0] * scale)), max(width, math.ceil(own[1] * scale))
        pixels = self._videos.frames(i, indices, whole)
        top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
        return np.ascontiguousarray(pixels[:, top : top + height, left : left + width])


def of_one_size(videos: Videos, size: tuple[int, int]) -> Videos:
    """The videos themselves where they are of one size, else their central windows."""
    sizes = {*zip(videos.heights.tolist(), videos.widths.tolist(), strict=True)}
    return videos if len(sizes) <= 1 else CentralWindows(videos, size)


class Chosen:
    """Some of a set's videos, numbered anew.

    Args:
        videos: the set.
        indices: which of them.
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
        """The annotation of the video, unchanged."""
        return self._videos.annotation(int(self._indices[i]))

    def times(self, i: int) -> np.ndarray | None:
        """The times of the video's frames, unchanged."""
        return self._videos.times(int(self._indices[i]))

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Frames of the video, unchanged."""
        return self._videos.frames(int(self._indices[i]), indices, size)
