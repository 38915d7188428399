"""Remote shards from a faulty server: complete, fetched once, in order, without leftover files."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_server import Answer, faulty_server
from torch import nn

from data_prep.clevrer.packing import pack
from data_prep.clevrer.storage import encode_h264
from ssl_vivit.data import downloading
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.loader import DataConfig, build_clips
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.errors import DataError
from ssl_vivit.objectives.contract import Step
from ssl_vivit.training import TrainingConfig, fit, run

NUM_VIDEOS, FRAMES = 6, 12
TAR = "/a-000000.tar"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return a folder with a-000000…2.tar of two videos each."""
    videos, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("packed")
    draw = np.random.default_rng(0)
    for number in range(NUM_VIDEOS):
        frames = draw.integers(256, size=(FRAMES, 32, 48, 3)).astype(np.uint8)
        (videos / f"video_{number:05d}.mp4").write_bytes(encode_h264(frames, 12.5))
    options = {"storage": "original", "frames": FRAMES, "samples_per_shard": 2}
    pack(videos, out, prefix="a", workers=1, progress=False, **options)
    return out


@pytest.fixture
def server(packed, monkeypatch):
    monkeypatch.setattr(downloading, "_FIRST_PAUSE", 0.02)
    with faulty_server() as serving:
        serving.serve_folder(packed)
        yield serving


def pattern(server):
    return f"{server.url}/a-{{000000..000002}}.tar"


def files(cache):
    """Return the names of files in the cache without the digest, including hidden files and locks."""
    return sorted(path.name.partition("-")[2] for path in cache.iterdir()) if cache.exists() else []


def first_frames(shards):
    return [int(shards.frames(i, [0]).sum(dtype=np.int64)) for i in range(len(shards))]


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def test_shards_arrive_whole_over_a_failing_server(packed, server, tmp_path):
    server.answers = {
        "/a-000000.json": [Answer(status=503), Answer(sends=100)],
        TAR: [Answer(sends=5000), Answer(sends=9000)],
        "/a-000001.tar": [Answer(status=500), Answer(sends=2000, then="hangs")],
    }
    shards = ShardSet(pattern(server), tmp_path, stall_timeout=0.5)
    assert first_frames(shards) == first_frames(ShardSet(f"{packed}/*.tar"))
    assert files(tmp_path) == [f"a-00000{n}.tar" for n in range(3)]
    for copy in tmp_path.iterdir():
        assert copy.read_bytes() == (packed / copy.name.partition("-")[2]).read_bytes()
    requests = len(server.requests)
    assert first_frames(ShardSet(pattern(server), tmp_path)) == first_frames(shards)
    assert len(server.requests) == requests + 3  # the indexes


@pytest.mark.parametrize("way", ["stalls", "404", "403", "cut"])
def test_a_download_that_fails_leaves_no_file_and_one_line(server, tmp_path, way):
    server.always[TAR] = {
        "stalls": Answer(silent=True),
        "404": Answer(status=404),
        "403": Answer(status=403),
        "cut": Answer(sends=1000, keeps_length=False),
    }[way]
    shards = ShardSet(pattern(server), tmp_path, stall_timeout=0.2)
    with pytest.raises(DataError) as caught:
        shards.frames(0, [0])
    message = str(caught.value)
    assert message.startswith(f"{server.url}{TAR} ")
    assert "\n" not in message
    assert "; " in message
    assert files(tmp_path) == []


def test_a_missing_and_an_unreachable_index_have_different_messages(server, tmp_path):
    server.always["/a-000001.json"] = Answer(status=404)
    with pytest.raises(
        DataError, match=r"a-000001\.tar has no index beside it; make the index from"
    ):
        ShardSet(pattern(server), tmp_path)
    server.always["/a-000001.json"] = Answer(silent=True)
    with pytest.raises(
        DataError, match=r"a-000001\.json cannot be downloaded: no data arrived for 0\.2 s"
    ):
        ShardSet(pattern(server), tmp_path, stall_timeout=0.2)


def test_bytes_of_two_versions_are_never_joined(packed, server, tmp_path):
    """The server states no version, so only checksums can detect a mixed download."""
    content = server.files[TAR]
    server.tags = False
    server.answers[TAR] = [
        Answer(sends=20_000, content=flipped(content, 18_000)),
        Answer(content=content),
    ]
    shards = ShardSet(pattern(server), tmp_path)
    shards.frames(0, [0])
    assert server.count(TAR) == 3
    assert next(tmp_path.iterdir()).read_bytes() == content


def test_a_shard_that_differs_from_its_index_is_refused(server, tmp_path):
    server.files[TAR] = flipped(server.files[TAR], 3000)
    with pytest.raises(
        DataError, match=r"the bytes of video_00000 differ from the index.*; upload"
    ):
        ShardSet(pattern(server), tmp_path).frames(1, [0])
    assert server.count(TAR) == 2
    assert files(tmp_path) == []


def test_a_damaged_copy_of_the_right_size_is_fetched_again(packed, server, tmp_path):
    shards = ShardSet(pattern(server), tmp_path)
    expected = shards.frames(0, [0])
    (copy,) = tmp_path.iterdir()
    copy.write_bytes(flipped(copy.read_bytes(), 3000))
    np.testing.assert_array_equal(shards.frames(0, [0]), expected)
    assert server.count(TAR) == 2
    shards.frames(1, [0])
    assert server.count(TAR) == 2
    assert copy.read_bytes() == (packed / TAR[1:]).read_bytes()


def test_temporary_files_of_ended_and_of_long_gone_processes_are_removed(server, tmp_path):
    old, recent = tmp_path / ".x.tar.elsewhere-1-ab.part", tmp_path / ".y.tar.elsewhere-1-ab.part"
    for part in (old, recent):
        part.write_bytes(b"0")
    os.utime(old, (0, 0))
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    dead = tmp_path / f".z.tar.{os.uname().nodename}-{int(ended.stdout)}-ab.part"
    dead.write_bytes(b"0")
    ShardSet(pattern(server), tmp_path).frames(0, [0])
    assert sorted(path.name for path in tmp_path.glob(".*")) == [recent.name]


def _read(address, cache, queue):
    try:
        queue.put(first_frames(ShardSet(address, cache, stall_timeout=1.0)))
    except DataError as error:
        queue.put(str(error))


def _in_processes(server, cache, count):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    readers = [
        context.Process(target=_read, args=(pattern(server), cache, queue)) for _ in range(count)
    ]
    for reader in readers:
        reader.start()
    told = [queue.get(timeout=30) for _ in readers]
    for reader in readers:
        reader.join()
    return told


def test_processes_fetch_each_shard_once(packed, server, tmp_path):
    server.always = {f"/a-00000{n}.tar": Answer(rate=60_000) for n in range(3)}
    told = _in_processes(server, tmp_path, 4)
    assert told == 4 * [first_frames(ShardSet(f"{packed}/*.tar"))]
    assert [server.count(f"/a-00000{n}.tar") for n in range(3)] == [1, 1, 1]
    assert files(tmp_path) == [f"a-00000{n}.tar" for n in range(3)]


def test_processes_that_wait_fail_with_the_one_that_fetches(server, tmp_path):
    server.always[TAR] = Answer(silent=True)
    begun = time.monotonic()
    told = _in_processes(server, tmp_path, 3)
    assert len({*told}) == 1
    assert "no data arrived for 1 s" in told[0]
    assert server.count(TAR) == 4
    assert time.monotonic() - begun < 10
    assert files(tmp_path) == []


def test_a_stalled_lock_holder_is_reported(server, tmp_path):
    shards = ShardSet(pattern(server), tmp_path, stall_timeout=0.5)
    shards.frames(0, [0])
    (copy,) = tmp_path.iterdir()
    copy.unlink()
    lock = copy.with_name(f"{copy.name}.lock")
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"no progress for 0\.5 s; end that process"):
            shards.frames(0, [0])
    # What a process wrote that was killed meanwhile is no failure of the next one.
    lock.write_text("failed")
    shards.frames(0, [0])
    assert files(tmp_path) == [TAR[1:]]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_bounds_that_are_none(seconds):
    with pytest.raises(DataError, match=r"--data\.stall_timeout is .*; it must be above 0"):
        ShardSet("a.tar", stall_timeout=seconds)


def data(shards, cache, workers, **options):
    clip = ClipConfig(num_frames=2, frame_stride=1, views=1)
    places = {"shards": shards, "cache_dir": str(cache), "workers": workers}
    return DataConfig(**places, held_out=0.0, clip=clip, **options)


def stream(config):
    clips = build_clips(config, size=(16, 16)).train
    return clips.stream(BatchSplit(3), start_step=0, device="cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_retries_change_neither_samples_nor_their_order(packed, server, tmp_path, workers):
    server.answers = {
        TAR: [Answer(status=503), Answer(sends=3000), Answer(sends=100, then="hangs")],
        "/a-000002.tar": [Answer(sends=9000), Answer(status=429)],
    }
    here = stream(data(f"{packed}/*.tar", tmp_path, workers))
    there = stream(data(pattern(server), tmp_path / "cache", workers, stall_timeout=0.5))
    for expected, got in itertools.islice(zip(here, there, strict=True), 8):
        assert got["key"] == expected["key"]
        assert got["clips"].equal(expected["clips"])
        assert got["broken"] == []
    here.close()
    there.close()
    assert server.answers == {TAR: [], "/a-000002.tar": []}


def test_closing_a_stream_while_a_worker_downloads(server, tmp_path):
    server.always["/a-000001.tar"] = Answer(sends=1000, then="hangs")
    batches = build_clips(data(pattern(server), tmp_path, 1), size=(16, 16)).train.once(2, "cpu")
    assert next(batches)["key"] == ["video_00000", "video_00001"]
    wait_until(lambda: server.sent["/a-000001.tar"] == 1000)
    begun = time.monotonic()
    batches.close()
    assert time.monotonic() - begun < 2
    assert not multiprocessing.active_children()
    assert files(tmp_path) == [TAR[1:]]


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return Step((batch["clips"].mean() * self.weight).square(), {})

    def export(self, directory, *, training):
        directory.mkdir(parents=True)


def _train_or_read(config, folder, trains):
    """Train or read in a process with its own terminal, process group and signals."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stderr = open(folder / "stderr", "w", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)

    def main():
        clips = build_clips(config, size=(16, 16)).train
        if not trains:
            return next(clips.once(2, "cpu"))
        lengths = {"steps": 9, "total_batch_size": 3}
        return fit(Mean(), clips, TrainingConfig(run_dir=folder / "run", tracker="none", **lengths))

    run(main)


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def someone_lives(group):
    """Return whether a process of a group runs; in containers, ended processes may keep their id."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


@pytest.mark.parametrize(
    ("workers", "trains", "sent", "status"),
    [
        (0, True, signal.SIGTERM, 0),
        (2, True, signal.SIGTERM, 0),
        (2, True, signal.SIGINT, 0),
        (0, False, signal.SIGTERM, 143),
        (2, False, signal.SIGTERM, 143),
        (2, False, signal.SIGINT, 130),
        (2, True, signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_signal_during_a_hanging_download(server, tmp_path, workers, trains, sent, status):
    """All processes end within two seconds and leave no files."""
    for n in range(3):
        server.always[f"/a-00000{n}.tar"] = Answer(sends=1000, then="hangs")
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(
        target=_train_or_read, args=(data(pattern(server), cache, workers), tmp_path, trains)
    )
    process.start()
    wait_until(lambda: server.sent and any(cache.glob(".*.part")))
    time.sleep(0.3)
    assert process.is_alive()
    # A launcher or a shell sends it to all, kill to the main process alone.
    send = os.killpg if sent == signal.SIGINT else os.kill
    begun = time.monotonic()
    send(process.pid, sent)
    process.join(20)
    wait_until(lambda: not someone_lives(process.pid), seconds=5)
    assert time.monotonic() - begun < 2
    errors = (tmp_path / "stderr").read_text()
    assert process.exitcode == status, errors
    assert "Traceback" not in errors
    assert files(cache) == []
    if trains and status == 0:
        assert f"{signal.Signals(sent).name}: " in errors
        assert "stopped after step 0, before the first step" in errors
