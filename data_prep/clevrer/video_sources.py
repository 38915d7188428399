"""Find videos and annotations in zip archives or folders; nothing is unpacked to disk."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ssl_vivit.data.video.files_below import (
    endings,
    files_below,
    is_hidden,
    passed_over_line,
)
from ssl_vivit.data.video.shards.index import is_video
from ssl_vivit.data.video.shards.sample_keys import safe_name, sample_keys
from ssl_vivit.errors import DataError

_CLEVRER_VIDEO = re.compile(r"video_(\d{5})\.mp4")
_CLEVRER_ANNOTATION = re.compile(r"annotation_(\d{5})\.json")
_SPLITS = ("train", "validation", "test")
# Encoded videos hardly compress further. A larger member with a higher ratio is not a video and
# could fill the memory.
_LARGEST_RATIO = 10
_SMALL = 1 << 28
# Other methods may unpack gigabytes from a single block.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True)
class StoredFile:
    """A file in a folder or a zip archive, which is read into memory and not unpacked to disk."""

    root: Path
    name: str
    size: int

    @property
    def place(self) -> str:
        """Absolute path of the file, or of its archive followed by the member's name."""
        return os.path.join(os.path.abspath(self.root), self.name)

    def changed_at(self) -> int:
        """Return the modification time of the file, or of its archive, in nanoseconds."""
        return (self.root / self.name if self.root.is_dir() else self.root).stat().st_mtime_ns

    def read(self) -> bytes:
        """Return the content.

        Raises:
            OSError: if the file cannot be read. In an archive, also if its compression method is
                not supported, its stated size is too large, or its CRC is wrong.
        """
        if self.root.is_dir():
            return (self.root / self.name).read_bytes()
        try:
            return _unpacked(_archive(self.root), self.name, self.root.stat().st_size)
        except _ZIP_ERRORS as error:
            raise OSError(str(error)) from error


@dataclass(frozen=True)
class Sample:
    """A video with its key in the shards, and its annotation or None."""

    key: str
    video: StoredFile
    annotation: StoredFile | None


@dataclass(frozen=True)
class VideoSource:
    """Videos and annotations to be packed.

    Attributes:
        samples: the samples in the order of their names.
        is_clevrer: True if all videos have CLEVRER's file names.
        prefix: default prefix of shards: ``clevrer-train`` and so on from the archive's name, or
            the name of the folder.
        passed_over: number of files that are not read, by kind of file (the ending of the name, or
            for example ``hidden``).
    """

    samples: list[Sample]
    is_clevrer: bool
    prefix: str
    passed_over: Counter[str]

    def digest(self) -> str:
        """Return a digest of the keys, file names and file sizes of all samples."""
        facts = [
            (s.key, s.video.name, s.video.size, s.annotation and s.annotation.size)
            for s in self.samples
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def open_source(videos: str | Path, annotations: str | Path | None = None) -> VideoSource:
    """List the videos of a zip archive or folder, and match annotations by CLEVRER's numbers.

    Args:
        videos: zip archive or folder, searched at any depth.
        annotations: zip archive or folder of ``annotation_00000.json`` …, or None.

    Raises:
        DataError: if a path is missing, an archive is damaged or contains a name twice, there are
            no videos, or no annotation belongs to a video. With annotations, also if two videos or
            two annotations have equal numbers.
    """
    root = Path(videos)
    found, passed_over = _list(root, "--videos")
    files = [file for file in found if is_video(file.name)]
    if not files:
        passed = passed_over_line(passed_over + endings(file.name for file in found))
        raise DataError(f"--videos {root} contains no videos{f'; {passed}' if passed else ''}")
    files.sort(key=lambda file: (PurePosixPath(file.name).name, file.name))
    numbers = [_number(_CLEVRER_VIDEO, file) for file in files]
    is_clevrer = None not in numbers and len(set(numbers)) == len(numbers)
    keys = (
        [PurePosixPath(f.name).stem for f in files]
        if is_clevrer
        else sample_keys([f.name for f in files])
    )
    by_number: dict[int, StoredFile] = {}
    if annotations is not None:
        found_too, passed_over_too = _list(Path(annotations), "--annotations")
        by_number = _by_number(_CLEVRER_ANNOTATION, found_too, "--annotations")
        numbered = _by_number(_CLEVRER_VIDEO, files, "--videos")
        if not by_number.keys() & numbered.keys():
            raise DataError(
                f"--annotations {annotations} contains no annotation of a video in {root} "
                "(annotation_00007.json belongs to video_00007.mp4); give the annotations of "
                "that split"
            )
        if lonely := len(by_number.keys() - numbered.keys()):
            passed_over["annotations without a video"] += lonely
        if Path(annotations).resolve() != root.resolve():
            passed_over += passed_over_too
            found += found_too
    read = {file.place for file in (*files, *by_number.values())}
    passed_over += endings({file.place for file in found} - read)
    samples = [
        Sample(key, file, None if number is None else by_number.get(number))
        for key, file, number in zip(keys, files, numbers, strict=True)
    ]
    return VideoSource(samples, is_clevrer, _prefix(root, is_clevrer), passed_over)


def _list(root: Path, option: str) -> tuple[list[StoredFile], Counter[str]]:
    if root.is_dir():
        sizes, passed_over = files_below(root)
        return [StoredFile(root, name, size) for name, size in sizes.items()], passed_over
    if not root.exists():
        raise DataError(f"{option} {root} does not exist")
    if not zipfile.is_zipfile(root):
        raise DataError(
            f"{option} {root} is neither a folder nor a complete zip archive; give a folder, or "
            "download the archive again: python -m data_prep.clevrer download"
        )
    entries = [entry for entry in _archive(root).infolist() if not entry.is_dir()]
    shown = [entry for entry in entries if not is_hidden(entry.filename)]
    name, count = Counter(entry.filename for entry in shown).most_common(1)[0] if shown else ("", 0)
    if count > 1:
        raise DataError(
            f"{option} {root} contains {count} files named {name}, but names must be unique; make "
            "the archive again with only one of them"
        )
    hidden = Counter({"hidden": len(entries) - len(shown)})
    return [StoredFile(root, entry.filename, entry.file_size) for entry in shown], +hidden


@functools.lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, *_ZIP_ERRORS) as error:
        raise DataError(f"{path} is a damaged zip archive: {error}") from error


def _unpacked(archive: zipfile.ZipFile, name: str, archive_size: int) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type not in _METHODS:
        raise OSError("its compression method is not deflate; make the archive again with zip")
    packed = min(entry.compress_size, archive_size)
    if entry.file_size > max(_SMALL, _LARGEST_RATIO * packed):
        raise OSError(
            f"unpacks from {packed:,} to {entry.file_size:,} bytes, too much for a video; if the "
            "file is a video, unpack the archive and give the folder"
        )
    with archive.open(entry) as file:
        # The length limits how much is unpacked.
        return file.read(entry.file_size)


def _by_number(
    pattern: re.Pattern[str], files: Sequence[StoredFile], option: str
) -> dict[int, StoredFile]:
    found: dict[int, StoredFile] = {}
    for file in files:
        number = _number(pattern, file)
        if number is None:
            continue
        if number in found:
            raise DataError(
                f"{option} {file.root} contains {found[number].name} and {file.name} with equal "
                "numbers, but annotations are matched by number; pack the folders one by one"
            )
        found[number] = file
    return found


def _number(pattern: re.Pattern[str], file: StoredFile) -> int | None:
    match = pattern.fullmatch(PurePosixPath(file.name).name)
    return int(match[1]) if match else None


def _prefix(root: Path, is_clevrer: bool) -> str:
    name = root.resolve().name
    stem = name.removesuffix(".zip")
    if not is_clevrer:
        return safe_name(stem)
    split = next((split for split in _SPLITS if split in stem.lower()), None)
    return f"clevrer-{split}" if split else "clevrer"
