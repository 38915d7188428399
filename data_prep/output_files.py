"""Output of commands: errors as one line, pictures whole, no settings mixed in one folder."""

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
    """Yield a file to save a picture to, which takes its name when it is whole.

    Raises:
        DataError: if it cannot be written.
    """
    with writing(f"{argument} {path}"), replaced_file(path) as part:
        yield part


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn errors of the file system into one line.

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


def refuse_other_settings(
    what: str, before: Mapping[str, Any], now: Mapping[str, Any], mend: str
) -> None:
    """Refuse to add to what was made with other settings.

    Args:
        what: was made, such as "--out DIR holds videos rendered".
        before: settings by name, as they were saved.
        now: settings by name.
        mend: what may be done instead.

    Raises:
        DataError: that names the option of the first setting that differs.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise DataError(
                f"{what} with {option(name)} {_words(before.get(name))}, now {_words(value)}; {mend}"
            )


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
