"""Named phases of a training step, whose time a profile measures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Recorder(Protocol):
    """Measures phases."""

    def measured(self, name: str) -> AbstractContextManager[None]: ...


_recorder: Recorder | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark a block of code as a phase; without a recorder nothing is measured."""
    if _recorder is None:
        yield
        return
    with _recorder.measured(name):
        yield


def record_phases(recorder: Recorder | None) -> None:
    """Measure all phases from now on by a recorder; None ends it."""
    global _recorder
    _recorder = recorder
