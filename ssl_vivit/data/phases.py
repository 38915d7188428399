"""Named phases of a training step, whose duration can be profiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Recorder(Protocol):
    """Protocol of an object that measures the duration of named phases of a training step."""

    def measured(self, name: str) -> AbstractContextManager[None]: ...


_recorder: Recorder | None = None


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark a block of code as a named phase of a training step.

    The duration of the block is measured only if :func:`record_phases` has set a recorder.
    """
    if _recorder is None:
        yield
        return
    with _recorder.measured(name):
        yield


def record_phases(recorder: Recorder | None) -> None:
    """Set the recorder that measures the duration of each :func:`phase`; None stops measuring."""
    global _recorder
    _recorder = recorder
