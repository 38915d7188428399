"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1: finish the step, save, end. A second one: end now."""

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

# torchrun passes on to every worker the SIGTERM that a process group has already delivered to it.
FORWARDED_WITHIN = 2.0


class Interruption:
    """Context manager that records a request to stop, which then does not end the process.

    Attributes:
        received: name of the first signal, None as long as there was none.
        possible: whether requests are noted: not outside of the main thread.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        # Python allows signal handlers in the main thread alone; elsewhere signals keep their meaning.
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
    """Let SIGTERM end the block by an exception, so that temporary files are removed.

    A second one ends the process at once.
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
