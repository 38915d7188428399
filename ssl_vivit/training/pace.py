"""Clips per second, of training alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Counts clips and the time between two readings, less the time inside :meth:`paused`."""

    def __init__(self) -> None:
        self._clips = 0
        self._since = time.perf_counter()

    def add(self, clips: int) -> None:
        self._clips += clips

    def read(self) -> float:
        """Clips per second since the last reading."""
        now = time.perf_counter()
        rate = self._clips / max(now - self._since, 1e-9)
        self._clips, self._since = 0, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
