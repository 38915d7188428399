"""Check of the shared memory that the workers of all loaders of a process need."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

_checked: WeakSet[Any] = WeakSet()
# Loaders that were checked, but whose workers have not started yet → bytes that they need.
_waiting: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def missing(loader: Any, needed: int, free: int) -> int:
    """Return how many bytes of shared memory are missing for the workers of a loader.

    Bytes that other checked loaders need, whose workers have not started, do not count as free.
    Once the memory suffices for a loader, later calls for this loader return 0, because its own
    batches then occupy shared memory.

    Args:
        loader: loader whose workers are to start.
        needed: bytes of shared memory that all of the loader's batches need together at most.
        free: number of free bytes now.

    Returns:
        Number of missing bytes; 0 if the memory suffices.
    """
    if loader in _checked:
        return 0
    lacking = max(0, needed - (free - sum(_waiting.values())))
    if not lacking:
        _checked.add(loader)
        _waiting[loader] = needed
    return lacking


def started(loader: Any) -> None:
    """Record that the workers of a loader have started.

    The bytes that :func:`missing` reserved for the loader are then no longer reserved.
    """
    _waiting.pop(loader, None)
