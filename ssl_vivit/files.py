"""Atomic writes of files and directories, and reading and writing of JSON files."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ssl_vivit.errors import DataError, WriteError
from ssl_vivit.nested_text import read_json_text

_HOST = platform.node()
_PROCESS = secrets.token_hex(4)
"""Distinguishes this process from an earlier one with the same id, as occurs in containers."""
_unfinished: set[Path] = set()

# Largest JSON file in bytes. The index of 100,000 features has a tenth of this size.
_MOST_TEXT = 2**27

# Errors of a file system that is full, over a quota, over the largest file size or read-only.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# End of the message of the error that safetensors raises in place of an OSError.
_OS_ERROR = re.compile(r"I/O error: (.+) \(os error (\d+)\)")


@contextmanager
def temporary_beside(path: str | Path) -> Iterator[Path]:
    """Yield an unused hidden path in the folder of ``path``, for an atomic write.

    The block must write to the hidden path and then rename it to ``path``. Several processes may
    write the same ``path``. A file or directory that still has the hidden path at the end of the
    block is removed. Temporary files that killed processes of this machine left in the folder are
    removed first.

    Args:
        path: a file or directory. Its parent folders are created.

    Raises:
        WriteError: if the file system refuses to write.
    """
    path = Path(path)
    part = _beside(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path, error.errno or 0, str(error.strerror)) from error
    try:
        for left, _ in _files_of_ended_processes(path.parent, "part"):
            _remove(left)
        _unfinished.add(part)
        yield part
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        refused = _refusal(error, part)
        if refused is None:
            raise
        raise WriteError(path, *refused) from error
    finally:
        _remove(part)
        _unfinished.discard(part)


def _refusal(error: Exception, part: Path) -> tuple[int, str] | None:
    """Return the ``errno`` of a failed write and its text; None for any other error.

    Args:
        error: an OSError, or safetensors' error in place of one.
        part: the temporary path. An OSError about this path counts as a failed write, and so does
            an error that occurs only in writing, such as a full disk.
    """
    if not isinstance(error, OSError):
        found = _OS_ERROR.search(str(error))
        return (int(found[2]), found[1]) if found else None
    number = error.errno or 0
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    if number in _REFUSED or any(name.startswith(str(part)) for name in names):
        return number, os.strerror(number)
    return None


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to ``path`` when the block ends without an error.

    After an error the temporary file is removed, and an older file at ``path`` is unchanged.

    Args:
        path: the file. Its parent folders are created.
    """
    with temporary_beside(path) as part:
        yield part
        os.replace(part, path)


def remove_unfinished() -> None:
    """Remove this process's temporary files, for an exit that skips the ends of ``with`` blocks."""
    for part in list(_unfinished):
        _remove(part)


def remove_older(folder: Path, seconds: float) -> None:
    """Remove temporary files in ``folder``, of any machine, last written over ``seconds`` s ago."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # the file was just renamed to its final name
            if time.time() - part.stat().st_mtime > seconds:
                _remove(part)


def process_name() -> str:
    """Return a name of this process that is unique over all machines."""
    return f"{_HOST}-{os.getpid()}-{_PROCESS}"


def has_ended(process: str) -> bool:
    """Return whether a process of this machine has ended; False for a process of another machine.

    Args:
        process: result of :func:`process_name` in that process.
    """
    host, pid, token = process.rsplit("-", 2)
    return host == _HOST and not _is_alive(int(pid), token)


def _beside(path: Path, ending: str) -> Path:
    owner = f"{_HOST}-{os.getpid()}-{_PROCESS}{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{owner}.{ending}")


def _files_of_ended_processes(folder: Path, ending: str) -> list[tuple[Path, str]]:
    """Return temporary files whose process has ended, each with the name of its final file."""
    ours = re.compile(rf"\.(.+)\.{re.escape(_HOST)}-(\d+)-([0-9a-f]+)\.{ending}", re.DOTALL)
    # This runs at every write, in folders of tens of thousands of files: filter by name first.
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(f".{ending}")]
    found = [(folder / name, ours.fullmatch(name)) for name in names]
    return [
        (path, name[1]) for path, name in found if name and not _is_alive(int(name[2]), name[3])
    ]


def _is_alive(pid: int, token: str) -> bool:
    if pid == os.getpid():
        return token.startswith(_PROCESS)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    # In a container an orphaned process may stay as a zombie, with its id, after it has ended.
    return state not in ("Z", "X")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # such as a file of another user
            path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with replaced_file(path) as part:
        part.write_text(text)


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def refuse_pipe(path: str | Path) -> None:
    """Refuse a path that exists and is no regular file: reading a named pipe could block.

    Raises:
        ValueError: if ``path`` is a named pipe, a device or a directory.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")


def read_whole(path: str | Path, most: int = _MOST_TEXT) -> bytes:
    """Read a file of unknown origin into memory.

    Args:
        path: the file.
        most: largest allowed size in bytes.

    Raises:
        OSError: if the file is missing or cannot be read.
        ValueError: if it is a named pipe, a device or a directory, or is larger than ``most``.
    """
    refuse_pipe(path)
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def read_json(path: str | Path, mend: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        mend: advice for the error message: what to do if the file is missing or damaged.

    Raises:
        DataError: if the file is missing or damaged; the message names the file.
    """
    try:
        content = read_json_text(read_whole(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {mend}") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {mend}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged (it is not a JSON object); {mend}")
    return content


def without_nan(content: Any) -> Any:
    """Replace NaN and infinities by None, since JSON cannot represent them."""
    if isinstance(content, Mapping):
        return {name: without_nan(each) for name, each in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


@contextmanager
def replaced_directory(directory: str | Path, own: Collection[str] = ()) -> Iterator[Path]:
    """Yield a new directory that replaces ``directory`` when the block ends without an error.

    Args:
        directory: the directory to replace. If it is a symbolic link, the link's target is
            replaced.
        own: names of files and subdirectories that are not kept from the older directory, even if
            the new directory lacks them. All others are moved to the new directory.
    """
    directory = Path(directory).resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    finish_replacement(directory, own)
    with temporary_beside(directory) as staging:
        staging.mkdir()
        yield staging
        _apply_umask(staging)
        _exchange(staging, directory, own)


def finish_replacement(directory: str | Path, own: Collection[str] = ()) -> None:
    """Finish or undo a :func:`replaced_directory` that a killed process of this machine began.

    Args:
        directory: the directory that was to be replaced.
        own: names of files and subdirectories that are not kept from the older directory; see
            :func:`replaced_directory`.
    """
    directory = Path(directory).resolve()
    if not directory.parent.is_dir():
        return
    for old, name in _files_of_ended_processes(directory.parent, "old"):
        if name == directory.name:
            _retire(old, directory, own)


def _apply_umask(staging: Path) -> None:
    """Give weight files the permissions of other files; safetensors lets only the owner read."""
    usual = next((file for file in staging.iterdir() if file.suffix in (".json", ".md")), None)
    for file in staging.glob("*.safetensors"):
        if usual is not None:
            shutil.copymode(usual, file)


def _exchange(new: Path, directory: Path, own: Collection[str]) -> None:
    if not directory.exists():
        os.rename(new, directory)
        return
    old = _beside(directory, "old")
    try:
        os.rename(directory, old)
        os.rename(new, directory)
    finally:
        if old.exists():
            _retire(old, directory, own)


def _retire(old: Path, directory: Path, own: Collection[str]) -> None:
    """Remove the older directory after its replacement, but keep files that are not ``own``.

    If there is no directory at ``directory``, ``old`` is renamed back instead.

    Args:
        old: the older directory, under a temporary name.
        directory: the new directory.
        own: names of files and subdirectories that are removed with ``old``. All others are moved
            to the new directory, unless it has an entry of the same name.
    """
    if not directory.exists():
        os.rename(old, directory)
        return
    for entry in old.iterdir():
        if entry.name not in own and not (directory / entry.name).exists():
            os.rename(entry, directory / entry.name)
    shutil.rmtree(old)
