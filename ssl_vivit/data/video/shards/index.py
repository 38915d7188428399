"""The index of a shard, which lists the samples of a tar and their offsets.

``NAME.tar`` is a webdataset shard, and ``NAME.json`` beside it is its index::

    {"format": "ssl_vivit.shard_index", "version": 1, "bytes": SIZE OF THE TAR,
     "samples": [{"key", "num_frames", "height", "width", "fps", "storage",
                  "times": [seconds at which each frame begins], only if the rate varies
                  "members": {extension: [offset, size, crc32]}}],
     "left_out": {name: reason}}

A sample is either one video file (storage ``original`` or ``h264``), or its frames as
``KEY.0000.jpg`` … (storage ``jpeg``), with their number, size and rate in ``KEY.video.json``.
``KEY.json`` is the optional annotation. A sample may have further fields, such as ``source``, a
hash of the original video file.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vivit.data.video.frame_times import check_times
from ssl_vivit.errors import DataError
from ssl_vivit.files import write_text
from ssl_vivit.nested_text import read_json_text

FORMAT = "ssl_vivit.shard_index"
VERSION = 1
ANNOTATION = "json"
MEASURES = "video.json"
STORAGES = ("original", "h264", "jpeg")
LARGEST_SIDE = 65_535  # of a JPEG picture, in pixels
# fmt: off
VIDEO_EXTENSIONS = frozenset(
    (
        "264", "265", "3g2", "3gp", "3gpp", "apng", "asf", "avc", "avi", "divx", "dv", "f4v",
        "flv", "gif", "gxf", "h261", "h263", "h264", "h265", "hevc", "ivf", "m1v", "m2t", "m2ts",
        "m2v", "m4v", "mj2", "mjpeg", "mjpg", "mk3d", "mkv", "mov", "mp4", "mp4v", "mpe", "mpeg",
        "mpg", "mpv", "mts", "mxf", "nut", "obu", "ogm", "ogv", "qt", "rm", "rmvb", "tod", "ts",
        "vc1", "vob", "vvc", "webm", "wmv", "wtv", "xvid", "y4m",
    )
)
# fmt: on


def index_path(shard: str) -> str:
    """Return the path or address of a shard's index."""
    return shard.removesuffix(".tar") + ".json"


def is_video(extension: str) -> bool:
    """Return whether a member with this extension is the video file of a sample."""
    return extension.rpartition(".")[2].lower() in VIDEO_EXTENSIONS


def content_hash(content: bytes) -> str:
    """Return the first 64 bits of a file's SHA-256, as 16 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()[:16]


def save_index(index: dict[str, Any], target: Path) -> None:
    """Write an index atomically.

    Raises:
        DataError: if ``target`` exists and is not an index.
    """
    refuse_other_file(target)
    write_text(target, json.dumps(index, separators=(",", ":")))


def refuse_other_file(target: Path) -> None:
    """Refuse to overwrite a file that is not an index.

    Raises:
        DataError: if ``target`` exists and is not an index.
    """
    if target.exists() and not (target.is_file() and _is_index(_parsed(target.read_bytes()))):
        raise DataError(
            f"{target} is not a shard index and is not overwritten; move it elsewhere, since the "
            f"index of {target.with_suffix('.tar').name} must have this name"
        )


def parse_index(text: bytes, name: str) -> dict[str, Any]:
    """Read an index and check its fields.

    Args:
        text: the JSON text.
        name: path or address of the index, for messages.

    Raises:
        DataError: if it is not an index of a known version, or a field is invalid.
    """
    index = _parsed(text)
    if not _is_index(index):
        raise DataError(f"{name} is not a shard index; {remake(name)}")
    if index.get("version") != VERSION:
        raise DataError(
            f"{name} has version {index.get('version')}, but this release reads {VERSION}; "
            f"{remake(name)}"
        )
    try:
        _check(index)
    except ValueError as error:
        raise DataError(f"{name}: {error}; {remake(name)}") from None
    return index


def remake(name: str) -> str:
    """Return the end of a message: the command that builds the index of a shard again.

    Args:
        name: path or address of the shard or its index.
    """
    shard = name.removesuffix(".json").removesuffix(".tar") + ".tar"
    if "://" in shard:
        local = shard.rpartition("/")[2]
        return (
            "make the index from a local copy of the shard and upload it: python -m "
            f"data_prep.clevrer index '{local}'"
        )
    return f"make the index with: python -m data_prep.clevrer index '{shard}'"


def check_sample(sample: dict[str, Any]) -> None:
    """Check the fields of a sample, and its number of frames.

    Raises:
        ValueError: if a field is missing or invalid; the message does not name the sample.
    """
    for name, most in (("num_frames", math.inf), ("height", LARGEST_SIDE), ("width", LARGEST_SIDE)):
        value: Any = sample.get(name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {_shown(value)}, not a whole number from 1 to {most}")
    fps, storage, source = sample.get("fps"), sample.get("storage"), sample.get("source")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 <= fps < 1e18:
        raise ValueError(f"fps is {_shown(fps)}, not a number of 0 or more")
    if storage not in STORAGES:
        raise ValueError(f"storage is {_shown(storage)}, not one of {', '.join(STORAGES)}")
    if source is not None and not isinstance(source, str):
        raise ValueError(f"source is {_shown(source)}, not a string")
    if "times" in sample:
        check_times(sample["times"], sample["num_frames"])
    _places(sample)
    frame_members(sample)


def frame_members(sample: dict[str, Any]) -> list[str]:
    """Return the extensions of the members with a sample's frames: its video, or all its pictures.

    Pictures are ordered by their number, so ``9999.jpg`` comes before ``10000.jpg``.

    Raises:
        ValueError: if a sample does not have exactly one video, or its pictures are not numbered 0
            … num_frames − 1.
    """
    members, total = sample["members"], sample["num_frames"]
    if sample["storage"] != "jpeg":
        videos = list(filter(is_video, members))
        if not videos:
            raise ValueError("the sample contains no video file")
        if len(videos) > 1:  # earlier versions merged videos whose names contain dots
            raise ValueError(
                f"the sample contains {len(videos)} video files ({', '.join(videos[:3])}) instead "
                "of one"
            )
        (video,) = videos
        if total > members[video][1]:
            raise ValueError(
                f"num_frames is {total}, but the video has only {members[video][1]} bytes"
            )
        return [video]
    pictures = [name for name in members if name.endswith(".jpg")]
    if len(pictures) != total:
        raise ValueError(f"num_frames is {total}, but the sample contains {len(pictures)} frames")
    numbered = {int(name[:-4]): name for name in pictures if is_number(name[:-4])}
    if any(number not in numbered for number in range(total)):
        raise ValueError(f"the {total} frames are not numbered from 0 to {total - 1}")
    return [numbered[number] for number in range(total)]


def is_number(text: str) -> bool:
    """Return whether a text is a frame number, made of decimal digits."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def _parsed(text: bytes) -> Any:
    try:
        return read_json_text(text)
    except (ValueError, RecursionError):
        return None


def _is_index(index: Any) -> bool:
    return isinstance(index, dict) and index.get("format") == FORMAT


def _check(index: dict[str, Any]) -> None:
    size, samples = index.get("bytes"), index.get("samples")
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError(f"bytes is {_shown(size)}, not the size of a tar in bytes")
    if not isinstance(samples, list) or not all(isinstance(each, dict) for each in samples):
        raise ValueError("samples is not a list of samples")
    if not isinstance(index.get("left_out", {}), dict):
        raise ValueError("left_out is not a mapping of names to reasons")
    keys = [sample.get("key") for sample in samples]
    for number, key in enumerate(keys):
        if not isinstance(key, str) or not key:
            raise ValueError(f"the key of sample {number} is {_shown(key)}, not a name")
    for key, sample in zip(keys, samples, strict=True):
        try:
            check_sample(sample)
        except ValueError as error:
            raise ValueError(f"sample {key}: {error}") from None
    if samples:
        _check_places(keys, [_places(sample) for sample in samples], size)


def _places(sample: dict[str, Any]) -> np.ndarray:
    """Return (offset, size, CRC) of a sample's members, int64 (members, 3)."""
    try:
        places = np.array(list(sample["members"].values()))
    except (KeyError, AttributeError, ValueError, OverflowError):
        places = np.empty(0)
    if places.ndim != 2 or places.shape[1] != 3 or places.dtype != np.int64:
        raise ValueError("members is not a mapping of names to [offset, size, CRC]")
    if places.min() < 0 or places[:, 2].max() >= 1 << 32:
        raise ValueError("members contains an offset, size or CRC out of range")
    return places


def _check_places(keys: list[str], places: list[np.ndarray], size: int) -> None:
    """Check that all members lie in the tar and do not overlap."""
    start, length, _ = np.concatenate(places).T
    owner = np.repeat(np.arange(len(keys)), [len(each) for each in places])
    outside = np.flatnonzero((start > size) | (length > size - start))
    if outside.size:
        raise ValueError(
            f"sample {keys[owner[outside[0]]]}: a member lies beyond the {size:,} bytes of the tar"
        )
    order = np.argsort(start, kind="stable")
    overlaps = np.flatnonzero((start + length)[order][:-1] > start[order][1:])
    if overlaps.size:
        both = dict.fromkeys(keys[owner[order[at]]] for at in (overlaps[0], overlaps[0] + 1))
        raise ValueError(f"members of {' and '.join(both)} overlap")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
