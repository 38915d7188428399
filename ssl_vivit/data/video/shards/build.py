"""Build the index of a tar of videos, which this project or another program made.

Samples are found by the names of the tar's members, in any order:

- ``NAME.mp4`` (or another video ending) is a video with the key NAME, which may contain dots;
- ``KEY.video.json`` with ``KEY.0000.jpg`` … is a video whose frames are stored as pictures;
- ``KEY.json`` is the annotation of a video with the key KEY. If it is missing, ``SHORT.json`` is
  used, where SHORT is the key that webdataset gives to the video: the part before the first dot of
  the file name. ``SHORT.json`` is used only if no other video has this short key.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ssl_vivit.data.video.decoding import decode_jpegs, probe_video
from ssl_vivit.data.video.shards.index import (
    ANNOTATION,
    FORMAT,
    MEASURES,
    VERSION,
    check_sample,
    content_hash,
    frame_members,
    is_number,
    is_video,
)
from ssl_vivit.data.video.shards.store import read_at
from ssl_vivit.errors import DataError, DecodingError
from ssl_vivit.nested_text import read_json_text

_NAME_AND_ENDING = re.compile(r"((?:.*/)?[^/]+)\.([^./]+)")
_WEBDATASET_KEY = re.compile(r"((?:.*/)?[^./]+)\.[^/]*")


class Place(NamedTuple):
    """Offset and size of a member in a tar, in bytes."""

    offset: int
    size: int


class _Found(NamedTuple):
    key: str
    # Extension → name in the tar.
    members: dict[str, str]
    # Name of the member that identifies the sample in messages.
    name: str


def build_index(tar: Path, storage: str = "original") -> dict[str, Any]:
    """Read a tar of videos, or of JPEG frames with ``KEY.video.json``, and list its samples.

    Args:
        tar: the tar, which must be uncompressed.
        storage: storage of video files without a ``KEY.video.json``.

    Returns:
        The index, as a dictionary; see :mod:`ssl_vivit.data.video.shards.index`. Its key
        ``left_out`` maps the names of unused files of the tar to the reason. Files that belong to
        no sample are listed together by their ending, such as ``*.txt``.

    Raises:
        DataError: if the file is not a complete tar, or contains no readable video.
    """
    places, left_out = list_members(tar)
    samples: list[dict[str, Any]] = []
    read: set[str] = set()
    with open(tar, "rb") as file:
        for found in _find_samples(places, left_out):
            read.update([found.name, *found.members.values()])
            try:
                samples.append(_sample(file, found, places, storage))
            except (DecodingError, ValueError, RecursionError) as error:
                left_out[found.name] = str(error)
    read |= left_out.keys()
    left_out.update(_by_ending(name for name in places if name not in read))
    if not samples:
        reasons = [f": {name}: {why}" for name, why in left_out.items()]
        raise DataError(f"{tar} contains no readable video{''.join(reasons[:1])}")
    samples.sort(key=lambda sample: min(offset for offset, _, _ in sample["members"].values()))
    return {
        "format": FORMAT,
        "version": VERSION,
        "bytes": tar.stat().st_size,
        "samples": samples,
        "left_out": left_out,
    }


def list_members(tar: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """List the offsets and sizes of the files in a tar, from its headers.

    Args:
        tar: the tar, which must be uncompressed.

    Returns:
        A dictionary from the name of each file to its offset and size in bytes, and a dictionary
        from the names of members that cannot be read to the reason. If a name occurs more than
        once, the last member is used, as when the tar is unpacked.

    Raises:
        DataError: if the file is not a complete tar.
    """
    places: dict[str, Place] = {}
    left_out: dict[str, str] = {}
    size = tar.stat().st_size
    try:
        # "r:" accepts only uncompressed tars; a compressed one cannot be read at an offset.
        with tarfile.open(tar, "r:", errors="backslashreplace") as opened:
            for entry in opened:
                if entry.size < 0:
                    raise tarfile.ReadError(f"{entry.name} has a negative size")
                if entry.isdir():
                    continue
                if entry.issym() or entry.islnk():
                    left_out[entry.name] = (
                        f"is a link to {entry.linkname}; to store the file instead of the link, "
                        "call tar with --dereference --hard-dereference"
                    )
                elif entry.issparse() or not entry.isfile():
                    left_out[entry.name] = "is a sparse or special file"
                else:
                    if entry.offset_data + entry.size > size:
                        raise tarfile.ReadError(f"{entry.name} is truncated")
                    if entry.name in places:
                        left_out[entry.name] = "is in the tar more than once; the last copy is read"
                    places[entry.name] = Place(entry.offset_data, entry.size)
            end = opened.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{tar} is not a complete, uncompressed tar: {error}") from error
    if end >= size:
        left_out[tar.name] = "the tar has no end mark; it may be truncated after its last member"
    # tarfile stops without an error at a header that it cannot read.
    if (rest := _first_nonzero(tar, end)) is not None:
        raise DataError(
            f"{tar} is not a complete, uncompressed tar: the bytes after {end:,} are not a member "
            f"(first at byte {rest:,}); it is damaged, or tars were joined without tar -A"
        )
    return places, left_out


def _first_nonzero(tar: Path, start: int) -> int | None:
    """Return the position of the first nonzero byte from ``start`` on; None if there is none."""
    with open(tar, "rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            if ahead := len(block.lstrip(b"\0")):
                return start + len(block) - ahead
            start += len(block)
    return None


def _find_samples(places: dict[str, Place], left_out: dict[str, str]) -> Iterator[_Found]:
    """Yield the samples of a tar; add the reasons for skipped videos to ``left_out``."""
    frames: dict[str, dict[str, str]] = defaultdict(dict)
    videos = []
    for name in places:
        parts = _NAME_AND_ENDING.fullmatch(name)
        if parts is None:
            continue
        key, ending = parts.groups()
        if is_video(ending):
            videos.append((key, ending, name))
        elif ending == "jpg" and is_number(key.rpartition(".")[2]):
            key, _, number = key.rpartition(".")
            if f"{key}.{MEASURES}" in places:
                frames[key][f"{number}.{ending}"] = name
    keys = [*frames, *(key for key, _, _ in videos)]
    often = Counter(map(_webdataset_key, keys))
    taken: dict[str, str] = {}

    def found(key: str, members: dict[str, str], name: str) -> _Found:
        taken[key] = name
        if (measures := f"{key}.{MEASURES}") in places:
            members[MEASURES] = measures
        short = _webdataset_key(key)
        for annotated in [key, short] if often[short] == 1 else [key]:
            if (annotation := f"{annotated}.{ANNOTATION}") in places:
                members[ANNOTATION] = annotation
                break
        return _Found(key, members, name)

    for key, pictures in frames.items():
        yield found(key, pictures, f"{key}.{MEASURES}")
    for key, ending, name in videos:
        if key in taken:
            left_out[name] = f"{taken[key]} has the same key and is used instead"
        else:
            yield found(key, {ending: name}, name)


def _webdataset_key(name: str) -> str:
    parts = _WEBDATASET_KEY.fullmatch(f"{name}.")
    return parts[1] if parts else name


def _sample(
    file: BinaryIO, found: _Found, places: dict[str, Place], storage: str
) -> dict[str, Any]:
    """Read the files of a sample in a tar, and return the description of the sample in the index.

    Args:
        file: the open tar.
        found: key of the sample and names of its files in the tar.
        places: dictionary from the name of each file in the tar to its offset and size.
        storage: storage of a video file without a ``KEY.video.json``.

    Raises:
        DecodingError: if the video or the first frame of the sample cannot be decoded.
        ValueError: if ``KEY.video.json`` does not agree with the frames of the sample.
    """
    members: dict[str, list[int]] = {}
    kept = {}
    for extension, name in sorted(found.members.items(), key=lambda member: places[member[1]]):
        offset, size = places[name]
        content = read_at(file.fileno(), size, offset)
        members[extension] = [offset, size, zlib.crc32(content)]
        if extension == MEASURES or is_video(extension):
            kept[extension] = content
    facts = _facts(kept.get(MEASURES))
    video = next((content for extension, content in kept.items() if is_video(extension)), None)
    if video is not None:
        if facts.get("storage") != "h264":
            facts = {"storage": storage, "source": content_hash(video)}
        facts.update(probe_video(video)._asdict())
    known = {name: value for name, value in facts.items() if value is not None}
    sample = {**known, "key": found.key, "members": members}
    check_sample(sample)
    if video is None:
        offset, size, _ = members[frame_members(sample)[0]]
        shape = decode_jpegs([read_at(file.fileno(), size, offset)])[0].shape[:2]
        if shape != (sample["height"], sample["width"]):
            raise ValueError(
                f"its frames have {shape[0]}×{shape[1]} pixels, but its video.json says "
                f"{sample['height']}×{sample['width']}"
            )
    return sample


def _facts(measures: bytes | None) -> dict[str, Any]:
    try:
        facts = read_json_text(measures or b"{}")
    except ValueError:
        facts = None
    return facts if isinstance(facts, dict) else {}


def _by_ending(names: Iterator[str]) -> dict[str, str]:
    """Group files that belong to no sample by their ending.

    Returns:
        Dictionary from an ending, such as ``*.txt``, to a text that describes the files.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = _NAME_AND_ENDING.fullmatch(name)
        groups[f"*.{parts[2].lower()}" if parts else "no ending"].append(name)
    return {
        ending: f"{len(group)} files with this ending, such as {group[0]}, belong to no sample"
        if len(group) > 1
        else f"{group[0]} belongs to no sample"
        for ending, group in groups.items()
    }
