"""Remote files as streams of bytes from an offset, over HTTP or a file system of fsspec."""

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
# Bytes per request to an object store. No data arrives before a range is complete, so it is small.
_RANGE = 1 << 22
# HTTP status codes of temporary errors: request timeout, too early, too many requests, server
# errors.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Body:
    """Body of a response: bytes of a remote file.

    Attributes:
        start: offset of the first byte: the requested offset, or 0.
        total: size of the whole file. None if unknown.
        version: identifier of this version of the file. None if unknown.
        pieces: iterator of the bytes. It may end early, with or without an error.
    """

    start: int
    total: int | None
    version: str | None
    pieces: Iterator[bytes]


class Changed(OSError):
    """Raised if the file has changed since its first bytes were downloaded."""


class Refused(OSError):
    """Raised for a permanent error, which another attempt would not change."""


class Unavailable(OSError):
    """Raised for a temporary error.

    Args:
        reason: description in one line.
        wait: seconds that the server asks to wait before the next attempt.
    """

    def __init__(self, reason: str, wait: float) -> None:
        super().__init__(reason)
        self.wait = wait


Opener = Callable[[int, str | None], AbstractContextManager[Body]]


def opener_of(address: str, timeout: float) -> Opener:
    """Return a function that opens a remote file at an offset.

    The function has two arguments: the offset in bytes, and the version of the file from which the
    bytes before the offset were downloaded (None if unknown). It returns a context manager that
    yields the :class:`Body`. If the server does not support ranges or has another version, the body
    starts at offset 0. The context manager raises FileNotFoundError if the file does not exist. It
    raises Changed, Refused, Unavailable, another OSError or HTTPException if the file cannot be
    opened.

    Args:
        address: an ``http://`` or ``https://`` address, or one of another file system of fsspec.
        timeout: seconds without data after which a connection over HTTP fails.
    """
    if address.startswith(("http://", "https://")):
        return functools.partial(_open_http, address, timeout)
    # Create the file system in the caller's thread, as fsspec has one for each thread.
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
        # Ignore weak ETags: they do not guarantee equal bytes, and servers ignore them in If-Range.
        now = headers.get("ETag") or headers.get("Last-Modified")
        now = None if now is None or now.startswith("W/") else now
        length = headers.get("Content-Length")
        first, total = 0, int(length) if length and length.isdecimal() else None
        if response.status == http.client.PARTIAL_CONTENT:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range") or "")
            if told is None or int(told[1]) != start or (version and now not in (None, version)):
                raise Changed("the server returned another range of bytes than requested")
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
            # With If-Range the server sends the file from the start if it has changed.
            request.add_header("If-Range", version)
    return request


def _meaning(error: urllib.error.HTTPError, start: int) -> OSError:
    reason = f"the server says {error.code} {error.reason}"
    if error.code in (http.client.NOT_FOUND, http.client.GONE):
        return FileNotFoundError(reason)
    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
        return Changed("the file has fewer bytes than were downloaded before")
    if error.code in _PASSING:
        return Unavailable(reason, _seconds(error.headers.get("Retry-After")))
    return Refused(reason)


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header, which is a number or a date."""
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
    filesystem.invalidate_cache()  # a cached listing may be outdated
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
    """Return whether an error is permanent, so that another attempt would fail as well."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return is_final(error.reason)
    lasting = (
        FileNotFoundError, IsADirectoryError, PermissionError, Refused, ssl.SSLCertVerificationError,
    )  # fmt: skip
    passing = (OSError, http.client.HTTPException)
    return isinstance(error, lasting) or not isinstance(error, passing)
