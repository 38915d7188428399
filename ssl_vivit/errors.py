"""Errors that a user can fix. Each message is one line that names the setting and the fix."""

from __future__ import annotations

from os import PathLike


class UserError(Exception):
    """Base class. Commands print its message as one line, without a traceback.

    Attributes:
        rank: of the process in which the error arose, where all processes raise it; None is the
            process that raises it.
    """

    rank: int | None = None


class DataError(UserError, ValueError):
    """Data that cannot be used as given."""


class AnnotationError(DataError):
    """A video's annotation from which no labels can be read."""


class SessionError(DataError):
    """A recording that cannot be used as given."""


class DecodingError(UserError, RuntimeError):
    """A video that cannot be decoded."""


class ExportError(UserError, ValueError):
    """An exported directory that cannot be written, read or trusted."""


class HubError(ExportError):
    """A hub that cannot be reached or refuses."""


class NeuralModelError(UserError, ValueError):
    """A model of neurons whose parts, settings or inputs do not fit each other."""


class WriteError(UserError, OSError):
    """A file or directory that the file system does not take, such as on a full disk.

    ``errno`` and ``strerror`` are those of the file system.

    Args:
        path: what was to be written.
        number: ``errno``.
        reason: ``strerror``.
    """

    def __init__(self, path: str | PathLike[str], number: int, reason: str) -> None:
        super().__init__(number, reason, str(path))
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be written: {self.strerror}; what was there before is unchanged. "
            "Fix that and run the command again"
        )


class RunError(UserError, RuntimeError):
    """A training run that cannot go on as asked."""
