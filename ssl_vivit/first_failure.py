"""Report the first failure of a run of several processes, with its rank, and end all processes.

When a process fails, the others wait for it until the backend's timeout. Each failing process
therefore writes to the store of the process group. Only the first one to write prints its error.
A thread in each process reads the store once a second and ends the process after a failure.
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

# torch is imported inside functions, so that --help does not load it.

_KEY = "ssl_vivit/first_failure"

# Seconds from a failure until the thread ends its process. Before that, the process may end by
# itself or be ended by its launcher.
_GRACE = 5.0

# Seconds from the end of rank 0, which holds the store, until the thread ends its process.
_GRACE_WITHOUT_STORE = 60.0

# Parts of the message that gloo raises when a process that it waits for has ended.
_LOST_PEER = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")

_watched = False

# Set by the thread once it has read that a process has failed.
_failed = threading.Event()

# Set when this process ends.
_ending = threading.Event()


def watch() -> None:
    """Watch for failures of the other processes; do nothing in a run of one process.

    Every process must call this after the process group is initialised. Further calls do nothing.
    """
    import torch.distributed as dist

    global _watched
    if _watched or not (dist.is_available() and dist.is_initialized()):
        return
    if dist.get_world_size() == 1:
        return
    _watched = True
    # The thread needs its own connection, since the main thread may be waiting on the first one.
    # torch has no public function that returns the store.
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
            f"error{where()}: another process cannot be reached: it was killed, perhaps for lack "
            "of memory, or its machine has failed; continue with --resume auto",
            file=sys.stderr,
            flush=True,
        )

    sys.excepthook = show_first


def is_first(rank: int | None = None) -> bool:
    """Announce the failure of this process; return whether it is the first failure of the run.

    The result is always True in a run of one process.

    Args:
        rank: rank of the process in which the error arose, if several processes raise it. None
            means this process.
    """
    if not _watched:
        return True
    import torch.distributed as dist

    own = dist.get_rank()
    if own != (rank or 0):
        # Let the process in which the error arose write first, or rank 0 if all have the error.
        time.sleep(0.5)
    try:
        store = dist.distributed_c10d._get_default_store()
        first = store.compare_set(_KEY, "", str(own)).decode() == str(own)
    except RuntimeError:  # rank 0, which holds the store, has ended
        return not _failed.is_set()
    if first and own == 0:
        # The store ends with this process. Give the other processes time to read the failure.
        time.sleep(2)
    return first


def where(rank: int | None = None) -> str:
    """Return a text like " on rank 1 of 4", or "" in a run of one process.

    Args:
        rank: the rank to name. None means the rank of this process.
    """
    if not _watched:
        return ""
    import torch.distributed as dist

    return f" on rank {dist.get_rank() if rank is None else rank} of {dist.get_world_size()}"


def _end_watch(thread: threading.Thread) -> None:
    """End the watching thread before the interpreter ends.

    If the thread returned from a call of the store while the interpreter ends, Python would abort.
    """
    _ending.set()
    if not _failed.is_set():
        thread.join(timeout=2)


def _end_after_failure(store: distributed.Store) -> None:
    """End this process :data:`_GRACE` seconds after any process has failed."""
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
    # The main thread may be waiting inside the backend, where an exception would not reach it.
    os._exit(1)
