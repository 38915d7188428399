"""Worker processes that start anew, and that end with the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

from ssl_vivit.errors import DataError
from ssl_vivit.files import remove_unfinished

_ANSWERED_BY_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_workers(
    work: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    done: Callable[[int], object] = lambda place: None,
) -> list[Any]:
    """Call ``work(*job)`` for every job in processes.

    Processes are spawned, not forked: the caller may have threads (torch's, say), and they do not
    survive a fork. They end with this call, also after an exception, and when this process is
    killed: each holds one end of a pipe, and ends when the other end is closed. An exception that
    could leave a process half-changed is never raised in them.

    Args:
        work: a function of a module.
        jobs: its arguments, for each call.
        workers: processes at most.
        done: called with the place of each job that is done.

    Returns:
        Results in the order of the jobs.

    Raises:
        DataError: if a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), context, initializer=_start_worker, initargs=(theirs,)
    )
    try:
        with _signals_held():
            futures = {pool.submit(work, *job): place for place, job in enumerate(jobs)}
        for future in as_completed(futures):
            future.result()
            done(futures[future])
        pool.shutdown()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed (was memory short?); the same command with fewer "
            "--workers goes on where it stopped"
        ) from None
    finally:
        ours.close()
        theirs.close()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals to the process group for processes started here, for as long as they live.

    The parent answers them. It gets those of the meantime when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ANSWERED_BY_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: Connection) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed; the pipe carries no data."""
    with suppress(EOFError, OSError):
        parent.recv_bytes()
    remove_unfinished()
    os._exit(1)
