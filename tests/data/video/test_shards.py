"""Samples read from shards, compared with the packed files."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_prep.clevrer.packing import pack
from data_prep.clevrer.storage import encode_h264
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.errors import DataError, DecodingError

NUM_VIDEOS, FRAMES, HEIGHT, WIDTH = 5, 20, 32, 48


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Write videos of smooth noise with CLEVRER's names, with annotations except for number 3."""
    folder = tmp_path_factory.mktemp("videos")
    draw = np.random.default_rng(0)
    for number in range(NUM_VIDEOS):
        coarse = draw.integers(256, size=(FRAMES, 4, 6, 3)).astype(np.uint8)
        frames = coarse.repeat(8, 1).repeat(8, 2)
        (folder / f"video_{number:05d}.mp4").write_bytes(encode_h264(frames, 12.5))
        if number != 3:
            (folder / f"annotation_{number:05d}.json").write_text(json.dumps({"scene": number}))
    return folder


@pytest.fixture(scope="module")
def packed(videos, tmp_path_factory):
    """Return a folder with original-000000…2.tar and jpeg-000000…2.tar."""
    out = tmp_path_factory.mktemp("packed")
    for storage in ("original", "jpeg"):
        pack(
            videos,
            out,
            videos,
            prefix=storage,
            storage=storage,
            frames=FRAMES,
            samples_per_shard=2,
            workers=1,
            progress=False,
        )
    return out


@pytest.fixture
def shards(packed, tmp_path):
    """Return a copy of the shards that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def test_measures_come_from_the_index(packed):
    for storage in ("original", "jpeg"):
        shards = ShardSet(f"{packed}/{storage}-*.tar")
        assert shards.keys == [f"video_{i:05d}" for i in range(NUM_VIDEOS)]
        assert shards.shard_of.tolist() == [0, 0, 1, 1, 2]
        assert set(shards.num_frames) == {FRAMES}
        assert set(zip(shards.heights, shards.widths, strict=True)) == {(HEIGHT, WIDTH)}
        assert set(shards.fps) == {12.5}
        notes = [shards.annotation(i) for i in range(NUM_VIDEOS)]
        assert notes == [None if i == 3 else {"scene": i} for i in range(NUM_VIDEOS)]


@pytest.mark.parametrize("size", [None, (16, 24)])
def test_frames_are_the_videos(videos, packed, size):
    original = ShardSet(f"{packed}/original-*.tar")
    pictures = ShardSet(f"{packed}/jpeg-*.tar")
    for i in range(NUM_VIDEOS):
        indices = np.random.default_rng(i).integers(FRAMES, size=7)
        expected = decode_frames(videos / f"video_{i:05d}.mp4", indices, size)
        np.testing.assert_array_equal(original.frames(i, indices, size), expected)
        difference = pictures.frames(i, indices, size).astype(int) - expected
        assert np.abs(difference).mean() < 8
        # Every frame differs from its neighbours by far more than JPEG changes it.
        others = np.roll(pictures.frames(i, np.arange(FRAMES), size).astype(int), 1, axis=0)
        assert np.abs(others[indices] - expected).mean() > 40


@pytest.mark.parametrize("pattern", ["original-*.tar", "original-{000000..000002}.tar"])
def test_patterns(packed, pattern):
    assert len(ShardSet(f"{packed}/{pattern}")) == NUM_VIDEOS
    assert len(ShardSet([f"{packed}/{pattern}", f"{packed}/original-000001.tar"])) == NUM_VIDEOS
    assert ShardSet(f"file://{packed}/{pattern}").keys == ShardSet(f"{packed}/{pattern}").keys


def test_only_the_bytes_of_a_clip_are_read(packed, monkeypatch):
    shards = ShardSet(f"{packed}/jpeg-*.tar")
    whole = shards.frames(1, range(FRAMES))
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda f, n, at: reads.append(n) or pread(f, n, at))
    np.testing.assert_array_equal(shards.frames(1, [9, 8, 8]), whole[[9, 8, 8]])
    assert len(reads) == 1
    assert reads[0] < shards.stored_bytes(1) / 5


def test_same_frames_in_forked_and_spawned_processes(packed):
    shards = ShardSet(f"{packed}/original-*.tar")
    expected = [shards.frames(i, [2, 5]) for i in range(NUM_VIDEOS)]
    loader = DataLoader(
        range(NUM_VIDEOS),
        batch_size=None,
        num_workers=2,
        collate_fn=lambda i: shards.frames(i, [2, 5]),
        multiprocessing_context="fork",
    )
    np.testing.assert_array_equal(np.stack(list(loader)), np.stack(expected))
    copy = pickle.loads(pickle.dumps(shards))
    np.testing.assert_array_equal(copy.frames(4, [2, 5]), expected[4])


def test_a_shard_cut_off_in_the_middle(shards):
    tar = shards / "original-000001.tar"
    os.truncate(tar, tar.stat().st_size // 2)
    with pytest.raises(
        DataError, match=r"original-000001\.tar has .* bytes, but its index says .* truncated"
    ):
        ShardSet(f"{shards}/original-*.tar")


def test_an_empty_shard(shards):
    os.truncate(shards / "original-000001.tar", 0)
    with pytest.raises(DataError, match=r"original-000001\.tar is empty"):
        ShardSet(f"{shards}/original-*.tar")


def test_missing_and_foreign_indexes(shards):
    index = shards / "original-000001.json"
    index.write_text('{"some": "json"}')
    with pytest.raises(DataError, match=r"is not a shard index; .*clevrer index '.*000001\.tar'"):
        ShardSet(f"{shards}/original-*.tar")
    index.unlink()
    with pytest.raises(DataError, match=r"has no index beside it; .*clevrer index '.*01\.tar'"):
        ShardSet(f"{shards}/original-*.tar")


def test_a_sample_twice(shards):
    shutil.copy(shards / "original-000001.tar", shards / "other.tar")
    shutil.copy(shards / "original-000001.json", shards / "other.json")
    with pytest.raises(DataError, match=r"video_00002 is in .*original-000001.* in .*other\.tar"):
        ShardSet([f"{shards}/original-*.tar", f"{shards}/other.tar"])


@pytest.mark.parametrize("storage", ["original", "jpeg"])
def test_damaged_bytes_are_found_and_the_sample_named(shards, storage):
    tar = shards / f"{storage}-000001.tar"
    index = json.loads(tar.with_suffix(".json").read_text())
    members = index["samples"][0]["members"]
    offset, size, _ = members["mp4" if storage == "original" else "0007.jpg"]
    content = bytearray(tar.read_bytes())
    content[offset + size // 2] ^= 1
    tar.write_bytes(content)
    read = ShardSet(f"{shards}/{storage}-*.tar")
    with pytest.raises(DecodingError, match=rf"video_00002 in .*{storage}-000001\.tar.*CRC"):
        read.frames(2, [7])
    assert read.frames(3, [7]).shape == (1, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("storage", ["original", "jpeg"])
@pytest.mark.parametrize("index", [-1, FRAMES])
def test_a_frame_that_is_not_there(packed, storage, index):
    with pytest.raises(DecodingError, match=f"video_00000 in .*frame {index} of {FRAMES}"):
        ShardSet(f"{packed}/{storage}-*.tar").frames(0, [1, index])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing-*.tar", r"--data.shards .* matches no .tar file.*data_prep.clevrer pack"),
        ("pipe:cat shards.tar", "commands .pipe:. are not supported"),
        ("a-{0..2.tar", "unbalanced braces"),
        ("https://example.org/a-*.tar", r"write the numbers as \{000000\.\.000009\}"),
        ("memory://none/a-0.tar", "has no index beside it; make the index from"),
        ("nosuch://a/b.tar", "cannot be downloaded: Protocol not known"),
        ([], "names no shards"),
    ],
)
def test_addresses_that_cannot_be_used(pattern, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        ShardSet(pattern, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def remote(packed):
    """Copy the shards to fsspec's memory file system."""
    memory = fsspec.filesystem("memory")
    for path in packed.glob("original-*"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield memory
    memory.rm("/bucket", recursive=True)


def test_remote_shards_come_through_the_cache(packed, remote, tmp_path):
    local = ShardSet(f"{packed}/original-*.tar")
    shards = ShardSet("memory://bucket/original-*.tar", tmp_path)
    assert shards.keys == local.keys
    assert not list(tmp_path.glob("*.tar"))
    np.testing.assert_array_equal(shards.frames(2, [3, 4]), local.frames(2, [3, 4]))
    assert len(list(tmp_path.glob("*-original-000001.tar"))) == 1
    assert len(list(tmp_path.glob("*.tar"))) == 1
    remote.rm("/bucket/original-000001.tar")
    np.testing.assert_array_equal(shards.frames(3, [3, 4]), local.frames(3, [3, 4]))


def test_a_remote_shard_packed_again_is_downloaded_again(packed, remote, tmp_path):
    address = "memory://bucket/original-000001.tar"
    ShardSet(address, tmp_path).frames(0, [0])
    for suffix in ("tar", "json"):
        other = (packed / f"original-000000.{suffix}").read_bytes()
        remote.pipe_file(f"/bucket/original-000001.{suffix}", other)
    local = ShardSet(f"{packed}/original-000000.tar")
    np.testing.assert_array_equal(ShardSet(address, tmp_path).frames(0, [0]), local.frames(0, [0]))


def test_a_remote_shard_cut_off(remote, tmp_path):
    content = remote.cat_file("/bucket/original-000001.tar")
    remote.pipe_file("/bucket/original-000001.tar", content[:1000])
    shards = ShardSet("memory://bucket/original-*.tar", tmp_path)
    with pytest.raises(DataError, match="has 1,000 bytes, but its index says"):
        shards.frames(2, [0])
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def _read_all(address, cache, queue):
    shards = ShardSet(address, cache)
    queue.put([int(shards.frames(i, [1]).sum()) for i in range(len(shards))])


def test_processes_that_fill_one_cache_at_once(packed, tmp_path):
    # "local" is a file system of fsspec's that goes through the cache like any remote one.
    address = f"local://{packed}/original-*.tar"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_read_all, args=(address, tmp_path, queue)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    local = ShardSet(f"{packed}/original-*.tar")
    assert sums == 4 * [[int(local.frames(i, [1]).sum()) for i in range(NUM_VIDEOS)]]
    assert len(list(tmp_path.glob("*.tar"))) == 3
    assert not list(tmp_path.glob(".*"))
