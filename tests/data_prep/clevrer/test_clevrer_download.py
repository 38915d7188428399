"""Downloading from a local server that resumes, stalls, breaks off, or states wrong facts."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from data_prep.clevrer import downloading
from data_prep.clevrer.__main__ import main
from data_prep.clevrer.downloading import ARCHIVES, download
from ssl_vivit.errors import DataError


def archive(seed, size=300_000):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(zipfile.ZipInfo("video_00000.mp4"), np.random.default_rng(seed).bytes(size))
    return file.getvalue()


class Mirror(ThreadingHTTPServer):
    """A server of ``files``; each connection sends at most the next number of bytes in ``limits``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.ranges, self.limits = {}, True, []
        self.requests, self.sent, self.stalls = [], 0, False
        self.released = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/clevrer"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        mirror = self.server
        mirror.requests.append((self.path, self.headers.get("Range")))
        content = mirror.files.get(self.path.removeprefix("/clevrer/"))
        if content is None:
            return self.send_error(404)
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if mirror.ranges and asked and self.headers.get("If-Range", tag) == tag:
            start = int(asked[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                return self.end_headers()
            self.send_response(206)
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        limit = mirror.limits.pop(0) if mirror.limits else len(content)
        piece = content[start : start + limit]
        mirror.sent += len(piece)  # before the client can have read the last byte
        self.wfile.write(piece)
        self.wfile.flush()
        if mirror.stalls and len(piece) < len(content) - start:
            mirror.released.wait(10)


@pytest.fixture
def mirror():
    server = Mirror()
    server.files["videos/test/video_test.zip"] = archive(0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(mirror, out, **options):
    (path,) = download("test", out, mirror.url, progress=False, **options)
    return path


def test_an_archive_arrives_once(mirror, tmp_path):
    path = fetch(mirror, tmp_path)
    assert path == tmp_path / "video_test.zip"
    assert path.read_bytes() == archive(0)
    fetch(mirror, tmp_path)
    assert len(mirror.requests) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["video_test.zip"]


def test_broken_connections_are_taken_up_where_they_ended(mirror, tmp_path):
    mirror.limits = [100_000, 50_000, 0, 70_000]
    assert fetch(mirror, tmp_path).read_bytes() == archive(0)
    assert mirror.sent == len(archive(0))
    assert [asked for _, asked in mirror.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
        "bytes=150000-",
        "bytes=220000-",
    ]


def test_a_server_that_stalls(mirror, tmp_path):
    mirror.limits, mirror.stalls = [100_000], True
    assert fetch(mirror, tmp_path, timeout=1).read_bytes() == archive(0)
    assert [asked for _, asked in mirror.requests] == [None, "bytes=100000-"]


def test_giving_up_keeps_what_came(mirror, tmp_path):
    mirror.limits = [120_000, 0, 0, 0]
    with pytest.raises(
        DataError, match=r"120,000 of .*120,000 bytes are kept in .*\.part; run the"
    ):
        fetch(mirror, tmp_path, attempts=3)
    assert not (tmp_path / "video_test.zip").exists()
    assert fetch(mirror, tmp_path).read_bytes() == archive(0)
    assert mirror.sent == len(archive(0))


def test_a_server_that_cannot_resume(mirror, tmp_path):
    mirror.ranges, mirror.limits = False, [100_000]
    assert fetch(mirror, tmp_path).read_bytes() == archive(0)
    assert mirror.sent == 100_000 + len(archive(0))


def test_a_file_that_changed_meanwhile_is_downloaded_again(mirror, tmp_path):
    mirror.limits = [100_000, 0]
    with pytest.raises(DataError):
        fetch(mirror, tmp_path, attempts=1)
    mirror.files["videos/test/video_test.zip"] = archive(1)
    assert fetch(mirror, tmp_path).read_bytes() == archive(1)


def test_stopped_before_the_first_byte_of_a_file_that_changed(mirror, tmp_path, monkeypatch):
    mirror.limits = [100_000, 0]
    with pytest.raises(DataError):
        fetch(mirror, tmp_path, attempts=1)
    mirror.files["videos/test/video_test.zip"] = archive(1)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloading, "open", stopped, raising=False)
    with pytest.raises(KeyboardInterrupt):
        fetch(mirror, tmp_path)
    monkeypatch.undo()
    assert fetch(mirror, tmp_path).read_bytes() == archive(1)


def test_the_validator_of_an_archive_that_arrived_is_removed(mirror, tmp_path):
    fetch(mirror, tmp_path)
    (tmp_path / "video_test.zip.part.validator").write_text("left by a killed run")
    fetch(mirror, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["video_test.zip"]


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_whole_or_too_long(mirror, tmp_path, extra):
    (tmp_path / "video_test.zip.part").write_bytes(archive(0) + b"x" * extra)
    assert fetch(mirror, tmp_path).read_bytes() == archive(0)
    assert mirror.sent == (len(archive(0)) if extra else 0)


def test_a_file_that_is_not_a_zip_is_not_kept(mirror, tmp_path):
    mirror.files["videos/test/video_test.zip"] = b"<html>moved</html>"
    with pytest.raises(DataError, match="damaged file instead of CLEVRER's archive"):
        fetch(mirror, tmp_path)
    assert not list(tmp_path.iterdir())


def test_annotations_must_have_the_known_size_and_digest(mirror, tmp_path, monkeypatch):
    videos, notes = ARCHIVES["train"]
    content = archive(2)
    mirror.files[videos.path], mirror.files[notes.path] = archive(1), content
    with pytest.raises(DataError, match=r"but CLEVRER's archive has 156,761,889; check --base-url"):
        download("train", tmp_path, mirror.url, progress=False)
    sized = replace(notes, size=len(content))
    monkeypatch.setitem(downloading.ARCHIVES, "train", (videos, sized))
    with pytest.raises(DataError, match=r"annotation_train\.zip returned an error page or"):
        download("train", tmp_path, mirror.url, progress=False)
    known = replace(sized, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(downloading.ARCHIVES, "train", (videos, known))
    paths = download("train", tmp_path, mirror.url, progress=False)
    assert [p.name for p in paths] == ["video_train.zip", "annotation_train.zip"]
    assert paths[1].read_bytes() == content


def test_published_addresses():
    assert {split: [a.path for a in archives] for split, archives in ARCHIVES.items()} == {
        "train": ["videos/train/video_train.zip", "annotations/train/annotation_train.zip"],
        "validation": [
            "videos/validation/video_validation.zip",
            "annotations/validation/annotation_validation.zip",
        ],
        "test": ["videos/test/video_test.zip"],
    }


def test_command_line(mirror, tmp_path, capsys):
    arguments = ["download", "--out", str(tmp_path), "--base-url", mirror.url]
    assert main([*arguments, "--split", "test"]) == 0
    assert "video_test.zip" in capsys.readouterr().out
    assert main([*arguments, "--split", "validation"]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert errors == [
        f"error: {mirror.url}/videos/validation/video_validation.zip: the server answers 404 Not "
        "Found; check --base-url"
    ]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("file:///etc", "must be an http:// or https:// address"),
        ("http://127.0.0.1:9", "Connection refused"),
    ],
)
def test_addresses_that_cannot_be_used(tmp_path, base, message):
    with pytest.raises(DataError, match=message):
        download("test", tmp_path, base, progress=False)
