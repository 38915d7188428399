"""Clips per second, and the fraction of time that training waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Speed(NamedTuple):
    """Speed of training between two calls of :meth:`Throughput.read`.

    Attributes:
        clips_per_second: clips trained on per second, without pauses.
        data_wait: fraction of the time spent waiting for the next batch, between 0 and 1.
    """

    clips_per_second: float
    data_wait: float


class Throughput:
    """Measures the speed of training; time inside :meth:`paused` is not counted."""

    def __init__(self) -> None:
        self._clips, self._waited = 0, 0.0
        self._since = time.perf_counter()

    def add(self, clips: int) -> None:
        """Add the clips of a finished step."""
        self._clips += clips

    def read(self) -> Speed:
        """Return the speed since the last call of this method, or since the start."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        speed = Speed(self._clips / seconds, min(1.0, self._waited / seconds))
        self._clips, self._waited, self._since = 0, 0.0, now
        return speed

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the measured time."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
