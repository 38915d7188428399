"""Reports the first failure of a run of several processes once, with its rank, and ends all.

A process that fails leaves the others waiting for it, for as long as the backend allows. So each
failing process writes to the store by which the processes found each other. The first to write
shows its error; a thread in each process reads the store once a second and ends its process.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import distributed

# torch is imported where it is used, so that --help need not wait for it.

_KEY = "ssl_vivit/first_failure"

# Seconds that a process has to end by itself after a failure, with its traceback or by its launcher.
_GRACE = 5.0

# Seconds after which a process ends whose store is gone, which is when rank 0 has ended.
_GRACE_WITHOUT_STORE = 60.0

# Of the message that gloo raises when a process that it waits for has ended.
_LOST_PEER = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")

_watched = False

# Set by the thread once it has read that a process has failed.
_failed = threading.Event()

# Set when this process ends.
_ending = threading.Event()


def watch() -> None:
    """Watch for failures of the other processes; without other processes, do nothing.

    Every process calls it once the processes are joined; further calls do nothing.
    """
    import torch.distributed as dist

    global _watched
    if _watched or not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_world_size() == 1:
        return
    _watched = True
    # A connection of its own, since the main thread may be waiting on the other one. There is no
    # public function for the store.
    store = dist.distributed_c10d._get_default_store().clone()
    thread = threading.Thread(target=_end_after_failure, args=(store,), daemon=True)
    thread.start()
    atexit.register(_end_watch, thread)
    previous = sys.excepthook

    def show_first(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not is_first():
            return
        lost = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _LOST_PEER)
        if not lost:
            print(f"error{where()}:", file=sys.stderr)
            previous(kind, error, traceback)
            return
        print(
            f"error{where()}: another process cannot be reached any more: it was killed, for lack of "
            "memory perhaps, or its machine is gone; continue with --resume auto",
            file=sys.stderr,
            flush=True,
        )

    sys.excepthook = show_first


def is_first(rank: int | None = None) -> bool:
    """Tell the other processes that this one fails; return whether none has failed before.

    Always true in a run of one process.

    Args:
        rank: of the process in which the error arose, where several processes raise it; None is
            this one.
    """
    if not _watched:
        return True
    import torch.distributed as dist

    own = dist.get_rank()
    if own != (rank or 0):
        # The process in which it arose is first, or rank 0 with an error that all have.
        time.sleep(0.5)
    try:
        store = dist.distributed_c10d._get_default_store()
        first = store.compare_set(_KEY, "", str(own)).decode() == str(own)
    except RuntimeError:  # rank 0, which holds the store, has ended
        return not _failed.is_set()
    if first and own == 0:
        # The store ends with this process; before that the others read that it has failed.
        time.sleep(2)
    return first


def where(rank: int | None = None) -> str:
    """Return " on rank 1 of 4" in a run of several processes, or nothing.

    Args:
        rank: as of :func:`is_first`.
    """
    if not _watched:
        return ""
    import torch.distributed as dist

    return f" on rank {dist.get_rank() if rank is None else rank} of {dist.get_world_size()}"


def _end_watch(thread: threading.Thread) -> None:
    """End the thread before the interpreter ends.

    A thread that returns from the store to an interpreter that is ending aborts the process.
    """
    _ending.set()
    if not _failed.is_set():
        thread.join(timeout=2)


def _end_after_failure(store: distributed.Store) -> None:
    """End this process some seconds after any process has failed."""
    while not _ending.wait(1):
        try:
            failed = store.check([_KEY])
        except RuntimeError:
            if _ending.wait(_GRACE_WITHOUT_STORE):
                return
            break
        if failed:
            _failed.set()
            time.sleep(_GRACE)
            break
    else:
        return
    # The main thread may wait within the backend, where no exception reaches it.
    os._exit(1)
