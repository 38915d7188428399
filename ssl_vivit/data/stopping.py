"""Requests to stop, which end long waits for a server or another process.

A signal handler notes the request (:func:`request`). Code that waits calls :func:`check` several
times a second. Worker processes, which ignore signals, hear of it through shared memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawValue
from typing import Any

INTERVAL = 0.2
"""Seconds between two calls of :func:`check` at most, as far as the waiting code can tell."""

# Without a lock: a process that is killed while it holds one would leave the others waiting.
_requested: Any = RawValue("b", 0)
_heard: list[Any] = [_requested]
_parent: int | None = None


def request() -> None:
    """Ask this process and its workers to stop waiting."""
    _requested.value = 1


def withdraw() -> None:
    """Take back the request."""
    _requested.value = 0


def check() -> None:
    """Return at once unless there is a request to stop.

    Raises:
        KeyboardInterrupt: if there is one; in a worker also if its parent process has ended.
    """
    if is_orphan() or any(flag.value for flag in _heard):
        raise KeyboardInterrupt


def is_orphan() -> bool:
    """Return whether this is a worker process whose parent has ended."""
    return _parent is not None and os.getppid() != _parent


def sleep(seconds: float, look: Callable[[], object] = check) -> None:
    """Wait, and call ``look`` several times a second meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        look()
        time.sleep(min(left, INTERVAL))


def new_flag() -> Any:
    """A flag for worker processes to follow; setting its ``value`` to 1 asks them to stop."""
    return RawValue("b", 0)


def heard_by_workers(flag: Any) -> tuple[Sequence[Any], int]:
    """Return the arguments of :func:`follow`: this process's requests, ``flag`` and process id."""
    return (*_heard, flag), os.getpid()


def follow(flags: Sequence[Any], parent: int) -> None:
    """Make this worker process follow its parent's requests, given by :func:`heard_by_workers`."""
    global _parent
    _heard[:] = flags
    _parent = parent
