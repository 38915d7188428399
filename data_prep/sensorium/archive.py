"""Convert published Sensorium sessions, zip archives or folders, to folders for training."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ssl_vivit.data.video.files_below import files_below, passed_over_line
from ssl_vivit.errors import DataError
from ssl_vivit.files import replaced_directory, replaced_file, write_text

# Files of a session; other files in an archive are not unpacked.
_BELONGS = re.compile(
    r"(?P<root>.*?)(?P<name>data/\w+/\d+\.npy|meta/(?:.+/)?[^/]+\.(?:npy|json|safetensors))"
)
_MANIFEST = "unpacking.json"


@dataclass(frozen=True)
class _Member:
    """A file of a session, in an archive or a folder.

    Attributes:
        source: archive member or path.
        name: path below the session's folder.
        size: size in bytes.
        mark: CRC or modification time, which identifies the content.
    """

    source: str
    name: str
    size: int
    mark: int


def convert(
    sources: Sequence[str | Path], out: str | Path, *, progress: bool = True
) -> tuple[list[Path], list[Path]]:
    """Write every session of the sources to ``OUT/NAME``; files are copied unchanged.

    A session gets its final name when it is complete; a second run continues an interrupted one.
    Files that do not belong to the layout are not copied.

    Args:
        sources: zip archives or folders, each with one or more sessions at any depth.
        out: folder of the sessions.
        progress: show a progress bar.

    Returns:
        Two lists of paths: the written sessions, and the sessions that already existed.

    Raises:
        DataError: if a source cannot be read, contains no session or has entries that lead out of
            the source, or if a session of this name exists with other content.
    """
    plans: list[tuple[Path, str, list[_Member]]] = []
    for source in map(Path, sources):
        plans += [(source, name, members) for name, members in _sessions(source).items()]
    names = [name for _, name, _ in plans]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{', '.join(twice)}: several sessions have this name; convert each session to another "
            "--out"
        )
    written: list[Path] = []
    there: list[Path] = []
    for source, name, members in plans:
        target = Path(out) / name
        if source.is_dir() and target.resolve() in (source.resolve(), *source.resolve().parents):
            raise DataError(
                f"{source} is already a session in --out {out} and needs no conversion; run "
                "`check` on it"
            )
        (there if _is_converted(source, target, members) else written).append(target)
    for source, name, members in plans:
        if Path(out) / name in written:
            _write(source, members, Path(out) / name, progress)
    return written, there


def _sessions(source: Path) -> dict[str, list[_Member]]:
    """Return the files of each session in a zip archive or folder, by the session's name."""
    if source.is_dir():
        sizes, passed_over = files_below(source)
        del passed_over["hidden"]
        if told := passed_over_line(passed_over):
            # Training would treat a missing part of a session as not recorded.
            raise DataError(
                f"{source} cannot be converted completely ({told}); copy linked files into this "
                "folder"
            )
        try:
            members = [
                _Member(name, "", size, (source / name).stat().st_mtime_ns)
                for name, size in sorted(sizes.items())
            ]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    elif not source.exists():
        raise DataError(f"{source} does not exist")
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                members = [
                    _member(source, entry) for entry in archive.infolist() if not entry.is_dir()
                ]
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{source} is neither a folder nor a complete zip archive; download it again "
                f"({error})"
            ) from error
    roots: dict[str, list[_Member]] = {}
    for member in members:
        found = _BELONGS.fullmatch(member.source)
        if found and not any(
            part.startswith((".", "__MACOSX")) for part in PurePosixPath(member.source).parts
        ):
            whole = _Member(member.source, found["name"], member.size, member.mark)
            roots.setdefault(found["root"], []).append(whole)
    roots = {r: m for r, m in roots.items() if any(x.name.startswith("data/videos/") for x in m)}
    if not roots:
        raise DataError(f"{source} contains no session: there is no data/videos/0.npy at any depth")
    own = source.resolve().name if source.is_dir() else source.stem
    sessions: dict[str, list[_Member]] = {}
    for root, files in roots.items():
        name = PurePosixPath(root).name or own
        if name in sessions:
            raise DataError(
                f"{source} contains two sessions named {name}; convert each session to another "
                "--out"
            )
        sessions[name] = files
    return sessions


def _member(source: Path, entry: zipfile.ZipInfo) -> _Member:
    """Return the description of a file in a zip archive.

    Raises:
        DataError: if the file is a link, is encrypted, or has a path that leads out of the archive.
    """
    name = entry.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise DataError(
            f"{source} contains the entry {name!r}, which leads out of --out; it is not unpacked"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{source} contains the link {name!r}, which is not unpacked; remove it")
    if entry.flag_bits & 1:
        raise DataError(f"{source} is encrypted; decrypt it first")
    return _Member(name, "", entry.file_size, entry.CRC)


def _is_converted(source: Path, target: Path, members: Sequence[_Member]) -> bool:
    if not target.exists():
        return False
    if target.is_dir() and all(
        _is_complete(target / m.name, m) and _has_content_of(source, m, target / m.name)
        for m in members
    ):
        # The manifest remains if a run was stopped after the last file.
        (target / _MANIFEST).unlink(missing_ok=True)
        return True
    raise DataError(
        f"{target} already exists with other content; remove it or choose another --out"
    )


def _write(source: Path, members: Sequence[_Member], target: Path, progress: bool) -> None:
    partial = target.with_name(f"{target.name}.partial")
    manifest = json.dumps([[m.name, m.size, m.mark] for m in members])
    try:
        _prepare_partial(partial, manifest)
        missing = [m for m in members if not _is_complete(partial / m.name, m)]
        needed, free = sum(m.size for m in missing), shutil.disk_usage(partial).free
        if needed > free:
            raise DataError(
                f"{target} needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; choose "
                "another --out or free space"
            )
        bar = tqdm(total=needed, desc=target.name, unit="B", unit_scale=True, disable=not progress)
        with bar:
            if source.is_dir():
                for member in missing:
                    with open(source / member.source, "rb") as stream:
                        _copy(stream, partial / member.name, bar)
            else:
                with zipfile.ZipFile(source) as archive:
                    for member in missing:
                        with archive.open(member.source) as stream:
                            _copy(stream, partial / member.name, bar)
        os.rename(partial, target)
        (target / _MANIFEST).unlink()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataError(f"{source} is damaged, download it again: {error}") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(
                f"no space left for {target}; free space and run the command again"
            ) from error
        raise DataError(f"{target} cannot be written: {error}") from error


def _prepare_partial(partial: Path, manifest: str) -> None:
    """Keep the files of an interrupted run of this source; remove files of another source."""
    note = partial / _MANIFEST
    if partial.exists():
        if not note.is_file():
            raise DataError(f"{partial} was not written by this command; move it elsewhere")
        if note.read_text() != manifest:
            for folder in ("data", "meta"):
                shutil.rmtree(partial / folder, ignore_errors=True)
            write_text(note, manifest)
        return
    with replaced_directory(partial) as staging:
        write_text(staging / _MANIFEST, manifest)


def _is_complete(path: Path, member: _Member) -> bool:
    return path.is_file() and path.stat().st_size == member.size


def _has_content_of(source: Path, member: _Member, path: Path) -> bool:
    """Return True if a converted file equals its source file."""
    if source.is_dir():
        return filecmp.cmp(source / member.source, path, shallow=False)
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum == member.mark


def _copy(stream: IO[bytes], path: Path, bar: tqdm) -> None:
    # Reading an archive's entry completely checks its CRC.
    with replaced_file(path) as part, open(part, "wb") as file:
        while block := stream.read(1 << 20):
            file.write(block)
            bar.update(len(block))
