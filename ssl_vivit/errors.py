"""Errors that a user can fix. Each message is one line that names the setting and the fix."""

from __future__ import annotations

from os import PathLike

# Longest message in characters. A message may quote the content of a damaged file.
_LONGEST = 2000


class UserError(Exception):
    """Base class of errors that a user can fix; commands print the message without a traceback.

    The message is one line of at most 2,000 characters. Line breaks become spaces, other control
    characters are escaped, and the middle of a longer message is left out.

    Attributes:
        rank: rank of the process in which the error arose, if all processes raise it. None means
            the process that raises it.
    """

    rank: int | None = None

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Return a text as one printable line of limited length; see :class:`UserError`."""
    if not text.isprintable():
        text = " ".join(part for part in text.splitlines() if part.strip())
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 500]} … {text[-497:]}"
    return text


class DataError(UserError, ValueError):
    """Raised for data that cannot be used as given."""


class AnnotationError(DataError):
    """Raised if no labels can be read from a video's annotation."""


class SessionError(DataError):
    """Raised for a recording that cannot be used as given."""


class DecodingError(UserError, RuntimeError):
    """Raised for a video that cannot be decoded."""


class ExportError(UserError, ValueError):
    """Raised if a model, or weights of another program, cannot be exported or loaded safely."""


class HubError(ExportError):
    """Raised if a model hub cannot be reached or refuses a request."""


class NeuralModelError(UserError, ValueError):
    """Raised if modules, settings or inputs of a model of neurons do not fit each other."""


class MissingError(UserError, FileNotFoundError):
    """Raised for a file or directory that does not exist."""


class WriteError(UserError, OSError):
    """Raised if the file system refuses to write a file or directory, such as on a full disk.

    Args:
        path: the file or directory that was to be written.
        number: ``errno`` of the file system's error.
        reason: ``strerror`` of the file system's error.
    """

    def __init__(self, path: str | PathLike[str], number: int, reason: str) -> None:
        super().__init__(number, reason, str(path))
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be written: {self.strerror}; its earlier content is unchanged. "
            "Fix the cause and run the command again"
        )


class RunError(UserError, RuntimeError):
    """Raised for a training run that cannot start or continue as requested."""
