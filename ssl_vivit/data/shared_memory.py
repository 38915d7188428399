"""Shared memory that the workers of all loaders of a process need together."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

_checked: WeakSet[Any] = WeakSet()
# Loaders that were checked and whose workers have not started yet → bytes.
_waiting: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def missing(loader: Any, needed: int, free: int) -> int:
    """Count the bytes that are missing for the workers of a loader.

    A loader is checked once. Later its batches, and those of loaders that run beside it, are a part
    of what is not free.

    Args:
        loader: whose workers are to start.
        needed: bytes that its batches take at most.
        free: bytes that are free now.

    Returns:
        Bytes that are missing beside what loaders need that were checked and have not started; 0 if
        the memory suffices.
    """
    if loader in _checked:
        return 0
    lacking = max(0, needed - (free - sum(_waiting.values())))
    if not lacking:
        _checked.add(loader)
        _waiting[loader] = needed
    return lacking


def started(loader: Any) -> None:
    """Note that the workers of a loader have started and take their memory."""
    _waiting.pop(loader, None)
