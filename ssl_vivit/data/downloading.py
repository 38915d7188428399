"""Downloads that recover from broken, stalled or refused connections.

- An attempt is given up if no data arrives for some seconds, in any phase: name lookup, handshake,
  headers or body.
- The next attempt follows after a pause, which grows, and continues at the byte that was reached. A
  file that has changed in between (ETag or Last-Modified, size) is downloaded from the start.
- A request to stop ends a download within half a second; see :mod:`ssl_vivit.data.stopping`.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import BinaryIO

from ssl_vivit.data import stopping
from ssl_vivit.data.remote_files import Body, Changed, Opener, is_final, opener_of
from ssl_vivit.errors import DataError

logger = logging.getLogger(__name__)

STALL_TIMEOUT = 30.0
# Number of successive attempts without new data after which a download fails.
_ATTEMPTS = 4
# Seconds before the second attempt. Each further pause is twice as long as the pause before it.
_FIRST_PAUSE = 1.0
# Longest wait in seconds that a server may request.
_LONGEST_PAUSE = 60.0
# A separate generator, so that pauses do not change the random numbers of a run.
_jitter = random.SystemRandom()


def fetch(
    address: str,
    file: BinaryIO,
    *,
    size: int | None = None,
    stall_timeout: float = STALL_TIMEOUT,
    look: Callable[[], object] = stopping.check,
) -> None:
    """Download a remote file into ``file``.

    Args:
        address: address of the file; see :func:`~ssl_vivit.data.remote_files.opener_of`.
        file: file that is open for writing. Its content is replaced.
        size: expected size of the file in bytes. None means the size that the server reports.
        stall_timeout: seconds without data after which an attempt fails.
        look: function that is called several times a second. It may raise to end the download.

    Raises:
        FileNotFoundError: if the remote file does not exist.
        DataError: if the complete file cannot be downloaded; the message says what to do.
    """
    opener = opener_of(address, stall_timeout)
    _empty(file)
    version: str | None = None
    furthest, failures = 0, 0
    while True:
        wait, total = 0.0, size
        try:
            with closing(_received(opener, file.tell(), version, stall_timeout, look)) as arrivals:
                for arrival in arrivals:
                    if isinstance(arrival, bytes):
                        file.write(arrival)
                        _refuse_other_size(address, max(file.tell(), size or 0), size)
                        continue
                    _refuse_other_size(address, arrival.total, size)
                    version, total = arrival.version, arrival.total if size is None else size
                    if arrival.start != file.tell():
                        _empty(file)
            if total is None or file.tell() == total:
                return
            reason = f"the connection ended at {file.tell():,} of {total:,} bytes"
        except _AttemptFailed as broken:
            reason, wait = str(broken), broken.wait
            if broken.changed:
                _empty(file)
                version = None
        failures = 1 if file.tell() > furthest else failures + 1
        furthest = max(furthest, file.tell())
        if failures >= _ATTEMPTS or wait > _LONGEST_PAUSE:
            later = f" (retry after {wait:,.0f} s)" if wait > _LONGEST_PAUSE else ""
            times = f", {failures} times in a row" if failures > 1 else ""
            raise DataError(
                f"{address} cannot be downloaded: {reason}{later}{times}; check the server and the "
                "network, then run the command again"
            )
        pause = max(wait, _FIRST_PAUSE * 2 ** (failures - 1) * _jitter.uniform(0.5, 1.0))
        logger.warning("%s: %s; next attempt in %.1f s", address, reason, pause)
        stopping.sleep(pause, look)


def _refuse_other_size(address: str, found: int | None, size: int | None) -> None:
    if None not in (found, size) and found != size:
        raise DataError(
            f"{address} has {found:,} bytes, but its index says {size:,}: it is truncated or was "
            "changed; upload the shard and its index again"
        )


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


class _AttemptFailed(Exception):
    """Raised if an attempt to download fails and another attempt may succeed."""

    def __init__(self, reason: str, wait: float = 0.0, changed: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.changed = wait, changed


def _received(
    opener: Opener,
    start: int,
    version: str | None,
    stall_timeout: float,
    look: Callable[[], object],
) -> Generator[Body | bytes, None, None]:
    """Yield the :class:`Body` of a response, then its bytes.

    A separate thread receives the response, since some waits cannot be interrupted, such as the
    wait for a name server. Closing the iterator does not wait for the end of this thread.
    """
    arrivals: queue.Queue[Body | bytes | Exception | None] = queue.Queue(maxsize=4)
    left = threading.Event()

    def put(arrival: Body | bytes | Exception | None) -> None:
        while not left.is_set():
            try:
                return arrivals.put(arrival, timeout=stopping.INTERVAL)
            except queue.Full:
                continue

    def receive() -> None:
        try:
            with opener(start, version) as body:
                put(body)
                for piece in body.pieces:
                    put(piece)
                    if left.is_set():
                        return
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=receive, daemon=True).start()
    try:
        last = time.monotonic()
        while True:
            look()
            try:
                arrival = arrivals.get(timeout=min(stopping.INTERVAL, stall_timeout))
            except queue.Empty:
                if time.monotonic() - last >= stall_timeout:
                    raise _AttemptFailed(_stall_message(stall_timeout)) from None
                continue
            if arrival is None:
                return
            if isinstance(arrival, Exception):
                if is_final(arrival):
                    raise arrival
                raise _AttemptFailed(
                    _reason(arrival, stall_timeout),
                    getattr(arrival, "wait", 0.0),
                    isinstance(arrival, Changed),
                )
            yield arrival
            last = time.monotonic()
    finally:
        left.set()


def _reason(error: Exception, stall_timeout: float) -> str:
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, TimeoutError):
        return _stall_message(stall_timeout)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _stall_message(seconds: float) -> str:
    return f"no data arrived for {seconds:g} s (stall_timeout)"
