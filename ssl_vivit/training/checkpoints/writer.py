"""Write checkpoints on a background thread while training continues."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class CheckpointWriter:
    """Writes one checkpoint at a time on a background thread.

    An error of the thread is raised once, by :meth:`raise_failure` or :meth:`join`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._write: Future[str] | None = None

    def start(self, write: Callable[[], str]) -> None:
        """Begin to write a checkpoint.

        Args:
            write: function that writes the checkpoint and returns its path. It must not read
                objects that training changes.

        Raises:
            RuntimeError: if :meth:`join` was not called after the previous checkpoint.
        """
        if self._write is not None:
            raise RuntimeError("a checkpoint is being written; call join() before start()")
        self._write = self._thread.submit(write)

    def join(self) -> str | None:
        """Wait until the checkpoint is written.

        Returns:
            The path of the checkpoint; None if none was begun since the last call.

        Raises:
            Exception: the error that ``write`` raised.
        """
        write, self._write = self._write, None
        return None if write is None else write.result()

    def raise_failure(self) -> None:
        """Raise the error of ``write`` if it has failed already; do not wait for it."""
        if self._write is not None and self._write.done() and self._write.exception():
            self.join()

    def close(self) -> None:
        """Wait for the current checkpoint, and end the thread."""
        try:
            self.join()
        finally:
            self._thread.shutdown()
