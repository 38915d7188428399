"""Random access to the samples of indexed webdataset shards.

- At the start only the index files are read. Each sample needs one read at its offset.
- In JPEG samples only the wanted frames are read. Neighbouring frames are read together.
- Reads do not use a shared file position, so they are safe in forked and spawned workers.
- All bytes are checked against the CRC in the index.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vivit.data.downloading import STALL_TIMEOUT
from ssl_vivit.data.video.decoding import Decoder, decode_frames, decode_jpegs
from ssl_vivit.data.video.frame_times import check_times
from ssl_vivit.data.video.shards.index import (
    ANNOTATION,
    STORAGES,
    frame_members,
    index_path,
    parse_index,
    remake,
)
from ssl_vivit.data.video.shards.store import (
    Look,
    RemoteShard,
    cut_off,
    default_cache_dir,
    find_shards,
    is_remote,
    read_at,
    read_remote,
)
from ssl_vivit.errors import DataError, DecodingError
from ssl_vivit.nested_text import read_json_text

# Largest gap in bytes between two members that are read together, since one read is cheaper.
_GAP = 1 << 16
_OPEN_SHARDS = 64


class ShardSet:
    """All samples of a set of shards, numbered in the order of the shards.

    Args:
        shards: paths, directories, globs, brace patterns or fsspec addresses.
        cache_dir: directory for copies of remote shards. None means ``~/.cache/ssl_vivit/shards``.
        decoder: decoder of video files; see :func:`~ssl_vivit.data.video.decoding.decode_frames`.
        stall_timeout: seconds without data after which a connection to a remote shard fails.

    Attributes:
        shards: paths or addresses of the shards.
        keys: names of the samples, unique over all shards.
        shard_of: int array (len,), index of each sample's shard in ``shards``.
        num_frames: int array (len,), number of frames of each sample.
        heights: int array (len,), in pixels.
        widths: int array (len,), in pixels.
        fps: float array (len,), stored frames per second; the mean if the rate varies.
        storages: int array (len,), index of each sample's storage in ``STORAGES``.
        has_annotation: bool array (len,), whether a sample has an annotation.

    Raises:
        DataError: if no shard matches, a shard is empty, truncated or has no index, an index is
            invalid or does not fit its tar, or a key occurs twice.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        cache_dir: str | Path | None = None,
        decoder: Decoder = "auto",
        stall_timeout: float = STALL_TIMEOUT,
    ) -> None:
        if not 0 < stall_timeout < math.inf:
            raise DataError(
                f"--data.stall_timeout is {stall_timeout}; it must be above 0 (seconds)"
            )
        self._stall_timeout = stall_timeout
        self.shards = find_shards(shards)
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self._decoder: Decoder = decoder
        self._open = functools.lru_cache(_OPEN_SHARDS)(_OpenShard)
        # A remote shard is downloaded when one of its samples is first read.
        self._remote: dict[int, RemoteShard] = {}
        self.keys: list[str] = []
        self._sources: list[str | None] = []
        columns: list[dict[str, np.ndarray]] = []
        self._times: dict[int, np.ndarray] = {}
        for number, shard in enumerate(self.shards):
            samples = self._load_index(number, shard)
            self._times |= {
                number: check_times(sample["times"], sample["num_frames"])
                for number, sample in enumerate(samples, len(self.keys))
                if "times" in sample
            }
            self.keys += [sample["key"] for sample in samples]
            self._sources += [sample.get("source") for sample in samples]
            columns.append(_columns(samples, number))
        joined = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
        self.shard_of: np.ndarray = joined["shard_of"]
        self.num_frames: np.ndarray = joined["num_frames"]
        self.heights: np.ndarray = joined["heights"]
        self.widths: np.ndarray = joined["widths"]
        self.fps: np.ndarray = joined["fps"]
        self.storages: np.ndarray = joined["storages"]
        self.has_annotation: np.ndarray = joined["has_annotation"]
        # Members of sample i, in this order: frames (or the video), then the annotation.
        self._offsets, self._sizes, self._crcs = (joined[n] for n in ("offsets", "sizes", "crcs"))
        self._first = np.concatenate([[0], np.cumsum(joined["member_counts"])])
        self._refuse_double_keys()

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=functools.lru_cache(_OPEN_SHARDS)(_OpenShard))

    @property
    def annotation_crcs(self) -> np.ndarray:
        """CRC-32 of each sample's annotation, uint32 (len,); 0 for samples without annotation."""
        return np.where(self.has_annotation, self._crcs[self._first[1:] - 1], np.uint32(0))

    def digest(self) -> str:
        """Return a SHA-256 digest of samples' names and contents, independent of the shards' paths.

        Contents are included by the sizes and checksums in the index; no sample is read.
        """
        total = hashlib.sha256(json.dumps(self.keys).encode())
        for column, kind in (
            (self.num_frames, "<i8"),
            (self.fps, "<f8"),
            (self._first, "<i8"),
            (self._sizes, "<i8"),
            (self._crcs, "<u4"),
        ):
            total.update(np.ascontiguousarray(column.astype(kind)).data)
        return total.hexdigest()

    def annotation(self, i: int) -> dict[str, Any] | None:
        """Return a sample's annotation as stored; None if it has none.

        Raises:
            DecodingError: if its bytes are damaged.
        """
        if not self.has_annotation[i]:
            return None
        try:
            return read_json_text(self._read(i, [int(self._first[i + 1]) - 1])[0])
        except (DecodingError, ValueError, RecursionError) as error:
            raise DecodingError(f"{self._name(i)}: annotation: {error}") from error

    def times(self, i: int) -> np.ndarray | None:
        """Seconds at which each frame begins, float (num_frames,); None at a constant rate."""
        return self._times.get(i)

    def frames(
        self, i: int, indices: Sequence[int], size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Decode frames of a sample.

        Args:
            i: sample number.
            indices: frame numbers in presentation order; any order, repeats allowed.
            size: (H, W) to resize to; None keeps the stored size.

        Returns:
            uint8 RGB of shape (len(indices), H, W, 3).

        Raises:
            DecodingError: if a frame is missing or its bytes are damaged; the message names the
                sample.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        total = int(self.num_frames[i])
        try:
            if wanted.size and not (wanted.min() >= 0 and wanted.max() < total):
                odd = wanted[(wanted < 0) | (wanted >= total)][0]
                raise DecodingError(f"frame {odd} of {total} is missing")
            start = int(self._first[i])
            if STORAGES[self.storages[i]] != "jpeg":
                (video,) = self._read(i, [start])
                return decode_frames(video, wanted.tolist(), size, decoder=self._decoder)
            stored = (int(self.heights[i]), int(self.widths[i]))
            if not wanted.size:
                return np.empty((0, *(size or stored), 3), np.uint8)
            distinct, place = np.unique(wanted, return_inverse=True)
            frames = decode_jpegs(self._read(i, (start + distinct).tolist()), size)[place]
            if size is None and (found := frames.shape[1:3]) != stored:
                raise DecodingError(
                    f"the frames have {found[0]}×{found[1]} pixels, but the index says "
                    f"{stored[0]}×{stored[1]}"
                )
            return frames
        except DecodingError as error:
            raise DecodingError(f"{self._name(i)}: {error}") from error

    def source(self, i: int) -> str | None:
        """Return the hash of a sample's original file; None in shards of earlier versions."""
        return self._sources[i]

    def local_path(self, number: int) -> str:
        """Return the local path of shard ``number``; a remote shard is downloaded to the cache.

        Raises:
            DataError: if the shard cannot be downloaded.
        """
        return self._local_path(number)

    def places(self, i: int) -> list[tuple[int, int]]:
        """Return (offset, size) in bytes of each file of sample ``i`` in its tar.

        The files are the pictures or the video, followed by the annotation if there is one.
        """
        members = slice(self._first[i], self._first[i + 1])
        return list(
            zip(self._offsets[members].tolist(), self._sizes[members].tolist(), strict=True)
        )

    def stored_bytes(self, i: int) -> int:
        """Return the total size in bytes of a sample's members."""
        return int(self._sizes[self._first[i] : self._first[i + 1]].sum())

    def _name(self, i: int) -> str:
        return f"{self.keys[i]} in {self.shards[self.shard_of[i]]}"

    def _load_index(self, number: int, shard: str) -> list[dict[str, Any]]:
        name = index_path(shard)
        text: bytes | None
        if is_remote(shard):
            text = read_remote(name, self._stall_timeout)
        else:
            if os.path.getsize(shard) == 0:
                raise DataError(f"{shard} is empty; remove it or pack it again")
            text = Path(name).read_bytes() if os.path.exists(name) else None
        if text is None:
            raise DataError(f"{shard} has no index beside it; {remake(shard)}")
        index = parse_index(text, name)
        if not index["samples"]:
            raise DataError(f"{shard} contains no samples; remove it or pack it again")
        if is_remote(shard):
            self._remote[number] = RemoteShard.beside_index(
                shard, index["bytes"], text, self._cache_dir, self._stall_timeout
            )
        elif (found := os.path.getsize(shard)) != index["bytes"]:
            raise DataError(cut_off(shard, found, index["bytes"]))
        return index["samples"]

    def _refuse_double_keys(self) -> None:
        seen: dict[str, int] = {}
        for i, key in enumerate(self.keys):
            if key in seen:
                first, second = (self.shards[self.shard_of[k]] for k in (seen[key], i))
                raise DataError(
                    f"the sample {key} is in {first} and again in {second}; keys must be unique: "
                    "remove one of the shards, or pack the videos under other names"
                )
            seen[key] = i

    def _local_path(self, number: int, *, renew: bool = False) -> str:
        if number not in self._remote:
            return self.shards[number]
        return str(
            self._remote[number].local(functools.partial(self._damaged, number), renew=renew)
        )

    def _damaged(self, number: int, path: Path, look: Look) -> str | None:
        """Return the key of the first damaged sample in a shard; None if no sample is damaged.

        A sample is damaged if its bytes differ from the checksums in the index.

        Args:
            number: index of the shard.
            path: copy of the shard.
            look: function that is called before each sample. It may raise to stop.
        """
        opened = _OpenShard(str(path))
        for i in np.flatnonzero(self.shard_of == number):
            look()
            try:
                self._read_from(opened, range(self._first[i], self._first[i + 1]))
            except DecodingError:
                return self.keys[i]
        return None

    def _read(self, i: int, members: Sequence[int]) -> list[bytes]:
        """Read files of sample ``i`` and check their CRC.

        ``members`` are indices of the files over all samples of the set, in ascending order. If the
        local copy of a remote shard is damaged, the shard is downloaded once more.
        """
        number = int(self.shard_of[i])
        try:
            return self._read_from(self._open(self._local_path(number)), members)
        except DecodingError:
            if number not in self._remote:
                raise
        self._open.cache_clear()
        return self._read_from(self._open(self._local_path(number, renew=True)), members)

    def _read_from(self, opened: _OpenShard, members: Sequence[int]) -> list[bytes]:
        runs: list[list[int]] = []
        for member in members:
            if runs:
                last = runs[-1][-1]
                gap = self._offsets[member] - self._offsets[last] - self._sizes[last]
                if 0 <= gap <= _GAP:
                    runs[-1].append(member)
                    continue
            runs.append([member])
        contents = []
        for run in runs:
            start = int(self._offsets[run[0]])
            stop = int(self._offsets[run[-1]] + self._sizes[run[-1]])
            try:
                span = memoryview(read_at(opened.handle, stop - start, start))
            except OSError as error:
                raise DecodingError(f"cannot be read: {error.strerror}") from error
            for member in run:
                at = int(self._offsets[member]) - start
                content = bytes(span[at : at + int(self._sizes[member])])
                if zlib.crc32(content) != self._crcs[member]:
                    raise DecodingError(
                        "the bytes differ from the index's CRC; pack the shard again"
                    )
                contents.append(content)
        return contents


class _OpenShard:
    """File descriptor of a shard; it is closed when no reader refers to this object any more."""

    def __init__(self, path: str) -> None:
        self.handle = -1
        try:
            self.handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    def __del__(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


def _columns(samples: list[dict[str, Any]], shard: int) -> dict[str, np.ndarray]:
    members = []
    for sample in samples:
        entries = sample["members"]
        members.append([entries[name] for name in frame_members(sample)])
        if ANNOTATION in entries:
            members[-1].append(entries[ANNOTATION])
    flat = [member for entries in members for member in entries]
    return {
        "shard_of": np.full(len(samples), shard, np.int32),
        "num_frames": np.array([s["num_frames"] for s in samples], np.int64),
        "heights": np.array([s["height"] for s in samples], np.int64),
        "widths": np.array([s["width"] for s in samples], np.int64),
        "fps": np.array([s["fps"] for s in samples], np.float64),
        "storages": np.array([STORAGES.index(s["storage"]) for s in samples], np.int8),
        "has_annotation": np.array([ANNOTATION in s["members"] for s in samples], bool),
        "member_counts": np.array([len(entries) for entries in members], np.int64),
        "offsets": np.array([m[0] for m in flat], np.int64),
        "sizes": np.array([m[1] for m in flat], np.int64),
        "crcs": np.array([m[2] for m in flat], np.uint32),
    }
