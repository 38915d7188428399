"""Patterns → paths and addresses of shards, and a local cache of remote ones."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from braceexpand import braceexpand

from ssl_vivit.errors import DataError
from ssl_vivit.files import replaced_file

_HOW_TO_PACK = "pack some with: python -m data_prep.clevrer pack --videos VIDEOS --out shards/"


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """Expand patterns to the shards they name, sorted within a pattern, each once.

    Args:
        patterns: paths, directories, globs, brace patterns (``{000000..000009}``) or fsspec
            addresses (``s3://``, ``gs://``, ``https://`` …; no ``*`` over https).

    Raises:
        DataError: if a pattern matches nothing or cannot be used.
    """
    shards: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [shard for part in _braces(pattern) for shard in _expand(part)]
        if not found:
            raise DataError(f"--data.shards {pattern!r} matches no .tar file; {_HOW_TO_PACK}")
        shards.update(dict.fromkeys(found))
    if not shards:
        raise DataError(f"--data.shards names no shards; {_HOW_TO_PACK}")
    return list(shards)


def is_remote(shard: str) -> bool:
    """Whether the address goes through fsspec and the cache."""
    return "://" in shard


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/ssl_vivit/shards``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl_vivit/shards"


def read_remote(address: str) -> bytes | None:
    """The bytes of a small remote file; None if there is none.

    Raises:
        DataError: if the address cannot be reached.
    """
    with _one_line(address):
        filesystem, path = fsspec.core.url_to_fs(address)
        try:
            return filesystem.cat_file(path)
        except FileNotFoundError:
            return None


def cached(address: str, size: int, index: bytes, cache_dir: Path) -> Path:
    """The local copy of a remote shard, fetched once for all processes.

    Args:
        address: of the shard.
        size: of the whole shard, in bytes.
        index: the shard's index; its digest is part of the copy's name, so a shard that was
            packed anew is fetched anew.
        cache_dir: where copies lie.

    Raises:
        DataError: if it cannot be fetched whole.
    """
    digest = hashlib.sha256(address.encode() + b"\0" + index).hexdigest()[:16]
    copy = cache_dir / f"{digest}-{address.rpartition('/')[2]}"
    if _whole(copy, size):
        return copy
    with _one_line(address):
        cache_dir.mkdir(parents=True, exist_ok=True)
        with open(copy.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _whole(copy, size):
                _fetch(address, size, copy)
    return copy


def read_at(handle: int, size: int, offset: int) -> bytes:
    """Read bytes of an open file at a place; fewer where it ends. One ``pread`` gives at most 2 GiB."""
    content = os.pread(handle, size, offset)
    while len(content) < size and (
        more := os.pread(handle, size - len(content), offset + len(content))
    ):
        content += more
    return content


def _fetch(address: str, size: int, copy: Path) -> None:
    filesystem, path = fsspec.core.url_to_fs(address)
    with replaced_file(copy) as part:
        filesystem.get_file(path, str(part))
        fetched = part.stat().st_size
        if fetched != size:
            raise DataError(cut_off(address, fetched, size))


def cut_off(shard: str, found: int, expected: int) -> str:
    """Message for a shard whose size is not the one that its index states."""
    return (
        f"{shard} has {found:,} bytes where its index says {expected:,}: it is cut off or "
        "changed; copy or pack it again"
    )


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn what file systems raise, each in its own way, into one line."""
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"{address} needs a package: {error}; pip install 'ssl_vivit[remote]'"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"no space left for {address}; set --data.cache_dir to a larger disk"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{address} cannot be fetched: {reason}") from error


def _braces(pattern: str) -> list[str]:
    if pattern.startswith("pipe:"):
        raise DataError(
            f"--data.shards {pattern!r}: pipe: would run a command and is never read; "
            "give a path, a glob or an s3://, gs:// or https:// address"
        )
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"--data.shards {pattern!r} has unbalanced braces") from error


def _expand(part: str) -> list[str]:
    part = part.removeprefix("file://")
    if is_remote(part):
        return _expand_remote(part)
    if os.path.isdir(part):
        part = os.path.join(glob.escape(part), "*.tar")
    if glob.has_magic(part):
        return sorted(path for path in glob.glob(part, recursive=True) if path.endswith(".tar"))
    if not os.path.exists(part):
        return []
    if not part.endswith(".tar"):
        raise DataError(f"--data.shards {part!r} is no .tar file; {_HOW_TO_PACK}")
    return [part]


def _expand_remote(part: str) -> list[str]:
    over_http = part.startswith(("http://", "https://"))
    if "*" not in part and (over_http or not glob.has_magic(part)):
        return [part]
    if over_http:
        raise DataError(
            f"--data.shards {part!r}: a web address has no listing to match * against; "
            "write the numbers as {000000..000009}"
        )
    with _one_line(part):
        filesystem, path = fsspec.core.url_to_fs(part)
        found: list[Any] = filesystem.glob(path)
        return sorted(filesystem.unstrip_protocol(p) for p in found if p.endswith(".tar"))
