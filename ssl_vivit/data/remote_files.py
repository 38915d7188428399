"""Remote files as streams of bytes from an offset on: over HTTP, or by a file system of fsspec."""

from __future__ import annotations

import base64
import email.utils
import functools
import http.client
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

_PIECE = 1 << 20
# Object stores count as silent until a range is complete, so ranges are small.
_RANGE = 1 << 22
# Request timeout, too early, too many requests, and errors of servers that pass.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Body:
    """Bytes of a remote file, as they arrive.

    Attributes:
        start: offset of the first one: the one asked for, or 0.
        total: size of the whole file; None if it is not told.
        version: what tells this version of the file from others; None if it is not told.
        pieces: the bytes. They may end early, with or without an error.
    """

    start: int
    total: int | None
    version: str | None
    pieces: Iterator[bytes]


class Changed(OSError):
    """The file is no longer the one whose first bytes were fetched before."""


class Refused(OSError):
    """An answer that another attempt would not change."""


class Unavailable(OSError):
    """An answer that another attempt may change.

    Args:
        reason: a line.
        wait: seconds after which the server asks to come back.
    """

    def __init__(self, reason: str, wait: float) -> None:
        super().__init__(reason)
        self.wait = wait


Opener = Callable[[int, str | None], AbstractContextManager[Body]]


def opener_of(address: str, timeout: float) -> Opener:
    """A function that opens a remote file at an offset.

    It takes the offset and the version of the bytes before it. The file comes from its start if the
    server gives no ranges, or has another version. It raises FileNotFoundError if there is no such
    file, and Changed, Refused, Unavailable, another OSError or HTTPException if it cannot be opened.

    Args:
        address: ``http://``, ``https://`` or of another file system of fsspec.
        timeout: seconds without a byte after which a connection over HTTP has failed.
    """
    if address.startswith(("http://", "https://")):
        return functools.partial(_open_http, address, timeout)
    # File systems are made by the caller's thread, as fsspec keeps one for each thread.
    return functools.partial(_open_by_fsspec, *fsspec.core.url_to_fs(address))


@contextmanager
def _open_http(address: str, timeout: float, start: int, version: str | None) -> Iterator[Body]:
    try:
        response = urllib.request.urlopen(_request(address, start, version), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _meaning(error, start) from None
    with response:
        headers = response.headers
        # Weak ETags do not promise equal bytes, and servers ignore them in If-Range.
        now = headers.get("ETag") or headers.get("Last-Modified")
        now = None if now is None or now.startswith("W/") else now
        length = headers.get("Content-Length")
        first, total = 0, int(length) if length and length.isdecimal() else None
        if response.status == http.client.PARTIAL_CONTENT:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
            if told is None or int(told[1]) != start or (version and now not in (None, version)):
                raise Changed("the server gave another range than was asked for")
            first, total = start, None if told[2] == "*" else int(told[2])
        yield Body(first, total, now, iter(lambda: response.read1(_PIECE), b""))


def _request(address: str, start: int, version: str | None) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(address)
    account, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl())
    if account:
        secret = base64.b64encode(urllib.parse.unquote(account).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version is not None:
            # If the file has changed meanwhile the server then sends it from the start.
            request.add_header("If-Range", version)
    return request


def _meaning(error: urllib.error.HTTPError, start: int) -> OSError:
    reason = f"the server says {error.code} {error.reason}"
    if error.code in (http.client.NOT_FOUND, http.client.GONE):
        return FileNotFoundError(reason)
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        return Changed("the server has fewer bytes than were fetched before")
    if error.code in _PASSING:
        return Unavailable(reason, _seconds(error.headers.get("Retry-After")))
    return Refused(reason)


def _seconds(retry_after: str | None) -> float:
    """Seconds of a Retry-After header, which holds a number or a date."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


@contextmanager
def _open_by_fsspec(
    filesystem: fsspec.AbstractFileSystem, path: str, start: int, version: str | None
) -> Iterator[Body]:
    filesystem.invalidate_cache()  # a listing made for a pattern may be old by now
    info: dict[str, Any] = filesystem.info(path)
    facts = [info.get(name) for name in ("ETag", "etag", "LastModified", "updated", "mtime")]
    now, total = repr((info["size"], *facts)), int(info["size"])
    first = start if version in (None, now) and start <= total else 0

    def pieces() -> Iterator[bytes]:
        at = first
        while at < total and (piece := filesystem.cat_file(path, start=at, end=at + _RANGE)):
            yield piece
            at += len(piece)

    yield Body(first, total, now, pieces())


def is_final(error: Exception) -> bool:
    """Return True if another attempt to open or read would fail with this error again."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return is_final(error.reason)
    lasting = (
        FileNotFoundError, IsADirectoryError, PermissionError, Refused, ssl.SSLCertVerificationError,
    )  # fmt: skip
    passing = (OSError, http.client.HTTPException)
    return isinstance(error, lasting) or not isinstance(error, passing)
