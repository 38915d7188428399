"""Lock that lets one process download a shard while the other processes wait."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_vivit.data import stopping
from ssl_vivit.errors import DataError
from ssl_vivit.run_lock import is_at


@contextmanager
def turn_to_fetch(copy: Path, stall_timeout: float) -> Iterator[Callable[[], None]]:
    """Hold the lock file of a shard's copy while the block runs.

    The block must call the yielded function several times a second. The function raises
    KeyboardInterrupt on a request to stop. It also touches the lock file, which shows waiting
    processes that this process is alive. If the block raises a DataError, waiting processes raise
    the same error instead of trying again one by one. The lock file is removed at the end. If a
    process was killed and left its lock file, other processes do not wait for it.

    Args:
        copy: path of the shard's local copy.
        stall_timeout: seconds to wait for a process that does not touch its lock file.

    Raises:
        DataError: if the process that holds the lock fails, or does not touch its lock file.
    """
    path = copy.with_name(f"{copy.name}.lock")
    lock = _take(path, stall_timeout)

    def look() -> None:
        stopping.check()
        os.utime(lock)

    try:
        yield look
    except DataError as error:
        with suppress(OSError):  # on a full disk
            os.pwrite(lock, str(error).encode(), 0)
        raise
    finally:
        # Remove the file before the lock ends, so that no other process can lock it in between.
        if is_at(path, lock):
            path.unlink(missing_ok=True)
        os.close(lock)


def _take(path: Path, stall_timeout: float) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            waited = _wait(path, lock, stall_timeout)
            if waited and (failure := os.read(lock, 1 << 16)):
                raise DataError(failure.decode(errors="replace"))
        except BaseException:
            os.close(lock)
            raise
        if is_at(path, lock):
            os.ftruncate(lock, 0)  # remove the message of a process that was killed
            return lock
        os.close(lock)  # its holder has ended and removed the file


def _wait(path: Path, lock: int, stall_timeout: float) -> bool:
    """Wait for the lock on the lock file ``path``; return whether another process held the lock."""
    seen, since, waited = -1, time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            waited = True
        except OSError:  # the file system has no locks: each process downloads its own copy
            return False
        # Check for changes of the time only, since the file system's clock may differ.
        sign = os.fstat(lock).st_mtime_ns
        if sign != seen:
            seen, since = sign, time.monotonic()
        elif time.monotonic() - since > stall_timeout:
            raise DataError(
                f"{path}: another process holds this lock and has made no progress for "
                f"{stall_timeout:g} s; end that process, or set another --data.cache_dir"
            )
        stopping.sleep(stopping.INTERVAL)
