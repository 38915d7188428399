"""Files that cannot be written: one line that names the option; and pictures that appear whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_vivit.errors import DataError
from ssl_vivit.files import replaced_file


@contextmanager
def picture_file(option: str, path: str | Path) -> Iterator[Path]:
    """Yield a file to save a picture to, which takes its name when it is whole.

    Raises:
        DataError: if it cannot be written.
    """
    with writing(f"{option} {path}"), replaced_file(path) as part:
        yield part


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Make one line of what the file system refuses.

    Args:
        what: is written, such as "--out DIR".

    Raises:
        DataError: that names it, the file and the reason.
    """
    try:
        yield
    except OSError as error:
        file = error.filename2 or error.filename
        where = f"{what}: {file}" if file else what
        raise DataError(f"{where} cannot be written: {error.strerror or error}") from error
