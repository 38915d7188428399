"""A lock on a run's directory, so that only one process at a time writes there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ssl_vivit.errors import RunError

LOCK = "run.lock"
# Process id and directory of each lock that is held. A forked process does not hold its parent's
# locks.
_held: set[tuple[int, Path]] = set()


@contextmanager
def locked(directory: Path, setting: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Lock a directory against other processes while the block runs.

    The lock is a POSIX record lock on the file ``run.lock``. The system releases it when the
    process ends for any reason, and child processes do not inherit it. The content of the file is
    used only in the message that a second process prints, so a file left by a killed process does
    not block. Blocks for the same directory may be nested. At the end the file is removed. The
    directory is removed as well if the block created it and left it empty.

    Args:
        directory: the directory; it is created if it is missing.
        setting: the option that names the directory, for messages.
        warn: called with a message if the file system does not support locks. The block then runs
            without a lock.

    Raises:
        RunError: if another process holds the lock, or the directory cannot be written.
    """
    key = _key(directory)
    if key in _held:
        yield
        return
    try:
        made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = _take(directory, setting, warn)
    except FileExistsError:
        raise RunError(f"{setting} {directory} is a file; choose another {setting}") from None
    except OSError as error:
        place = error.filename or directory
        raise RunError(f"{setting} {place} cannot be written: {error.strerror}") from error
    _held.add(key)
    try:
        yield
    finally:
        if key[0] == os.getpid():
            _held.discard(key)
            _release(directory, descriptor)
            for folder in made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def refuse_locked(directory: Path, setting: str) -> None:
    """Raise an error if another process has locked a directory, without writing there.

    Raises:
        RunError: if another process holds the lock; the message names the process.
    """
    # If this process holds the lock, opening and closing the file here would release it.
    if _key(directory) in _held:
        return
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        _lock(descriptor, directory, setting, warn=lambda line: None)
    finally:
        os.close(descriptor)


def _key(directory: Path) -> tuple[int, Path]:
    return os.getpid(), directory.resolve()


def _take(directory: Path, setting: str, warn: Callable[[str], None]) -> int:
    while True:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, directory, setting, warn)
        except RunError:
            os.close(descriptor)
            raise
        if is_at(directory / LOCK, descriptor):
            break
        os.close(descriptor)  # another process removed the file after it was opened here
    holder = {
        "process": os.getpid(),
        "host": platform.node(),
        "since": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
    }
    with suppress(OSError):  # on a full disk the lock works without it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{json.dumps(holder)}\n".encode())
    return descriptor


def _lock(descriptor: int, directory: Path, setting: str, warn: Callable[[str], None]) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            warn(
                f"{directory} is on a file system without locks ({error.strerror}), so a second "
                "run there cannot be detected; start only one run"
            )
            return
        raise RunError(
            f"{setting} {directory} is in use: {_holder(descriptor)} is writing there; wait until "
            f"that process ends, stop it, or choose another {setting}"
        ) from None


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.read(descriptor, 4096))
        return f"process {said['process']} on host {said['host']}, since {said['since']},"
    except (OSError, ValueError, KeyError, TypeError):  # the other process is just writing the file
        return "another process"


def _release(directory: Path, descriptor: int) -> None:
    # Remove the file before the lock ends, so that no other process can lock it in between.
    if is_at(directory / LOCK, descriptor):
        with suppress(OSError):
            os.unlink(directory / LOCK)
    os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` still refers to the file that is open as ``descriptor``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
