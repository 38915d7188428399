"""Signals that end a run: SIGINT (Ctrl-C), SIGTERM and SIGUSR1.

The first signal lets the run finish its step and save a checkpoint; a second one ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ssl_vivit.data import stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# Under torchrun, further signals are ignored for this number of seconds after the first. torchrun
# forwards a SIGTERM to workers that have already received it as members of the process group.
FORWARDED_WITHIN = 2.0


class Interruption:
    """Context manager in which the first signal is recorded instead of ending the process.

    Attributes:
        received: name of the first signal; None if there was none.
        possible: whether signals are recorded; False outside of the main thread.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        # Python can set signal handlers only in the main thread.
        self.possible = threading.current_thread() is threading.main_thread()
        self._first = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if self.possible:
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        stopping.withdraw()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._first = signal.Signals(number).name, now
            stopping.request()
            return
        if "TORCHELASTIC_RUN_ID" in os.environ and now - self._first < FORWARDED_WITHIN:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the block, so that temporary files are removed.

    A second SIGTERM ends the process at once.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        sys.exit(128 + number)

    usual = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
