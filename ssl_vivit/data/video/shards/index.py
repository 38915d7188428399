"""The index beside each shard: what samples a tar holds, and where.

``NAME.tar`` is a webdataset shard; ``NAME.json`` is ::

    {"format": "ssl_vivit.shard_index", "version": 1, "bytes": SIZE OF THE TAR,
     "samples": [{"key", "num_frames", "height", "width", "fps", "storage",
                  "times": [seconds at which each frame begins], where the rate varies
                  "members": {extension: [offset, size, crc32]}}],
     "left_out": {name: reason}}

A sample is either one video file (storage ``original`` or ``h264``), or its frames as
``KEY.0000.jpg`` … (storage ``jpeg``) with their measures in ``KEY.video.json``. ``KEY.json`` is the
annotation, where there is one.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

from ssl_vivit.data.video.decoding import probe_video
from ssl_vivit.data.video.frame_times import check_times
from ssl_vivit.errors import DataError, DecodingError
from ssl_vivit.files import write_text

FORMAT = "ssl_vivit.shard_index"
VERSION = 1
ANNOTATION = "json"
MEASURES = "video.json"
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
# webdataset's own pattern; importing it would load torch.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


def index_path(shard: str) -> str:
    """Path or address of a shard's index."""
    return shard.removesuffix(".tar") + ".json"


def is_video(extension: str) -> bool:
    """Whether a member with this extension is a sample's video file."""
    return extension.rpartition(".")[2].lower() in VIDEO_EXTENSIONS


def build_index(tar: Path, storage: str = "original") -> dict[str, Any]:
    """Read a tar of videos, or of JPEG frames with measures, and say what is where.

    Args:
        tar: uncompressed; the files of a sample stand together, as webdataset asks.
        storage: of the video files in it.

    Returns:
        The index. ``left_out`` maps keys that hold no readable video to the reason.

    Raises:
        DataError: if the file is no whole tar or holds no video.
    """
    samples: list[dict[str, Any]] = []
    left_out = {}
    for key, members, video in _read_samples(tar):
        try:
            samples.append({"key": key, **_measures(members, video, storage), "members": members})
        except (DecodingError, KeyError, TypeError, ValueError) as error:
            left_out[key] = str(error)
    if not samples:
        reason = f": {next(iter(left_out.values()))}" if left_out else ""
        raise DataError(f"{tar} holds no readable video{reason}")
    return {
        "format": FORMAT,
        "version": VERSION,
        "bytes": tar.stat().st_size,
        "samples": samples,
        "left_out": left_out,
    }


def save_index(index: dict[str, Any], target: Path) -> None:
    """Write an index, whole or not at all."""
    write_text(target, json.dumps(index, separators=(",", ":")))


def parse_index(text: bytes, name: str) -> dict[str, Any]:
    """Check an index's format.

    Args:
        text: the JSON.
        name: its path or address, for messages.

    Raises:
        DataError: if it is no index of a known version.
    """
    try:
        index = json.loads(text)
        found, version = index["format"], index["version"]
    except (ValueError, KeyError, TypeError):
        found, version = None, None
    if found != FORMAT:
        raise DataError(f"{name} is no shard index; {remake(name)}")
    if version != VERSION:
        raise DataError(
            f"{name} has version {version}, this release reads {VERSION}; {remake(name)}"
        )
    return index


def remake(name: str) -> str:
    """Instruction, in a line, to make an index anew."""
    shard = name.removesuffix(".json").removesuffix(".tar") + ".tar"
    if "://" in shard:
        local = shard.rpartition("/")[2]
        return f"make it from a copy and upload it: python -m data_prep.clevrer index '{local}'"
    return f"make it with: python -m data_prep.clevrer index '{shard}'"


def _read_samples(shard: Path) -> Any:
    """Yield (key, members, bytes that hold the measures), sample by sample."""
    key: str | None = None
    members: dict[str, list[int]] = {}
    video = b""
    try:
        # "r:" takes plain tars only: a compressed one cannot be read at an offset.
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                parts = _KEY_AND_EXTENSION.fullmatch(entry.name)
                if not entry.isfile() or parts is None:
                    continue
                prefix, extension = parts.groups()
                if prefix != key:
                    if key is not None:
                        yield key, members, video
                    key, members, video = prefix, {}, b""
                file = tar.extractfile(entry)
                content = file.read() if file else b""
                if len(content) != entry.size:
                    raise tarfile.ReadError(f"{entry.name} is cut off")
                members[extension] = [entry.offset_data, entry.size, zlib.crc32(content)]
                if extension == MEASURES or (is_video(extension) and not video):
                    video = content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{shard} is no whole, uncompressed tar: {error}") from error
    if key is not None:
        yield key, members, video


def _measures(members: dict[str, list[int]], video: bytes, storage: str) -> dict[str, Any]:
    if MEASURES in members:
        facts = json.loads(video)
        names = ("num_frames", "height", "width", "fps", "storage")
        measures = {name: facts[name] for name in names}
        if "times" in facts:
            measures["times"] = check_times(facts["times"], facts["num_frames"]).tolist()
        return measures
    if not any(map(is_video, members)):
        raise ValueError("holds no video file")
    measures = {**probe_video(video)._asdict(), "storage": storage}
    return {name: value for name, value in measures.items() if value is not None}
