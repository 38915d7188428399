"""Patterns → paths and addresses of shards, and a local cache of remote ones."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from braceexpand import braceexpand

from ssl_vivit.data.downloading import fetch
from ssl_vivit.data.video.shards.turns import turn_to_fetch
from ssl_vivit.errors import DataError
from ssl_vivit.files import remove_older, temporary_beside

Look = Callable[[], object]
Damaged = Callable[[Path, Look], str | None]

# Seconds after which a temporary file is no download's any more, of whatever machine.
_ABANDONED = 86_400.0
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
    """Return whether a shard is read through fsspec and the cache."""
    return "://" in shard


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/ssl_vivit/shards``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl_vivit/shards"


def read_remote(address: str, stall_timeout: float) -> bytes | None:
    """The bytes of a small remote file; None if there is none.

    Args:
        address: of the file.
        stall_timeout: seconds, as of :func:`~ssl_vivit.data.downloading.fetch`.

    Raises:
        DataError: if it cannot be fetched.
    """
    content = io.BytesIO()
    with _one_line(address):
        try:
            fetch(address, content, stall_timeout=stall_timeout)
        except FileNotFoundError:
            return None
    return content.getvalue()


@dataclass(frozen=True)
class RemoteShard:
    """A remote shard and its local copy, fetched once for all processes.

    Args:
        address: of the shard.
        copy: path of the copy.
        size: of the shard, in bytes.
        stall_timeout: seconds, as of :func:`~ssl_vivit.data.downloading.fetch`.
    """

    address: str
    copy: Path
    size: int
    stall_timeout: float

    @classmethod
    def beside_index(
        cls, address: str, size: int, index: bytes, cache_dir: Path, stall_timeout: float
    ) -> RemoteShard:
        """Name the copy by address and index, so that a shard packed anew is fetched anew."""
        digest = hashlib.sha256(address.encode() + b"\0" + index).hexdigest()[:16]
        return cls(
            address, cache_dir / f"{digest}-{address.rpartition('/')[2]}", size, stall_timeout
        )

    def local(self, damaged: Damaged, *, renew: bool = False) -> Path:
        """Path of the copy, which is made where it is missing.

        Args:
            damaged: of a file and a function to be called several times a second: names a sample
                whose bytes in the file are not those of the index; None if there is none.
            renew: fetch it again if it is damaged.

        Raises:
            DataError: if it cannot be fetched, or what is fetched is damaged.
        """
        if self._is_whole() and not renew:
            return self.copy
        with _one_line(self.address):
            self.copy.parent.mkdir(parents=True, exist_ok=True)
            with turn_to_fetch(self.copy, self.stall_timeout) as look:
                if not self._is_whole() or (renew and damaged(self.copy, look)):
                    self._fetch(damaged, look)
        return self.copy

    def _is_whole(self) -> bool:
        return self.copy.is_file() and self.copy.stat().st_size == self.size

    def _fetch(self, damaged: Damaged, look: Look) -> None:
        remove_older(self.copy.parent, _ABANDONED)
        with temporary_beside(self.copy) as part:
            # Where a server names no versions, bytes of two of them may have come together at first.
            for _ in range(2):
                with open(part, "wb") as file:
                    fetch(
                        self.address,
                        file,
                        size=self.size,
                        stall_timeout=self.stall_timeout,
                        look=look,
                    )
                found = damaged(part, look)
                if found is None:
                    os.replace(part, self.copy)
                    return
        raise DataError(
            f"{self.address}: the bytes of {found} differ from the index: the shard was changed or "
            "damaged; upload the shard and its index again"
        )


def read_at(handle: int, size: int, offset: int) -> bytes:
    """Read bytes of an open file at a place; fewer where it ends. One ``pread`` gives at most 2 GiB."""
    content = os.pread(handle, size, offset)
    while len(content) < size and (
        more := os.pread(handle, size - len(content), offset + len(content))
    ):
        content += more
    return content


def cut_off(shard: str, found: int, expected: int) -> str:
    """Message for a shard whose size is not the one that its index states."""
    return (
        f"{shard} has {found:,} bytes where its index says {expected:,}: it is cut off or "
        "changed; copy or pack it again"
    )


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn the errors of file systems into one line."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{address} is not there: {error}; check --data.shards") from error
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
        raise DataError(
            f"{address} cannot be fetched: {reason}; check the address and the right to read it"
        ) from error


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
