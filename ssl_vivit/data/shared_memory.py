"""Check of the shared memory that the workers of all loaders of a process need."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

_checked: WeakSet[Any] = WeakSet()
# Loaders that were checked, but whose workers have not started yet → bytes that they need.
_waiting: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def missing(loader: Any, needed: int, free: int) -> int:
    """Return how many bytes of shared memory are missing for the workers of a loader.

    A loader is checked only once, before its workers start. Later its own batches occupy memory.

    Args:
        loader: loader whose workers are to start.
        needed: largest number of bytes that its batches need.
        free: number of free bytes now.

    Returns:
        Missing bytes, taking into account other loaders that were checked and have not started. 0
        if the memory suffices.
    """
    if loader in _checked:
        return 0
    lacking = max(0, needed - (free - sum(_waiting.values())))
    if not lacking:
        _checked.add(loader)
        _waiting[loader] = needed
    return lacking


def started(loader: Any) -> None:
    """Record that the workers of a loader have started, so that its memory is no longer free."""
    _waiting.pop(loader, None)
