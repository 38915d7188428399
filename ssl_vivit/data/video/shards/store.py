"""Find shards by patterns, and keep a local cache of remote shards."""

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

# Age in seconds above which a temporary file does not belong to a running download.
_ABANDONED = 86_400.0
_HOW_TO_PACK = "pack shards with: python -m data_prep.clevrer pack --videos VIDEOS --out shards/"


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """Expand patterns to shards, sorted within each pattern, without duplicates.

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
    """Return whether a shard is remote, so that it is read through the cache."""
    return "://" in shard


def default_cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/ssl_vivit/shards``, or ``~/.cache/…`` if it is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssl_vivit/shards"


def read_remote(address: str, stall_timeout: float) -> bytes | None:
    """Return the bytes of a small remote file; None if the file does not exist.

    Args:
        address: address of the file.
        stall_timeout: seconds without data after which an attempt to download fails.

    Raises:
        DataError: if the file cannot be downloaded.
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
    """A remote shard and its local copy, which is downloaded once for all processes.

    Args:
        address: address of the shard.
        copy: path of the copy.
        size: size of the shard in bytes.
        stall_timeout: seconds without data after which an attempt to download fails.
    """

    address: str
    copy: Path
    size: int
    stall_timeout: float

    @classmethod
    def beside_index(
        cls, address: str, size: int, index: bytes, cache_dir: Path, stall_timeout: float
    ) -> RemoteShard:
        """Create a RemoteShard whose copy is named by a hash of the address and of the index.

        Args:
            address: address of the shard.
            size: size of the shard in bytes.
            index: bytes of the shard's index.
            cache_dir: directory of the copy.
            stall_timeout: seconds without data after which an attempt to download fails.
        """
        digest = hashlib.sha256(address.encode() + b"\0" + index).hexdigest()[:16]
        return cls(
            address, cache_dir / f"{digest}-{address.rpartition('/')[2]}", size, stall_timeout
        )

    def local(self, damaged: Damaged, *, renew: bool = False) -> Path:
        """Return the path of the copy; download it if it is missing.

        Args:
            damaged: function (file, look) that checks a downloaded copy. It returns the name of a
                sample whose bytes differ from the index, or None. It must call its argument
                ``look`` several times a second.
            renew: whether to download the copy again if it is damaged.

        Raises:
            DataError: if the shard cannot be downloaded, or the downloaded shard is damaged.
        """
        if self._is_complete() and not renew:
            return self.copy
        with _one_line(self.address):
            self.copy.parent.mkdir(parents=True, exist_ok=True)
            with turn_to_fetch(self.copy, self.stall_timeout) as look:
                if not self._is_complete() or (renew and damaged(self.copy, look)):
                    self._fetch(damaged, look)
        return self.copy

    def _is_complete(self) -> bool:
        return self.copy.is_file() and self.copy.stat().st_size == self.size

    def _fetch(self, damaged: Damaged, look: Look) -> None:
        remove_older(self.copy.parent, _ABANDONED)
        with temporary_beside(self.copy) as part:
            # Try twice: if the server gives no versions, a resumed download may mix two versions.
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
    """Read ``size`` bytes at an offset, or fewer at the end of the file.

    A single ``pread`` would read at most 2 GiB.
    """
    content = os.pread(handle, size, offset)
    while len(content) < size and (
        more := os.pread(handle, size - len(content), offset + len(content))
    ):
        content += more
    return content


def cut_off(shard: str, found: int, expected: int) -> str:
    """Return the message for a shard whose size differs from the size in its index."""
    return (
        f"{shard} has {found:,} bytes, but its index says {expected:,}: it is truncated or was "
        "changed; copy or pack it again"
    )


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn errors that the block raises into a DataError with a message in one line."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{address} does not exist: {error}; check --data.shards") from error
    except ImportError as error:
        raise DataError(
            f"{address} needs a missing package: {error}; run pip install 'ssl_vivit[remote]'"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(
                f"no space left for a copy of {address}; set --data.cache_dir to a directory on a "
                "larger disk"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{address} cannot be downloaded: {reason}; check the address and the permission to "
            "read it"
        ) from error


def _braces(pattern: str) -> list[str]:
    if pattern.startswith("pipe:"):
        raise DataError(
            f"--data.shards {pattern!r}: commands (pipe:) are not supported; "
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
        raise DataError(f"--data.shards {part!r} is not a .tar file; {_HOW_TO_PACK}")
    return [part]


def _expand_remote(part: str) -> list[str]:
    over_http = part.startswith(("http://", "https://"))
    if "*" not in part and (over_http or not glob.has_magic(part)):
        return [part]
    if over_http:
        raise DataError(
            f"--data.shards {part!r}: wildcards are not supported over http and https; "
            "write the numbers as {000000..000009}"
        )
    with _one_line(part):
        filesystem, path = fsspec.core.url_to_fs(part)
        found: list[Any] = filesystem.glob(path)
        return sorted(filesystem.unstrip_protocol(p) for p in found if p.endswith(".tar"))
