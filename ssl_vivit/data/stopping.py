"""Requests to stop, which end long waits for a server or another process.

A signal handler makes the request (:func:`request`). Code that waits calls :func:`check` several
times a second. Worker processes ignore signals and receive the request through shared memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawValue
from typing import Any

INTERVAL = 0.2
"""Longest time in seconds between two calls of :func:`check` in code that waits."""

# No lock, since a process that was killed while holding it would block the others.
_requested: Any = RawValue("b", 0)
_heard: list[Any] = [_requested]
_parent: int | None = None


def request() -> None:
    """Ask this process and its workers to stop waiting."""
    _requested.value = 1


def withdraw() -> None:
    """Withdraw the request to stop."""
    _requested.value = 0


def check() -> None:
    """Raise an error if there is a request to stop.

    Raises:
        KeyboardInterrupt: if there is a request, or, in a worker, if its parent process has ended.
    """
    if is_orphan() or any(flag.value for flag in _heard):
        raise KeyboardInterrupt


def is_orphan() -> bool:
    """Return whether this is a worker process whose parent has ended."""
    return _parent is not None and os.getppid() != _parent


def sleep(seconds: float, look: Callable[[], object] = check) -> None:
    """Wait for ``seconds`` seconds and call ``look`` several times a second meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        look()
        time.sleep(min(left, INTERVAL))


def new_flag() -> Any:
    """Return a new flag for worker processes; setting its ``value`` to 1 asks them to stop."""
    return RawValue("b", 0)


def heard_by_workers(flag: Any) -> tuple[Sequence[Any], int]:
    """Return the arguments with which a worker process of this process must call :func:`follow`.

    Args:
        flag: flag for these worker processes, made by :func:`new_flag`.

    Returns:
        The shared flags that ask the worker to stop, and the process id of this process.
    """
    return (*_heard, flag), os.getpid()


def follow(flags: Sequence[Any], parent: int) -> None:
    """Make this worker process receive the requests of its parent process.

    Args:
        flags: shared flags that the parent sets; see :func:`heard_by_workers`.
        parent: process id of the parent.
    """
    global _parent
    _heard[:] = flags
    _parent = parent
