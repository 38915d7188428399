"""Write output files: one-line errors, atomic pictures, one set of settings per folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.command_line import option
from ssl_vivit.errors import DataError
from ssl_vivit.files import replaced_file


@contextmanager
def picture_file(argument: str, path: str | Path) -> Iterator[Path]:
    """Yield a temporary file to save a picture to; it is renamed to ``path`` after the block.

    Raises:
        DataError: if the picture cannot be written.
    """
    with writing(f"{argument} {path}"), replaced_file(path) as part:
        yield part


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Convert errors of the file system to a one-line DataError.

    Args:
        what: the option that names the output, such as "--out DIR".

    Raises:
        DataError: if writing fails; the message gives ``what``, the file and the reason.
    """
    try:
        yield
    except OSError as error:
        file = error.filename2 or error.filename
        where = f"{what}: {file}" if file else what
        raise DataError(f"{where} cannot be written: {error.strerror or error}") from error


def refuse_other_settings(
    what: str, before: Mapping[str, Any], now: Mapping[str, Any], fix: str
) -> None:
    """Raise if existing output was made with other settings.

    Args:
        what: start of the message, such as "--out DIR contains videos rendered".
        before: saved settings by name.
        now: current settings by name.
        fix: what to do instead, for the message.

    Raises:
        DataError: if a setting differs; the message names the option of the first such setting.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise DataError(
                f"{what} with {option(name)} {_words(before.get(name))}, but it is now "
                f"{_words(value)}; {fix}"
            )


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)
