"""Batches of augmented clips, independent of the number of workers and processes.

- Which videos: a permutation for (seed, epoch), cut into global batches, split by BatchSplit.
- Which clips, and how they are augmented: from (seed, epoch, sample key) alone. These names go on
  to the objective, for its own draws.
- Workers read and decode; augmentation runs in the consuming process, on the training device.
- A video that is broken, or has no labels where labels are asked for, is replaced by one chosen
  from (seed, epoch, key, attempt), and counted.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import DataLoader

from ssl_vivit.data import shared_memory, stopping
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.phases import phase
from ssl_vivit.data.randomness import name_fraction, permutation
from ssl_vivit.data.to_device import Preparation, to_device
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.broken_videos import (
    SampleFetcher,
    refuse_many_broken,
    short_videos_line,
)
from ssl_vivit.data.video.clevrer import MEAN, STD
from ssl_vivit.data.video.clips import ClipConfig, too_short
from ssl_vivit.data.video.dataset import ClipDataset, collate
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.videos import VideoReading
from ssl_vivit.errors import DataError

logger = logging.getLogger(__name__)

_PREFETCH = 2
_NAMED = 20


@dataclass(frozen=True)
class DataConfig(VideoReading):
    """Settings of pretraining data: which videos, and how clips come from them.

    Args:
        shards: paths, patterns (``'shards/clevrer-train-*.tar'``, ``'…-{000000..000009}.tar'``)
            or addresses (``s3://``, ``gs://``, ``https://``) of shards.
        held_out: share of the videos that is kept from training, chosen by their names.
        clip: how clips are cut.
        augment: how they are changed.
        mean: of each channel, for normalisation, in units of the pixel range [0, 1]; one number
            serves all. The default is CLEVRER's, most of which is its grey ground.
        std: of each channel, likewise.
    """

    shards: str | list[str] | None = None
    held_out: float = 0.05
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        _check_share(self.held_out)
        _check_workers(self.workers)


class Clips(NamedTuple):
    """Batches of training clips, and of held-out ones.

    Attributes:
        train: shuffled and augmented.
        held_out: the videos kept from training, evenly spaced views without augmentation; None
            if there are none.
    """

    train: ClipBatches
    held_out: ClipBatches | None


def build_clips(
    config: DataConfig,
    *,
    num_frames: int | None = None,
    size: tuple[int, int],
    in_channels: int = 3,
    seed: int = 0,
    labels: bool = False,
) -> Clips:
    """Open the shards and split the videos.

    Videos that are too short for the clips are named in a warning, by the main process.

    Args:
        config: which videos, and how clips come from them.
        num_frames: frames in a clip, the encoder's; None leaves it to ``config.clip``.
        size: (H, W) of the clips, the encoder's image size.
        in_channels: 3 for RGB, 1 for luma, the encoder's.
        seed: of every draw.
        labels: whether batches carry labels from CLEVRER's annotations.

    Raises:
        DataError: if the settings or the shards do not go together.
    """
    if not config.shards:
        raise DataError("--data.shards is not set; make some by `python -m data_prep.clevrer pack`")
    augment = Augment(config.augment, size, in_channels, config.mean, config.std)
    videos = config.open_shards(config.shards)
    train, held_out = split_keys(videos.keys, config.held_out)

    clip = config.clip if num_frames is None else config.clip.for_encoder(num_frames)

    def batches(indices: np.ndarray, evaluation: bool) -> ClipBatches:
        dataset = ClipDataset(
            videos,
            clip,
            augment.without_randomness() if evaluation else augment,
            seed,
            labels=labels,
            frame_size=config.frame_size,
            evaluation=evaluation,
            short_videos=config.short_videos,
        )
        return ClipBatches(dataset, workers=config.workers, shuffle=not evaluation, indices=indices)

    clips = batches(train, False), batches(held_out, True) if len(held_out) else None
    short = [videos.keys[i] for i in too_short(videos, clip)]
    line = short_videos_line(short, len(videos), config.short_videos)
    if line and os.environ.get("RANK", "0") == "0":
        logger.warning("%s", line)
    return Clips(clips[0], clips[1] if clips[1] else None)  # no videos, no held-out part


def split_keys(keys: Sequence[str], held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Split videos by a hash of their names, so that none moves when shards are added.

    Args:
        keys: names, each once.
        held_out: expected share of the second part, 0 ≤ held_out < 1.

    Returns:
        Indices of the training part and of the held-out part, int64, ascending.
    """
    _check_share(held_out)
    kept = np.array([name_fraction(key) < held_out for key in keys], dtype=bool)
    return np.flatnonzero(~kept), np.flatnonzero(kept)


def _check_share(held_out: float) -> None:
    if not 0 <= held_out < 1:
        raise DataError(f"--data.held_out is {held_out}; it must be 0 or more and below 1")


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 0:
        raise DataError(f"--data.workers is {workers}; it must be 0 or more, or null")


class ClipBatches:
    """Endless training batches, or one pass over the videos.

    A batch holds ``clips`` float (b, views, C, T, H, W), augmented and normalised on the device;
    ``key``, the names of the videos really used; ``draw``, for each of them the names (seed, epoch,
    …) that an objective makes its own random draws from; ``frames`` int64 (b, views, T), their
    frame numbers; ``fps`` float (b,), their own frame rates; ``broken``, names of videos that had
    to be replaced or left out because they do not decode; and with labels those of
    :func:`~ssl_vivit.data.video.clevrer.clip_labels`, each (b, views, …).

    Never pass it to ``accelerator.prepare``: it is split over processes already.

    Args:
        dataset: the videos.
        workers: processes that decode; 0 decodes in this one; None takes the cores that the
            launcher's processes leave free, 8 at most.
        shuffle: a new order every epoch, or always that of ``indices``.
        indices: the videos that take part, of which the data set's short ones are left out; None
            means all.
        broken: name → reason of videos that were left out before.

    Attributes:
        broken: name → reason of every broken video met so far.
        unlabelled: likewise of videos whose annotation tells no labels.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        workers: int | None = 0,
        shuffle: bool = True,
        indices: Sequence[int] | np.ndarray | None = None,
        broken: Mapping[str, str] | None = None,
    ) -> None:
        _check_workers(workers)
        self.dataset, self.shuffle = dataset, shuffle
        self.workers = _free_cores() if workers is None else workers
        chosen = np.asarray(range(len(dataset)) if indices is None else indices, dtype=np.int64)
        self.indices = chosen[dataset.start_counts[chosen] > 0]
        self.broken, self.unlabelled = dict(broken or {}), dict[str, str]()
        self._total = len({*dataset.videos.keys, *self.broken})

    def __len__(self) -> int:
        return len(self.indices)

    def steps_per_epoch(self, total_batch_size: int) -> int:
        """Return the number of whole global batches in an epoch; the remaining videos are dropped.

        Raises:
            DataError: if there are fewer videos than one batch needs.
        """
        if len(self.indices) < total_batch_size:
            raise DataError(
                f"there are {len(self.indices)} videos to train on, fewer than one batch of "
                f"--training.total_batch_size {total_batch_size}; lower it or add shards"
            )
        return len(self.indices) // total_batch_size

    def contents(self) -> dict[str, str]:
        """Setting → digest of the shards that it names; empty for videos that have no index."""
        videos = self.dataset.videos
        return {"data.shards": videos.digest()} if isinstance(videos, ShardSet) else {}

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device | str
    ) -> Generator[dict[str, Any], None, None]:
        """Micro-batches from the given optimisation step on, without end, over epoch borders.

        Each step yields ``split.accumulation`` of them. What step k yields does not depend on
        where the stream began. Closing the iterator ends the workers.

        Raises:
            DataError: if an epoch has no whole batch, or shared memory is too small for the
                workers; while running, as of
                :func:`~ssl_vivit.data.video.broken_videos.refuse_many_broken`.
        """
        steps = self.steps_per_epoch(split.total_batch_size)
        self._check_shared_memory(split.micro_batch_size)
        schedule = self._schedule(split, start_step, steps)
        return self._batches(schedule, torch.device(device), replace=True)

    def once(
        self, batch_size: int, device: torch.device | str, *, epoch: int = 0
    ) -> Generator[dict[str, Any], None, None]:
        """One pass over ``indices`` in their order; the last batch may be smaller.

        Broken videos are left out instead of replaced. Every process that asks gets all batches.

        Args:
            batch_size: videos in a batch.
            device: where batches go.
            epoch: names the random draws, where the data set makes any.
        """
        self._check_shared_memory(min(batch_size, len(self.indices)))
        pairs = [(int(index), epoch) for index in self.indices]
        schedule = (pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size))
        return self._batches(schedule, torch.device(device), replace=False)

    def of_process(self, rank: int, world_size: int) -> ClipBatches:
        """Return every ``world_size``-th of the videos, from number ``rank`` on."""
        if world_size == 1:
            return self
        indices = self.indices[rank::world_size]
        part = ClipBatches(self.dataset, workers=self.workers, shuffle=False, indices=indices)
        part.broken, part.unlabelled, part._total = self.broken, self.unlabelled, self._total
        return part

    def _schedule(
        self, split: BatchSplit, start_step: int, steps: int
    ) -> Iterator[list[tuple[int, int]]]:
        """(index, epoch) pairs of one micro-batch after another."""
        size = split.total_batch_size
        order, order_epoch = self.indices, -1
        for step in itertools.count(start_step):
            epoch, place = divmod(step, steps)
            if self.shuffle and epoch != order_epoch:
                order = self.indices[permutation(self.dataset.seed, epoch, len(self.indices))]
                order_epoch = epoch
            batch = order[place * size : (place + 1) * size]
            for micro_step in range(split.accumulation):
                yield [(int(batch[i]), epoch) for i in split.positions(micro_step)]

    def _batches(
        self, schedule: Iterable[list[tuple[int, int]]], device: torch.device, replace: bool
    ) -> Generator[dict[str, Any], None, None]:
        found, preparation = False, Preparation(device)
        with closing(self._messages(schedule, device, replace)) as messages:
            for message in messages:
                if "stopped" in message:
                    raise KeyboardInterrupt
                if "refusal" in message:
                    raise DataError(message["refusal"])
                self._count_left_out(message, given_up=replace and message["lost"] > 0)
                if message["key"]:
                    found = True
                    yield preparation.run(functools.partial(self._finish, message, device))
        if self.unlabelled and not found:
            raise DataError(
                f"no video has labels; the first: {next(iter(self.unlabelled.values()))}"
            )

    def _messages(
        self, schedule: Iterable[list[tuple[int, int]]], device: torch.device, replace: bool
    ) -> Generator[dict[str, Any], None, None]:
        closing = stopping.new_flag()
        loader: DataLoader = DataLoader(
            SampleFetcher(self.dataset, self.indices, replace),  # type: ignore[arg-type]
            batch_sampler=schedule,  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            prefetch_factor=_PREFETCH if self.workers else None,
            worker_init_fn=functools.partial(_start_worker, *stopping.heard_by_workers(closing)),
            # Without one of its own the loader would draw from torch's global generator.
            generator=torch.Generator().manual_seed(0),
        )
        others = set(multiprocessing.active_children())
        iterator = iter(loader)
        started = set(multiprocessing.active_children()) - others
        # Workers ignore SIGTERM, and an interpreter that ends with this generator open waits for them.
        end_workers = functools.partial(_end, started)
        atexit.register(end_workers)
        shared_memory.started(self)
        try:
            yield from iterator
        finally:
            closing.value = 1  # a worker that waits for a server would not end otherwise
            if self.workers:
                # The iterator's finaliser does it too, unless an exception's traceback holds it.
                iterator._shutdown_workers()  # type: ignore[attr-defined]
            end_workers()
            atexit.unregister(end_workers)

    def _finish(self, message: dict[str, Any], device: torch.device) -> dict[str, Any]:
        with phase("copy"):
            clips = to_device(message["clips"], device)
        batch_size = clips.shape[0]
        params = {
            name: torch.from_numpy(value).flatten(0, 1) for name, value in message["params"].items()
        }
        with phase("augmentation"):
            views = self.dataset.augment(rearrange(clips, "b v t h w c -> (b v) t h w c"), params)
        numbers = {"frames": message["frames"], "fps": message["fps"], **message["labels"]}
        return {
            "clips": rearrange(views, "(b v) c t h w -> b v c t h w", b=batch_size),
            "key": message["key"],
            "draw": message["draw"],
            "broken": list(message["broken"]),
            **{name: to_device(torch.from_numpy(value), device) for name, value in numbers.items()},
        }

    def _count_left_out(self, message: dict[str, Any], given_up: bool) -> None:
        for name, reason in message["broken"].items():
            if name not in self.broken:
                self.broken[name] = reason
                logger.warning("%s is broken and left out: %s", name, reason)
        for name, reason in message["unlabelled"].items():
            if name not in self.unlabelled:
                self.unlabelled[name] = reason
                count = len(self.unlabelled)
                if count <= _NAMED:
                    logger.warning("without labels, %d so far, left out: %s", count, reason)
                elif count == _NAMED + 1:
                    logger.warning("more than %d videos have no labels", _NAMED)
        lost = {**self.broken, **self.unlabelled} if given_up else self.broken
        refuse_many_broken(lost, self._total, given_up=given_up)

    def _check_shared_memory(self, batch_size: int) -> None:
        if not self.workers or not Path("/dev/shm").is_dir():
            return
        frames = batch_size * self.dataset.clip.views * self.dataset.clip.length
        batch = frames * 3 * self.dataset.decoded_size[0] * self.dataset.decoded_size[1]
        # Beside those that wait, one batch is in use and one is being made.
        needed = batch * (self.workers * _PREFETCH + 2) * _local_processes()
        free = shutil.disk_usage("/dev/shm").free
        if missing := shared_memory.missing(self, needed, free):
            raise DataError(
                f"--data.workers {self.workers} need {needed / 2**20:,.0f} MiB of shared memory "
                f"for the batches on their way, and /dev/shm has {free / 2**20:,.0f} MiB free, "
                f"{missing / 2**20:,.0f} MiB too few beside other loaders; lower --data.workers or "
                "--data.frame_size, or enlarge it (docker: --shm-size)"
            )


def _end(workers: set[Any]) -> None:
    for worker in workers:
        # One that is still busy with a long video does not listen to anything milder.
        if worker.is_alive():
            worker.kill()
        worker.join()


def _start_worker(flags: Sequence[Any], parent: int, worker: int) -> None:
    """Ignore signals to the process group: the training process answers them and ends its workers."""
    stopping.follow(flags, parent)
    torch.set_num_threads(1)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)


def _local_processes() -> int:
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _free_cores() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(8, max(1, cores // _local_processes() - 1))
