"""Ctrl-C and SIGTERM alike: the command stops at once, its workers with it, nothing half-written."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from types import FrameType


def stop_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does; by default it would leave the workers behind, at work."""
    signal.signal(signal.SIGTERM, _interrupt)


def start_worker() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent; end cleanly on SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)


def stop_workers() -> None:
    """End the worker processes; what they were writing is removed on the way."""
    for worker in multiprocessing.active_children():
        worker.terminate()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
