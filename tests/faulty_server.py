"""A local web server that serves files and can fail in the ways in which servers fail."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """Answer to one request.

    Args:
        status: status of the answer; 200 becomes 206 if a range is requested and served.
        headers: further headers of the answer.
        sends: number of bytes of the body that are sent before ``then``; None sends all.
        then: "ends" closes the connection, "hangs" keeps it open and sends nothing.
        silent: whether not even headers are sent.
        rate: bytes per second; None sets no limit.
        keeps_length: whether Content-Length states the full length of a body that ``sends`` cuts.
        content: replaces the file before the answer.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    sends: int | None = None
    then: str = "ends"
    silent: bool = False
    rate: int | None = None
    keeps_length: bool = True
    content: bytes | None = None


class FaultyServer(ThreadingHTTPServer):
    """Serves ``files`` by their paths, with the answers in ``answers`` one after the other.

    Attributes:
        files: path, such as ``/a.tar`` → content.
        answers: path → answers to the first requests; later requests succeed.
        always: path → answer to all requests after those in ``answers``.
        ranges: whether ranges are served.
        tags: whether answers have an ETag.
        heeds_if_range: whether If-Range is checked, so that no range of another version is served.
        requests: (path, Range, If-Range) of each request.
        times: times of the requests in seconds.
        accounts: values of the Authorization header.
        sent: path → number of bytes of bodies that were sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.always: dict[str, Answer] = {}
        self.ranges, self.tags, self.heeds_if_range = True, True, True
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.times: list[float] = []
        self.accounts: set[str | None] = set()
        self.sent: Counter[str] = Counter()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, path: str) -> int:
        """Requests for a path."""
        return sum(asked == path for asked, _, _ in self.requests)

    def serve_folder(self, folder: Path, pattern: str = "*") -> None:
        """Serve the files of a folder."""
        for path in folder.glob(pattern):
            self.files[f"/{path.name}"] = path.read_bytes()

    def handle_error(self, request, client_address) -> None:
        """Ignore errors of clients that closed the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.times.append(time.monotonic())
        server.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
        server.accounts.add(self.headers["Authorization"])
        planned = server.answers.get(self.path)
        answer = planned.pop(0) if planned else server.always.get(self.path, Answer())
        if answer.content is not None:
            server.files[self.path] = answer.content
        content = server.files.get(self.path)
        if answer.silent:
            server.released.wait(60)
            return
        if content is None or answer.status >= 400:
            self.send_response(404 if content is None else answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start, whole = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        unchanged = self.headers["If-Range"] in (None, tag) or not server.heeds_if_range
        if server.ranges and asked and unchanged:
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        else:
            self.send_response(200)
        body = content[start:]
        cut = body if answer.sends is None else body[: answer.sends]
        self.send_header("Content-Length", str(len(body if answer.keeps_length else cut)))
        if server.tags:
            self.send_header("ETag", tag)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        step = len(cut) if answer.rate is None else max(1, answer.rate // 20)
        for at in range(0, len(cut), max(1, step)):
            piece = cut[at : at + step]
            server.sent[self.path] += len(piece)
            self.wfile.write(piece)
            self.wfile.flush()
            if answer.rate is not None and server.released.wait(0.05):
                return
        if answer.then == "hangs" and len(cut) < len(body):
            server.released.wait(60)


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Serve while the block runs."""
    server = FaultyServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
