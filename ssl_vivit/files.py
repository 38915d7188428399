"""Files and directories that appear whole or not at all, and JSON in them."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Yield a file beside ``path`` to write to, which takes the name ``path`` when the block ends.

    After an error the file beside it is removed and an older file of that name is unchanged. Its own
    name is unique, as several processes may write one file; what killed processes of this machine
    left there is removed.

    Args:
        path: the file; its parents are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = f".{path.name}.{platform.node()}-"
    part = path.with_name(f"{beside}{os.getpid()}-{secrets.token_hex(4)}.part")
    for left in path.parent.iterdir():
        if left.name.startswith(beside) and left.suffix == ".part":
            pid = left.name.removeprefix(beside).split("-")[0]
            if pid.isdecimal() and not _is_alive(int(pid)):
                left.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replaced_file(path) as part:
        part.write_text(text)


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def replaced_directory(directory: str | Path, own: Collection[str] = ()) -> Iterator[Path]:
    """Yield a new directory to write in, which takes its place when the block ends without an error.

    Args:
        directory: the place. A link's target is replaced, not the link.
        own: names that are removed with an older directory although the new one lacks them. Other
            entries of an older directory stay.
    """
    directory = Path(directory).resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield staging
        _as_readable_as_usual(staging)
        _exchange(staging, directory, own)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _as_readable_as_usual(staging: Path) -> None:
    """Undo that safetensors and tempfile make what they write private, whatever the umask says."""
    staging.chmod(0o755)
    usual = next((file for file in staging.iterdir() if file.suffix in (".json", ".md")), None)
    for file in staging.glob("*.safetensors"):
        if usual is not None:
            shutil.copymode(usual, file)


def _exchange(new: Path, directory: Path, own: Collection[str]) -> None:
    if not directory.exists():
        os.rename(new, directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}-old-", dir=directory.parent))
    os.rename(directory, old)
    try:
        os.rename(new, directory)
    except BaseException:
        os.rename(old, directory)
        raise
    for entry in old.iterdir():
        if entry.name not in own and not (directory / entry.name).exists():
            os.rename(entry, directory / entry.name)
    shutil.rmtree(old)
