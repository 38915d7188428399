"""Summaries and checks of shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_prep.contact_sheet import labelled_sheet
from data_prep.output_files import picture_file
from data_prep.worker_pool import usable_cores
from ssl_vivit.data.video.decoding import probe_video
from ssl_vivit.data.video.shards import STORAGES, ShardSet
from ssl_vivit.data.video.shards.build import list_members
from ssl_vivit.data.video.shards.index import ANNOTATION, is_video
from ssl_vivit.data.video.shards.store import read_at
from ssl_vivit.errors import DataError, DecodingError

_FRAMES_AT_ONCE = 128
_PICTURE = re.compile(r"(.+)\.([0-9]{1,18})\.jpg")


def verify(
    shards: str | Sequence[str],
    *,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Read every byte and decode every frame of every sample; compare the index with the tar.

    Args:
        shards: paths, patterns or URLs, see :class:`~ssl_vivit.data.video.shards.ShardSet`.
        cache_dir: cache folder for remote shards.
        workers: number of threads; None is one per usable core.
        progress: show a progress bar.

    Returns:
        The error of each sample that fails, by the sample's key.

    Raises:
        DataError: if a shard cannot be opened or is not a complete tar.
    """
    if workers is not None and workers < 1:
        raise DataError(f"--workers {workers} must be at least 1")
    videos = ShardSet(shards, cache_dir)
    tars = [_Tar(videos.local_path(number)) for number in range(len(videos.shards))]
    with ThreadPoolExecutor(workers or usable_cores()) as pool:
        found = pool.map(
            lambda i: (
                _undecodable(videos, i) or tars[videos.shard_of[i]].unlike_the_index(videos, i)
            ),
            range(len(videos)),
        )
        bar = tqdm(found, total=len(videos), desc="verify", unit="video", disable=not progress)
        return {videos.keys[i]: why for i, why in enumerate(bar) if why}


class _Tar:
    """The names of a tar's members by their byte offset and size, read from the tar's headers."""

    def __init__(self, path: str) -> None:
        self._path = path
        places, _ = list_members(Path(path))
        self._names: dict[tuple[int, int], str] = {place: name for name, place in places.items()}
        self._videos = {name.rpartition(".")[0] for name in places if is_video(name)}
        pictures = (_PICTURE.fullmatch(name) for name in places)
        self._pictures = Counter(parts[1] for parts in pictures if parts)

    def unlike_the_index(self, videos: ShardSet, i: int) -> str | None:
        """Return a message if the index entry of sample ``i`` differs from the tar, else None."""
        key, total = videos.keys[i], int(videos.num_frames[i])
        places = videos.places(i)
        frames = places[: len(places) - int(videos.has_annotation[i])]
        names = [self._names.get(place, "no member") for place in places]
        for number, name in enumerate(names):
            if number >= len(frames):
                fits = name.endswith(f".{ANNOTATION}")
            elif STORAGES[videos.storages[i]] == "jpeg":
                parts = _PICTURE.fullmatch(name)
                fits = parts is not None and parts[1] == key and int(parts[2]) == number
            else:
                # Earlier versions cut keys at the first dot of the name.
                shorter = key not in self._videos and name.startswith(f"{key}.")
                fits = shorter or name.rpartition(".")[0] == key
            if not fits:
                return f"the index entry points to {name}"
        if STORAGES[videos.storages[i]] == "jpeg":
            there = self._pictures[key]
        else:
            ((offset, size),) = frames
            with open(self._path, "rb") as file:
                try:
                    there = probe_video(read_at(file.fileno(), size, offset)).num_frames
                except DecodingError as error:
                    return str(error)
        if there == total:
            return None
        return f"the tar has {there} frames of the sample, but the index entry says {total}"


def _undecodable(videos: ShardSet, i: int) -> str | None:
    total = int(videos.num_frames[i])
    expected = (int(videos.heights[i]), int(videos.widths[i]), 3)
    try:
        videos.annotation(i)
        for start in range(0, total, _FRAMES_AT_ONCE):
            frames = videos.frames(i, range(start, min(total, start + _FRAMES_AT_ONCE)))
            if frames.shape[1:] != expected:
                return (
                    f"the frames have {frames.shape[1]}×{frames.shape[2]} pixels, but the index "
                    f"entry says {expected[0]}×{expected[1]}"
                )
    except DecodingError as error:
        return str(error)
    return None


def info(shards: str | Sequence[str], *, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """Summarise a set of shards from their indexes.

    Returns:
        A dictionary. ``shards``, ``samples`` and ``annotated`` are counts, ``megabytes`` and
        ``hours`` of video are totals; ``storage``, ``size`` (HxW), ``frames`` and ``fps`` map each
        value to its number of samples.

    Raises:
        DataError: if a shard cannot be opened.
    """
    videos = ShardSet(shards, cache_dir)
    rates = np.where(videos.fps > 0, videos.fps, np.inf)
    sizes = zip(videos.heights.tolist(), videos.widths.tolist(), strict=True)
    return {
        "shards": len(videos.shards),
        "samples": len(videos),
        "annotated": int(videos.has_annotation.sum()),
        "megabytes": round(sum(map(videos.stored_bytes, range(len(videos)))) / 1e6, 3),
        "hours": round(float((videos.num_frames / rates).sum()) / 3600, 3),
        "storage": dict(Counter(STORAGES[s] for s in videos.storages)),
        "size": dict(Counter(f"{height}x{width}" for height, width in sizes)),
        "frames": dict(Counter(videos.num_frames.tolist())),
        "fps": dict(Counter(round(rate, 3) for rate in videos.fps.tolist())),
    }


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation of the pixels of some frames.

    Attributes:
        mean: means of R, G and B, for pixels scaled to [0, 1].
        std: standard deviations of R, G and B.
        videos: number of videos that were read.
        frames: number of frames that were read.
    """

    mean: list[float]
    std: list[float]
    videos: int
    frames: int


def channel_statistics(
    shards: str | Sequence[str],
    *,
    cache_dir: str | Path | None = None,
    videos: int = 32,
    frames: int = 4,
) -> ChannelStatistics:
    """Compute mean and standard deviation of each channel from evenly spaced videos and frames.

    All frames have equal weight, whatever their size.

    Args:
        shards: paths, patterns or URLs, see :class:`~ssl_vivit.data.video.shards.ShardSet`.
        cache_dir: cache folder for remote shards.
        videos: largest number of videos to read.
        frames: largest number of frames to read from each video.

    Raises:
        DataError: if a shard cannot be opened.
        DecodingError: if a chosen video is broken.
    """
    source = ShardSet(shards, cache_dir)
    chosen = _evenly_spaced(len(source), videos)
    moments = []
    for i in chosen:
        for frame in source.frames(i, _evenly_spaced(int(source.num_frames[i]), frames)):
            pixels = frame.reshape(-1, 3) / 255
            moments.append((pixels.mean(0), np.square(pixels).mean(0)))
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return ChannelStatistics(mean.tolist(), std.tolist(), len(chosen), len(moments))


def _evenly_spaced(count: int, number: int) -> list[int]:
    """Return at most ``number`` different indices from 0 to ``count`` − 1."""
    return np.unique(np.linspace(0, count - 1, number).round().astype(int)).tolist()


def contact_sheet(
    shards: str | Sequence[str],
    path: str | Path,
    *,
    cache_dir: str | Path | None = None,
    videos: int = 6,
    frames: int = 6,
) -> None:
    """Save a picture of evenly spaced videos (rows) and frames (columns).

    Args:
        shards: paths, patterns or URLs, see :class:`~ssl_vivit.data.video.shards.ShardSet`.
        path: PNG file to write.
        cache_dir: cache folder for remote shards.
        videos: number of rows.
        frames: number of columns.

    Raises:
        DataError: if the picture cannot be written.
        DecodingError: if a chosen video is broken.
    """
    source = ShardSet(shards, cache_dir)
    rows = _evenly_spaced(len(source), videos)
    # All videos are resized to the shape of the first one, at most 240 pixels wide.
    width = min(240, int(source.widths[rows[0]]))
    size = (max(1, round(width * source.heights[rows[0]] / source.widths[rows[0]])), width)
    numbers = {
        i: np.linspace(0, source.num_frames[i] - 1, frames).astype(int).tolist() for i in rows
    }
    picture = labelled_sheet(
        [(source.keys[i], chosen, source.frames(i, chosen, size)) for i, chosen in numbers.items()]
    )
    with picture_file("--contact-sheet", path) as part:
        picture.save(part, format="PNG")
