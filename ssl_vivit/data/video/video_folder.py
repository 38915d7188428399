"""Set of videos that are read directly from a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssl_vivit.data.video.decoding import Decoder, VideoInfo, decode_frames, probe_video
from ssl_vivit.data.video.files_below import endings, files_below, passed_over_line
from ssl_vivit.data.video.shards.index import content_hash, is_video
from ssl_vivit.errors import DataError, DecodingError


class VideoFolder:
    """All videos below a folder, with the attributes and methods of a ShardSet.

    Each video is opened once and its first frame is decoded. Videos for which this fails are left
    out.

    Args:
        root: the folder. It is searched at any depth, including linked folders. Hidden files and
            folders are skipped.
        decoder: see :func:`~ssl_vivit.data.video.decoding.decode_frames`.
        option: the setting that names the folder, for messages.

    Attributes:
        keys: paths below the root with forward slashes, sorted.
        num_frames: int array (len,) of numbers of frames.
        heights: int array (len,), in pixels.
        widths: int array (len,), in pixels.
        fps: float array (len,) of frame rates.
        has_annotation: bool array (len,), all False.
        broken: dictionary of reasons by name of the video, for videos that were left out.
        passed_over: dictionary from an ending, or a kind such as ``hidden``, to the number of
            skipped files.

    Raises:
        DataError: if the folder does not exist, or contains no readable video.
    """

    def __init__(
        self, root: str | Path, *, decoder: Decoder = "auto", option: str = "--videos"
    ) -> None:
        self.root, self._decoder = Path(root), decoder
        if not self.root.is_dir():
            raise DataError(f"{option} {root} is not a folder; give a folder that contains videos")
        files, self.passed_over = files_below(self.root)
        names = sorted(filter(is_video, files))
        self.passed_over += endings(files.keys() - set(names))
        if not names:
            passed = passed_over_line(self.passed_over)
            raise DataError(f"{option} {root} contains no videos{f'; {passed}' if passed else ''}")
        infos, self.broken = self._probe(names)
        if not infos:
            first = next(iter(self.broken.items()))
            raise DataError(
                f"none of the {len(names)} videos in {option} {root} is readable; the first, "
                f"{first[0]}: {first[1]}"
            )
        self.keys = list(infos)
        columns = list(zip(*infos.values(), strict=True))
        self.num_frames, self.heights, self.widths = (
            np.array(column, dtype=np.int64) for column in columns[:3]
        )
        self.fps = np.array(columns[3], dtype=np.float64)
        self._times = columns[4]
        self.has_annotation = np.zeros(len(self.keys), dtype=bool)

    def __len__(self) -> int:
        return len(self.keys)

    def annotation(self, i: int) -> dict[str, Any] | None:
        """Return None, since a folder has no annotations."""
        return None

    def source(self, i: int) -> str:
        """Return the hash of a video's file, equal to the hash in shards that are made from it."""
        return content_hash((self.root / self.keys[i]).read_bytes())

    def times(self, i: int) -> np.ndarray | None:
        """Return the times in seconds at which frames begin; None if the rate is constant."""
        return None if self._times[i] is None else np.array(self._times[i])

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Decode frames of a video; see :func:`~ssl_vivit.data.video.decoding.decode_frames`."""
        return decode_frames(self.root / self.keys[i], indices, size, decoder=self._decoder)

    def _probe(self, names: list[str]) -> tuple[dict[str, VideoInfo], dict[str, str]]:
        def look(name: str) -> VideoInfo | str:
            try:
                return probe_video(self.root / name)
            except DecodingError as error:
                return str(error)

        # Threads help, since reading waits for the disk and FFmpeg releases Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(
                tqdm(pool.map(look, names), total=len(names), desc="opening videos",
                     unit="video", leave=False, dynamic_ncols=True)
            )  # fmt: skip
        pairs = list(zip(names, found, strict=True))
        infos = {name: info for name, info in pairs if isinstance(info, VideoInfo)}
        broken = {name: reason for name, reason in pairs if isinstance(reason, str)}
        return infos, broken
