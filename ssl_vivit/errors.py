"""Errors that a user can mend. Each message is one line that names the setting and the mend."""

from __future__ import annotations


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
    """A video's annotation that tells no labels."""


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


class RunError(UserError, RuntimeError):
    """A training run that cannot go on as asked."""
