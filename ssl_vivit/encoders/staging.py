"""Exports as directories that stand whole or not at all, and never replace what is no export."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_export_place(directory: str | Path, config: str, holds: str, what: str) -> None:
    """Refuse a place where no export can be made without harm.

    Args:
        directory: the place; a missing or empty one is free.
        config: name of the JSON file that every export has.
        holds: what that file has in an older export of the same kind, beside ``format``.
        what: what the message calls such an export.

    Raises:
        ValueError: if something stands there that is no such export, or nothing can be written
            there.
    """
    place = Path(directory).resolve()
    parent = next((folder for folder in place.parents if folder.exists()), place)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(
            f"{directory} cannot be made in {parent}; give a directory that can be written"
        )
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        saved = json.loads((place / config).read_text())
        exported = isinstance(saved, dict) and holds in saved and "format" in saved
    except (OSError, ValueError):
        exported = False
    if not exported:
        raise ValueError(f"{directory} exists and is no {what}; give a new directory")


@contextmanager
def staged(directory: Path, own: Sequence[str]) -> Iterator[Path]:
    """A new directory to write in, which takes its place when the block ends without an error.

    Args:
        directory: the place. What a link points to is replaced, not the link.
        own: names that an export may have. Other things in an older export of that place stay.
    """
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield staging
        # safetensors and tempfile make what they write private, whatever the umask says.
        readable = next(staging.glob("*.json"))
        for file in staging.glob("*.safetensors"):
            shutil.copymode(readable, file)
        staging.chmod(0o755)
        _replace(staging, directory, own)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(new: Path, directory: Path, own: Sequence[str]) -> None:
    if not directory.exists():
        os.rename(new, directory)
        return
    old = directory.with_name(f".{directory.name}-old-{os.getpid()}")
    os.rename(directory, old)
    try:
        os.rename(new, directory)
    except BaseException:
        os.rename(old, directory)
        raise
    for entry in old.iterdir():
        if entry.name not in own:
            os.rename(entry, directory / entry.name)
    shutil.rmtree(old)
