"""Worker processes that start anew, and that end with the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import Any

from ssl_vivit.errors import DataError


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_workers(
    work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Any]]:
    """Call ``work(*job)`` for every job in processes, and yield (place of the job, result) as done.

    Processes are spawned, not forked: the caller may have threads (torch's, say), and they do not
    survive a fork.

    Raises:
        DataError: if a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker)
    try:
        futures = {pool.submit(work, *job): place for place, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed (was memory short?); the same command with fewer "
            "--workers goes on where it stopped"
        ) from None
    except (KeyboardInterrupt, GeneratorExit):
        # Ctrl-C came here or while the caller had the result. Workers remove what is half-written.
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        # Once: a second call, as the end of a `with` makes, would forget that the rest is cancelled.
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent; end cleanly on SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
