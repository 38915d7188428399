"""A pool of spawned worker processes that end with the command."""

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
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_workers(
    work: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    done: Callable[[int], object] = lambda place: None,
) -> list[Any]:
    """Call ``work(*job)`` for every job in worker processes.

    Processes are spawned, not forked, since threads of the caller (such as torch's) do not survive
    a fork. Workers end with this call, also after an exception or if this process is killed: each
    worker waits on a pipe and ends when this process has closed its end. Workers do not receive
    signals.

    Args:
        work: a function of a module.
        jobs: arguments of each call.
        workers: largest number of processes.
        done: called with the index of each finished job.

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
            "a worker process was killed, possibly for lack of memory; run the command again with "
            "fewer --workers to continue"
        ) from None
    finally:
        ours.close()
        theirs.close()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals in processes that are started in the block, for their whole life.

    The parent handles signals. Signals that arrive during the block reach the parent after it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ANSWERED_BY_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: Connection) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed. The pipe carries no data."""
    with suppress(EOFError, OSError):
        parent.recv_bytes()
    remove_unfinished()
    os._exit(1)
