"""Videos and annotations as they are found: zip archives or folders, nothing unpacked to disk."""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ssl_vivit.data.video.shards.index import is_video
from ssl_vivit.errors import DataError

_CLEVRER_VIDEO = re.compile(r"video_(\d{5})\.mp4")
_CLEVRER_ANNOTATION = re.compile(r"annotation_(\d{5})\.json")
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class StoredFile:
    """A file in a folder or a zip archive; it is only ever read, never unpacked to a path."""

    root: Path
    name: str
    size: int

    def read(self) -> bytes:
        """The content.

        Raises:
            OSError: if it cannot be read or its CRC in the archive does not hold.
        """
        if self.root.is_dir():
            return (self.root / self.name).read_bytes()
        try:
            return _archive(self.root).read(self.name)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise OSError(str(error)) from error


@dataclass(frozen=True)
class Sample:
    """A video under the key it is packed by, with its annotation if it has one."""

    key: str
    video: StoredFile
    annotation: StoredFile | None


@dataclass(frozen=True)
class VideoSource:
    """Videos and annotations to be packed.

    Attributes:
        samples: in the order of their names.
        is_clevrer: whether all are named as CLEVRER's are.
        prefix: for shards, from the archive's name: ``clevrer-train``, or the folder's own name.
    """

    samples: list[Sample]
    is_clevrer: bool
    prefix: str

    def digest(self) -> str:
        """Tells sources apart by keys, names and sizes."""
        facts = [
            (s.key, s.video.name, s.video.size, s.annotation and s.annotation.size)
            for s in self.samples
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def open_source(videos: str | Path, annotations: str | Path | None = None) -> VideoSource:
    """List the videos of a zip or folder, joined with annotations by CLEVRER's video number.

    Args:
        videos: zip archive or folder, searched at any depth.
        annotations: zip archive or folder of ``annotation_00000.json`` …, or None.

    Raises:
        DataError: if a path is missing, a zip is no zip, there are no videos, or no annotation
            belongs to any of them.
    """
    root = Path(videos)
    files = [file for file in _list(root, "--videos") if is_video(file.name)]
    if not files:
        raise DataError(f"--videos {root} holds no videos")
    files.sort(key=lambda file: (PurePosixPath(file.name).name, file.name))
    numbers = [_number(_CLEVRER_VIDEO, file) for file in files]
    is_clevrer = None not in numbers and len(set(numbers)) == len(numbers)
    keys = [PurePosixPath(f.name).stem for f in files] if is_clevrer else _unique_keys(files)
    by_number: dict[int | None, StoredFile] = {}
    if annotations is not None:
        for file in _list(Path(annotations), "--annotations"):
            by_number[_number(_CLEVRER_ANNOTATION, file)] = file
        by_number.pop(None, None)
        if not by_number.keys() & set(numbers):
            raise DataError(
                f"--annotations {annotations} holds none for the videos of {root}: annotation_00007"
                ".json belongs to video_00007.mp4; give the annotations of the same split"
            )
    samples = [
        Sample(key, file, None if number is None else by_number.get(number))
        for key, file, number in zip(keys, files, numbers, strict=True)
    ]
    return VideoSource(samples, is_clevrer, _prefix(root, is_clevrer))


def _list(root: Path, option: str) -> list[StoredFile]:
    if root.is_dir():
        names = (path for path in root.rglob("*") if path.is_file())
        found = [(path.relative_to(root).as_posix(), path.stat().st_size) for path in names]
    elif not root.exists():
        raise DataError(f"{option} {root} does not exist")
    elif not zipfile.is_zipfile(root):
        raise DataError(
            f"{option} {root} is neither a folder nor a whole zip archive; give a folder, or fetch "
            "the archive again: python -m data_prep.clevrer download"
        )
    else:
        found = [(e.filename, e.file_size) for e in _archive(root).infolist() if not e.is_dir()]
    return [StoredFile(root, name, size) for name, size in found if not _hidden(name)]


@functools.lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is a damaged zip archive: {error}") from error


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part != ".." and part.startswith((".", "__MACOSX")) for part in parts)


def _number(pattern: re.Pattern[str], file: StoredFile) -> int | None:
    match = pattern.fullmatch(PurePosixPath(file.name).name)
    return int(match[1]) if match else None


def _unique_keys(files: Sequence[StoredFile]) -> list[str]:
    """File stems without what tar keys cannot hold; with the folders in front where two agree."""
    short = [_safe(PurePosixPath(file.name).stem) for file in files]
    long = [_safe(str(PurePosixPath(file.name).with_suffix(""))) for file in files]
    often = Counter(short)
    keys: dict[str, None] = {}
    for stem, path in zip(short, long, strict=True):
        wished = stem if often[stem] == 1 else path
        key, copies = wished, 1
        while key in keys:
            copies += 1
            key = f"{wished}_{copies}"
        keys[key] = None
    return list(keys)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "video"


def _prefix(root: Path, is_clevrer: bool) -> str:
    name = root.resolve().name
    stem = name.removesuffix(".zip")
    if not is_clevrer:
        return _safe(stem)
    split = next((split for split in _SPLITS if split in stem.lower()), None)
    return f"clevrer-{split}" if split else "clevrer"
