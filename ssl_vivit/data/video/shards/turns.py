"""Lock by which one process fetches a shard while the others wait for it."""

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

    Yields a function to be called several times a second: it ends the block on a request to stop,
    and touches the lock file, by which waiting processes see that this one is alive. If the block
    fails, the processes that wait fail with its error instead of trying one after another. The lock
    file is removed at the end; that of a killed process blocks nothing.

    Args:
        copy: the shard's local copy.
        stall_timeout: seconds to wait without a sign of life.

    Raises:
        DataError: if the process that holds the lock fails, or shows no sign of life.
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
        # Removed before the lock ends, so that no other process can have locked this file meanwhile.
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
            os.ftruncate(lock, 0)  # of what a process wrote that was killed before it ended
            return lock
        os.close(lock)  # its holder ended and removed it


def _wait(path: Path, lock: int, stall_timeout: float) -> bool:
    """Wait for the lock; return whether another process held it."""
    seen, since, waited = -1, time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            waited = True
        except OSError:  # a file system without locks: each process fetches for itself
            return False
        # Its own clock may differ from that of this machine, so changes count.
        sign = os.fstat(lock).st_mtime_ns
        if sign != seen:
            seen, since = sign, time.monotonic()
        elif time.monotonic() - since > stall_timeout:
            raise DataError(
                f"{path}: another process holds this lock and has shown no sign of life for "
                f"{stall_timeout:g} s; end that process, or set another --data.cache_dir"
            )
        stopping.sleep(stopping.INTERVAL)
