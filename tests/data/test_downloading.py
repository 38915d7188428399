"""Downloads from a server that drops connections, stalls, refuses, ignores ranges or changes files."""

from __future__ import annotations

import email.utils
import io
import random
import socket
import threading
import time

import fsspec
import numpy as np
import pytest
import torch
from faulty_server import Answer, faulty_server

from ssl_vivit.data import downloading, stopping
from ssl_vivit.data.downloading import fetch
from ssl_vivit.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(250_000)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(downloading, "_FIRST_PAUSE", 0.02)


@pytest.fixture
def server():
    with faulty_server() as serving:
        serving.files["/a.tar"] = CONTENT
        yield serving


def fetched(server, **options):
    file = io.BytesIO()
    fetch(f"{server.url}/a.tar", file, **{"stall_timeout": 5.0, **options})
    return file.getvalue()


def ranges(server):
    return [asked for _, asked, _ in server.requests]


def test_a_file_comes_in_one_request(server):
    assert fetched(server) == CONTENT
    assert ranges(server) == [None]


def test_a_broken_connection_is_resumed_at_the_byte_reached(server):
    sends = [100_000, 0, 50_000, 0, 0, 70_000]
    server.answers["/a.tar"] = [Answer(sends=n) for n in sends]
    assert fetched(server) == CONTENT
    assert server.sent["/a.tar"] == len(CONTENT)
    at = [None, *(f"bytes={n}-" for n in (100_000, 100_000, 150_000, 150_000, 150_000, 220_000))]
    assert ranges(server) == at
    assert (
        {condition for _, asked, condition in server.requests if asked}
        == {server.requests[1][2]}
        != {None}
    )


def test_a_server_that_hangs_is_given_up_within_the_bound(server):
    server.always["/a.tar"] = Answer(silent=True)
    begun = time.monotonic()
    with pytest.raises(DataError) as caught:
        fetched(server, stall_timeout=0.4)
    assert 4 * 0.4 <= time.monotonic() - begun < 4
    assert server.count("/a.tar") == 4
    message = str(caught.value)
    assert message == (
        f"{server.url}/a.tar cannot be downloaded: no data arrived for 0.4 s (stall_timeout), 4 "
        "times in a row; check the server and the network, then run the command again"
    )


def test_a_body_that_stalls_is_resumed(server):
    server.answers["/a.tar"] = [Answer(sends=120_000, then="hangs")]
    assert fetched(server, stall_timeout=0.4) == CONTENT
    assert ranges(server) == [None, "bytes=120000-"]


def test_a_slow_download_may_take_longer_than_the_bound(server):
    server.always["/a.tar"] = Answer(rate=200_000)
    begun = time.monotonic()
    assert fetched(server, stall_timeout=0.5) == CONTENT
    assert time.monotonic() - begun > 1.2
    assert ranges(server) == [None]


def test_a_server_without_ranges_sends_the_file_again(server):
    server.ranges = False
    server.answers["/a.tar"] = [Answer(sends=200_000), Answer(sends=100_000)]
    assert fetched(server) == CONTENT
    assert ranges(server) == [None, "bytes=200000-", "bytes=100000-"]


def test_a_server_without_ranges_that_always_drops_is_given_up(server):
    server.ranges = False
    server.always["/a.tar"] = Answer(sends=200_000)
    with pytest.raises(DataError, match=r"ended at 200,000 of 300,000 bytes, 4 times in a row"):
        fetched(server)
    assert server.count("/a.tar") == 4


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changes_between_two_attempts_comes_from_its_start(server, heeds_if_range):
    server.heeds_if_range = heeds_if_range
    server.answers["/a.tar"] = [Answer(sends=100_000), Answer(content=OTHER)]
    assert fetched(server) == OTHER
    # A range of the new file, which is refused by its ETag, costs a further request.
    assert ranges(server) == [None, "bytes=100000-", None][: 2 if heeds_if_range else 3]


def test_a_file_that_shrinks_below_what_came(server):
    server.tags = False
    server.answers["/a.tar"] = [Answer(sends=280_000), Answer(status=416), Answer()]
    assert fetched(server) == CONTENT
    assert ranges(server) == [None, "bytes=280000-", None]


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_size_that_differs_from_the_index_is_refused_at_once(server, size):
    with pytest.raises(DataError, match=rf"has 300,000 bytes, but its index says {size:,}"):
        fetched(server, size=size)
    assert server.count("/a.tar") == 1


def test_a_body_cut_short_with_its_length(server):
    server.always["/a.tar"] = Answer(sends=1000, keeps_length=False)
    with pytest.raises(DataError, match=r"has 1,000 bytes, but its index says 300,000"):
        fetched(server, size=len(CONTENT))


def test_statuses_that_pass(server):
    wait = (("Retry-After", "1"),)
    date = (("Retry-After", email.utils.formatdate(time.time() + 2, usegmt=True)),)
    server.answers["/a.tar"] = [
        Answer(status=503, headers=wait),
        Answer(status=500),
        Answer(status=429, headers=date),
    ]
    assert fetched(server) == CONTENT
    pauses = np.diff(server.times)
    assert 1.0 <= pauses[0] < 2.5
    assert pauses[1] < 0.9
    # 2 s after the answers were planned, to the second.
    assert server.times[3] - server.times[0] > 1


def test_a_server_that_asks_to_come_back_much_later(server):
    server.always["/a.tar"] = Answer(status=429, headers=(("Retry-After", "3600"),))
    with pytest.raises(DataError, match=r"says 429 .* \(retry after 3,600 s\); check"):
        fetched(server)
    assert server.count("/a.tar") == 1


@pytest.mark.parametrize(
    ("status", "kind"), [(404, FileNotFoundError), (410, FileNotFoundError), (403, OSError)]
)
def test_statuses_that_do_not_pass(server, status, kind):
    server.always["/a.tar"] = Answer(status=status)
    with pytest.raises(kind, match=f"the server says {status}"):
        fetched(server)
    assert server.count("/a.tar") == 1


def test_a_refused_connection_is_tried_again():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar"
        with pytest.raises(DataError, match=r"Connection refused, 4 times in a row") as caught:
            fetch(address, io.BytesIO())
    assert str(caught.value).startswith(address)


def test_a_name_server_that_does_not_answer(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: released.wait(30) and [])
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"no data arrived for 0\.2 s"):
        fetch("http://name.invalid/a.tar", io.BytesIO(), stall_timeout=0.2)
    released.set()
    assert time.monotonic() - begun < 3


def test_pauses_grow_and_do_not_use_the_random_generators(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(stopping, "sleep", lambda seconds, look: pauses.append(seconds))
    states = random.getstate(), torch.get_rng_state()
    server.always["/a.tar"] = Answer(status=502)
    with pytest.raises(DataError, match="the server says 502 Bad Gateway"):
        fetched(server)
    scaled = [pause / (0.02 * 2**n) for n, pause in enumerate(pauses)]
    assert len(pauses) == 3
    assert all(0.5 <= each <= 1 for each in scaled)
    assert len({*scaled}) == 3
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_accounts_in_addresses(server):
    file = io.BytesIO()
    fetch(server.url.replace("//", "//reader:p%40ss@") + "/a.tar", file)
    assert file.getvalue() == CONTENT
    assert server.accounts == {"Basic cmVhZGVyOnBAc3M="}  # reader:p@ss


@pytest.mark.parametrize("way", ["silent", "stalls", "pauses", "slow"])
def test_a_request_to_stop_is_heard_within_a_second(server, way, monkeypatch):
    server.always["/a.tar"] = {
        "silent": Answer(silent=True),
        "stalls": Answer(sends=1000, then="hangs"),
        "pauses": Answer(status=503, headers=(("Retry-After", "30"),)),
        "slow": Answer(rate=20_000),
    }[way]
    timer = threading.Timer(0.5, stopping.request)
    timer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            fetched(server, stall_timeout=30.0)
    finally:
        timer.join()
        stopping.withdraw()
    assert 0.4 < time.monotonic() - begun < 1.5


def test_other_file_systems_are_resumed_likewise(monkeypatch):
    memory = fsspec.filesystem("memory")
    reads = []

    def cat_file(self, path, start=None, end=None):
        reads.append(start)
        if len(reads) in (1, 3, 5):
            raise ConnectionResetError("reset")
        return CONTENT[start:end]

    monkeypatch.setattr("ssl_vivit.data.remote_files._RANGE", 100_000)
    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    memory.pipe_file("/bucket/a.tar", CONTENT)
    file = io.BytesIO()
    fetch("memory://bucket/a.tar", file, size=len(CONTENT))
    assert file.getvalue() == CONTENT
    assert reads == [0, 0, 100_000, 100_000, 200_000, 200_000]
    memory.rm("/bucket", recursive=True)
    with pytest.raises(FileNotFoundError):
        fetch("memory://bucket/a.tar", io.BytesIO())
