"""Batches of the loader do not depend on workers, processes and resumption."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch

from ssl_vivit.data import shared_memory
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.broken_videos import SampleFetcher
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.loader import ClipBatches, ClipDataset, split_keys
from ssl_vivit.errors import DataError, DecodingError

CLIP = ClipConfig(num_frames=4, frame_stride=2, views=2)


class MemoryVideos:
    """Videos whose frames are computed from the video's name and the frame's number."""

    def __init__(
        self, n: int, broken: tuple[int, ...] = (), height: int = 12, width: int = 16
    ) -> None:
        self.keys = [f"video_{i:05d}" for i in range(n)]
        self.num_frames = 20 + np.arange(n) % 5
        self.heights, self.widths = np.full(n, height), np.full(n, width)
        self.fps = np.full(n, 25.0)
        self.has_annotation = np.zeros(n, dtype=bool)
        self.broken = broken

    def __len__(self) -> int:
        return len(self.keys)

    def annotation(self, i: int) -> dict | None:
        return None

    def frames(self, i: int, indices: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        if i in self.broken:
            raise DecodingError(f"frame 3 of {self.num_frames[i]} is damaged")
        shape = size or (self.heights[i], self.widths[i])
        pictures = [
            np.random.default_rng((i, frame)).integers(0, 256, (*shape, 3), dtype=np.uint8)
            for frame in indices
        ]
        return np.stack(pictures)


def batches(
    n: int = 23, workers: int = 0, broken: tuple[int, ...] = (), **settings: Any
) -> ClipBatches:
    augment = Augment(AugmentConfig(), (8, 8))
    dataset = ClipDataset(MemoryVideos(n, broken), CLIP, augment, 5, **settings)
    return ClipBatches(dataset, workers=workers)


def take(clips: ClipBatches, count: int, start: int = 0, **split: int) -> list[dict[str, Any]]:
    split = {"total_batch_size": 6, **split}
    stream = clips.stream(BatchSplit(**split), start_step=start, device="cpu")
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def assert_same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, b[name]), name
            else:
                assert value == b[name], name


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_batches_over_epoch_borders(workers: int) -> None:
    settings = {"n": 200, "broken": (17, 60)}
    # 33 steps make an epoch.
    assert_same(take(batches(**settings), 8, 30), take(batches(workers=workers, **settings), 8, 30))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [2, 3, 7])
def test_a_stream_that_begins_later_continues_the_first(workers: int, start: int) -> None:
    whole = take(batches(), 10)
    assert_same(whole[start:], take(batches(workers=workers), 10 - start, start))


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (3, 2), (2, 3)])
def test_the_global_batch_does_not_depend_on_its_split(world_size: int, accumulation: int) -> None:
    whole = take(batches(), 4)
    parts = [
        take(
            batches(),
            4 * accumulation,
            world_size=world_size,
            rank=rank,
            accumulation=accumulation,
        )
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        micro_steps = range(step * accumulation, (step + 1) * accumulation)
        pieces = [parts[rank][a] for a in micro_steps for rank in range(world_size)]
        assert torch.equal(torch.cat([piece["clips"] for piece in pieces]), batch["clips"])
        assert [key for piece in pieces for key in piece["key"]] == batch["key"]
        assert [names for piece in pieces for names in piece["draw"]] == batch["draw"]


def test_an_epoch_has_each_video_once_and_the_next_has_another_order() -> None:
    clips = batches()
    steps = clips.steps_per_epoch(6)
    assert steps == 3
    taken = take(clips, 2 * steps)
    first = [key for batch in taken[:steps] for key in batch["key"]]
    second = [key for batch in taken[steps:] for key in batch["key"]]
    assert len(set(first)) == len(set(second)) == 18
    assert first != second
    cut = [
        {
            key: frames.tolist()
            for batch in epoch
            for key, frames in zip(batch["key"], batch["frames"], strict=True)
        }
        for epoch in (taken[:steps], taken[steps:])
    ]
    common = cut[0].keys() & cut[1].keys()
    assert sum(cut[0][key] == cut[1][key] for key in common) < len(common) / 2


def test_a_batch_equals_a_computation_from_its_names() -> None:
    """Frames, augmentation and rates of each view equal a computation by hand."""
    clips = batches()
    videos, augment = clips.dataset.videos, clips.dataset.augment
    batch = take(clips, 1)[0]
    assert batch["clips"].shape == (6, 2, 3, 4, 8, 8)
    assert batch["fps"].tolist() == [25.0] * 6
    for i, key in enumerate(batch["key"]):
        for view in range(2):
            frames = batch["frames"][i, view].tolist()
            assert np.diff(frames).tolist() == [2, 2, 2]
            pixels = videos.frames(videos.keys.index(key), frames)
            assert batch["draw"][i] == (5, 0, key)
            params = augment.draw(named_generator(*batch["draw"][i], "augment", view), 12, 16)
            alone = augment(torch.from_numpy(pixels)[None], {k: v[None] for k, v in params.items()})
            assert torch.allclose(alone[0], batch["clips"][i, view], atol=1e-6)


def test_seeds_differ_and_global_generators_are_unchanged() -> None:
    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    taken = take(batches(workers=1), 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    other = batches()
    other.dataset.seed = 6
    assert take(other, 2)[0]["key"] != taken[0]["key"]


def test_a_subset_stays_a_subset_and_no_shuffle_keeps_its_order() -> None:
    dataset = batches().dataset
    chosen = [3, 1, 4, 15, 9, 2]
    ordered = ClipBatches(dataset, shuffle=False, indices=chosen)
    names = [dataset.videos.keys[i] for i in chosen]
    taken = take(ordered, 4, total_batch_size=3)
    assert [batch["key"] for batch in taken] == [names[:3], names[3:]] * 2
    shuffled = ClipBatches(dataset, indices=chosen)
    taken = take(shuffled, 2, total_batch_size=3)
    assert sorted(key for batch in taken for key in batch["key"]) == sorted(names)


def test_one_pass_keeps_the_order_and_the_last_partial_batch() -> None:
    augment = Augment(AugmentConfig(), (8, 8)).without_randomness()
    dataset = ClipDataset(MemoryVideos(7), CLIP, augment, 0, evaluation=True)
    passes = [
        list(ClipBatches(dataset, workers=workers, indices=[6, 2, 4, 0, 1]).once(2, "cpu"))
        for workers in (0, 2)
    ]
    assert_same(*passes)
    assert [len(batch["key"]) for batch in passes[0]] == [2, 2, 1]
    assert [key for b in passes[0] for key in b["key"]] == [
        f"video_{i:05d}" for i in (6, 2, 4, 0, 1)
    ]
    # 21 frames, of which a clip spans 7: starts 0 and 14.
    assert passes[0][0]["frames"][0].tolist() == [[0, 2, 4, 6], [14, 16, 18, 20]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_video_is_replaced_named_and_counted_once(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    clips = batches(n=120, workers=workers, broken=(50,))
    with caplog.at_level(logging.WARNING, logger="ssl_vivit.data.video.loader"):
        taken = take(clips, 2 * 6, total_batch_size=20)
    assert clips.broken == {"video_00050": "frame 3 of 20 is damaged"}
    assert len(caplog.messages) == 1
    assert "video_00050" in caplog.messages[0]
    assert "frame 3 of 20 is damaged" in caplog.messages[0]
    whole = take(batches(n=120), 2 * 6, total_batch_size=20)
    replaced = 0
    for with_fault, without in zip(taken, whole, strict=True):
        assert len(with_fault["key"]) == 20
        for i, key in enumerate(without["key"]):
            if key == "video_00050":
                replaced += 1
                assert with_fault["key"][i] != key
                assert with_fault["broken"] == [key]
                assert with_fault["draw"][i][2:] == (key, 1)
            else:
                assert with_fault["key"][i] == key
                assert torch.equal(with_fault["clips"][i], without["clips"][i])
    assert replaced == 2


def test_a_replacement_is_another_clip_than_the_videos_own() -> None:
    """If a batch contained a clip twice, a negative pair would be a positive pair."""
    clips = batches(n=100, broken=(50,))
    taken = take(clips, 16)
    seen = [
        (key, tuple(frames.flatten().tolist()), clip.sum().item())
        for batch in taken
        for key, frames, clip in zip(batch["key"], batch["frames"], batch["clips"], strict=True)
    ]
    assert len(seen) == len(set(seen)) == 96


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_videos_stop_with_their_names(workers: int) -> None:
    five = (10, 20, 30, 40, 50)
    assert len(take(batches(n=100, workers=workers, broken=five), 32)) == 32
    with pytest.raises(DataError, match=r"6 of 100 .*, more than 1% and more than 5") as caught:
        take(batches(n=100, workers=workers, broken=(*five, 60)), 32)
    assert all(f"video_000{i}" in str(caught.value) for i in (*five, 60))
    with pytest.raises(DataError) as caught:
        list(batches(n=40, workers=workers, broken=tuple(range(12, 40))).once(40, "cpu"))
    message = str(caught.value)
    assert "28 of 40" in message
    assert message.count("video_") == 10
    assert "and 18 more" in message
    assert "\n" not in message
    assert not multiprocessing.active_children()


def test_replacements_that_are_broken_are_replaced_as_well() -> None:
    dataset = batches(n=10, broken=(0, 1, 2, 3, 4, 5)).dataset
    fetcher = SampleFetcher(dataset, np.arange(10), replace=True)
    samples = [fetcher[index, epoch] for index in range(6) for epoch in range(4)]
    found = [sample for sample in samples if "clips" in sample]
    assert len(found) > 20
    assert max(len(sample["broken"]) for sample in found) > 2
    assert {sample["key"] for sample in found} == {f"video_{i:05d}" for i in (6, 7, 8, 9)}
    again = [fetcher[index, epoch] for index in range(6) for epoch in range(4)]
    assert [sample.get("key") for sample in samples] == [sample.get("key") for sample in again]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_of_another_kind_is_shown_and_ends_the_workers(workers: int) -> None:
    clips = batches(workers=workers)

    def fail(*arguments: Any) -> np.ndarray:
        raise PermissionError("the disk is gone")

    clips.dataset.videos.frames = fail  # type: ignore[method-assign]
    with pytest.raises(PermissionError, match="the disk is gone"):
        take(clips, 1)
    assert not multiprocessing.active_children()


def test_nothing_but_broken_videos_ends() -> None:
    with pytest.raises(DataError, match="videos cannot be used"):
        take(batches(n=2000, broken=tuple(range(2000))), 1)


def test_one_pass_leaves_broken_videos_out() -> None:
    clips = batches(n=101, broken=(4,))
    keys = [key for batch in clips.once(10, "cpu") for key in batch["key"]]
    assert keys == [f"video_{i:05d}" for i in range(101) if i != 4]
    assert list(clips.broken) == ["video_00004"]


def test_missing_annotations_are_refused_before_the_first_batch() -> None:
    with pytest.raises(DataError, match=r"video_00000 has no annotation.*pack --annotations"):
        batches(labels=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_annotation_of_another_length_is_one_line_from_workers_too(workers: int) -> None:
    clips = batches(workers=workers)
    videos = clips.dataset.videos
    videos.annotation = lambda i: {"motion_trajectory": [{}] * 40}  # type: ignore[method-assign]
    videos.has_annotation[:] = True
    clips.dataset.labels = True
    with pytest.raises(DataError, match=r"video_\d+ has 40 frames, but the video has 2") as caught:
        take(clips, 1)
    assert "\n" not in str(caught.value)


def test_labels_come_with_each_view() -> None:
    videos = MemoryVideos(8)
    videos.num_frames[:] = 20
    videos.has_annotation[:] = True
    thing = {"object_id": 0, "velocity": [0.0, 3.0, 4.0], "inside_camera_view": True}
    scene = {
        "object_property": [{"object_id": 0, "color": "red", "material": "metal", "shape": "cube"}],
        "motion_trajectory": [{"frame_id": f, "objects": [thing]} for f in range(20)],
        "collision": [{"frame_id": 8}],
    }
    videos.annotation = lambda i: scene  # type: ignore[method-assign]
    dataset = ClipDataset(videos, CLIP, Augment(AugmentConfig(), (8, 8)), 0, labels=True)
    batch = next(iter(ClipBatches(dataset).once(8, "cpu")))
    assert batch["presence"].shape == (8, 2, 48)
    assert batch["presence"].sum(-1).eq(1).all()
    assert batch["presence"][:, :, 2].eq(1).all()
    assert batch["mean_speed"].eq(5).all()
    frames = batch["frames"]
    inside = (frames.amin(-1) <= 8) & (frames.amax(-1) >= 8)
    assert torch.equal(batch["num_collisions"], inside.long())
    assert torch.equal(batch["has_collision"], inside.float())


def test_videos_of_several_sizes_need_a_frame_size() -> None:
    videos = MemoryVideos(8)
    videos.heights[3] = 10
    augment = Augment(AugmentConfig(), (8, 8))
    with pytest.raises(DataError, match=r"2 different sizes.*--data\.frame_size"):
        ClipDataset(videos, CLIP, augment, 0)
    dataset = ClipDataset(videos, CLIP, augment, 0, frame_size=(9, 11))
    assert dataset.sample(3, 0, "name")["clips"].shape == (2, 4, 9, 11, 3)


def test_fewer_videos_than_a_batch_are_refused_before_the_first_batch() -> None:
    with pytest.raises(DataError, match=r"23 videos.*--training\.total_batch_size 32"):
        batches().stream(BatchSplit(32), start_step=0, device="cpu")
    with pytest.raises(DataError, match=r"no videos"):
        batches(n=0)


def test_too_little_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(DataError, match=r"--data\.workers 2 need .* MiB of shared memory"):
        batches(workers=2).stream(BatchSplit(6), start_step=0, device="cpu")
    assert len(take(batches(workers=0), 1)) == 1


def test_shared_memory_is_checked_once_for_all_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_waiting", WeakKeyDictionary())
    train, held_out, late, large = (batches() for _ in range(4))
    assert shared_memory.missing(train, 60, free=100) == 0
    assert shared_memory.missing(large, 50, free=100) == 10
    assert shared_memory.missing(held_out, 30, free=100) == 0
    shared_memory.started(train)
    shared_memory.started(held_out)
    # Both hold their memory by then.
    assert shared_memory.missing(held_out, 30, free=10) == 0
    assert shared_memory.missing(late, 30, free=10) == 20
    assert shared_memory.missing(large, 50, free=100) == 0


def test_parts_of_processes_contain_each_video_once() -> None:
    whole = batches(n=23)
    parts = [whole.of_process(rank, 3) for rank in range(3)]
    assert sorted(int(i) for part in parts for i in part.indices) == sorted(whole.indices.tolist())
    assert [len(part) for part in parts] == [8, 8, 7]
    parts[1].broken["v"] = "reason"
    assert whole.broken == {"v": "reason"}


def test_closing_ends_the_workers_and_descriptors_do_not_pile_up() -> None:
    before = len(os.listdir("/proc/self/fd"))
    stream = batches(workers=2).stream(BatchSplit(6), start_step=0, device="cpu")
    kept = [next(stream)]
    assert len(multiprocessing.active_children()) == 2
    running = len(os.listdir("/proc/self/fd"))
    kept += list(itertools.islice(stream, 30))
    assert len(os.listdir("/proc/self/fd")) <= running + 8
    stream.close()
    assert not multiprocessing.active_children()
    assert len(os.listdir("/proc/self/fd")) <= before + 8


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_workers_leave_signals_to_the_training_process(name: str) -> None:
    expected = take(batches(), 8)
    stream = batches(workers=2).stream(BatchSplit(6), start_step=0, device="cpu")
    taken = [next(stream)]
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, getattr(signal, name))
    taken += list(itertools.islice(stream, 7))
    stream.close()
    assert_same(expected, taken)


INTERRUPTED = """
import multiprocessing, os, signal, sys
sys.path[:0] = {paths!r}
from test_loader import BatchSplit, batches
stream = batches(workers=2).stream(BatchSplit(6), start_step=0, device="cpu")
try:
    for i, batch in enumerate(stream):
        if i == 1:
            print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
            os.killpg(0, signal.SIGINT)
finally:
    stream.close()
"""


def test_ctrl_c_leaves_neither_workers_nor_their_tracebacks() -> None:
    root = Path(__file__).parents[3]
    script = INTERRUPTED.format(paths=[str(root), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
        # Under `nohup make test &` SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        check=False,
    )
    assert done.returncode not in (0, None)
    assert done.stderr.count("Traceback") == 1
    assert "KeyboardInterrupt" in done.stderr
    pids = done.stdout.split()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


LEFT_OPEN = """
import multiprocessing, sys
sys.path[:0] = {paths!r}
from test_loader import BatchSplit, batches
stream = batches(workers=2).stream(BatchSplit(6), start_step=0, device="cpu")
next(stream)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
raise RuntimeError("with the stream open")
"""


def test_a_crash_with_an_open_stream_does_not_wait_for_its_workers() -> None:
    root = Path(__file__).parents[3]
    script = LEFT_OPEN.format(paths=[str(root), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert "with the stream open" in done.stderr
    assert not [pid for pid in done.stdout.split() if Path(f"/proc/{pid}").exists()]


def test_the_held_out_part_does_not_move_when_videos_are_added() -> None:
    keys = [f"video_{i:05d}" for i in range(10_000)]
    train, held_out = split_keys(keys, 0.1)
    assert sorted([*train, *held_out]) == list(range(10_000))
    assert abs(len(held_out) - 1000) < 4 * np.sqrt(900)
    some = split_keys(keys[5000:], 0.1)[1] + 5000
    assert some.tolist() == held_out[held_out >= 5000].tolist()
    assert set(split_keys(keys, 0.05)[1]) < set(held_out)
    assert len(split_keys(keys, 0.0)[1]) == 0
    with pytest.raises(DataError, match=r"--data\.held_out is 1\.0"):
        split_keys(keys, 1.0)
