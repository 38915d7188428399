"""Batches of augmented clips, independent of the number of workers and processes.

- The order of videos is a permutation given by (seed, epoch). It is cut into global batches, which
  BatchSplit divides over processes.
- Clips and their augmentation depend only on (seed, epoch, sample key). These names are also passed
  to the objective, for its own random draws.
- Workers read and decode. The training process augments, on the training device.
- A video that is broken, or lacks needed labels, is counted and replaced by another video. The
  replacement depends only on (seed, epoch, key, attempt).
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
    """Settings of pretraining data: videos, clips and augmentation.

    Args:
        shards: paths, patterns (``'shards/clevrer-train-*.tar'``, ``'…-{000000..000009}.tar'``) or
            addresses (``s3://``, ``gs://``, ``https://``) of shards.
        held_out: fraction of held-out videos, which are chosen by their names; from 0 to below 1.
        clip: settings of the clips.
        augment: settings of the augmentation.
        mean: mean of each channel for pixels scaled to [0, 1], or one number for all channels. The
            default is for CLEVRER, where most pixels show the grey ground. For other shards, ``python
            -m data_prep.clevrer info SHARDS --statistics`` prints mean and std.
        std: standard deviation of each channel for pixels scaled to [0, 1], or one number for all
            channels. The default is for CLEVRER, as for ``mean``.
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
    """Batches of training clips and of held-out clips.

    Attributes:
        train: batches of the training videos, shuffled and augmented.
        held_out: batches of the held-out videos, with evenly spaced views and without augmentation.
            None if there are none.
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
    """Open the shards and split their videos into training and held-out videos.

    The main process logs a warning that names videos that are too short for the clips.

    Args:
        config: settings of videos and clips.
        num_frames: number of frames of a clip, as the encoder takes. None means
            ``config.clip.num_frames``.
        size: (H, W) of the clips, the encoder's image size.
        in_channels: the encoder's channels, 3 for RGB or 1 for luma.
        seed: seed of all random draws.
        labels: whether batches contain labels from CLEVRER's annotations.

    Raises:
        DataError: if shards are missing or invalid, or settings do not suit them.
    """
    if not config.shards:
        raise DataError(
            "--data.shards is not set; make shards with `python -m data_prep.clevrer pack`"
        )
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
    line = short_videos_line(short, len(videos), config.short_videos, [clip])
    if line and os.environ.get("RANK", "0") == "0":
        logger.warning("%s", line)
    # Without held-out videos there is no held-out part.
    return Clips(clips[0], clips[1] if clips[1] else None)


def split_keys(keys: Sequence[str], held_out: float) -> tuple[np.ndarray, np.ndarray]:
    """Split videos by a hash of their names, so that no video changes its set if shards are added.

    Args:
        keys: names of the videos, which must be unique.
        held_out: expected fraction of held-out videos, 0 ≤ held_out < 1.

    Returns:
        Indices of the training videos and of the held-out videos, int64, ascending.

    Raises:
        DataError: if ``held_out`` is out of range.
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
    """Endless stream of training batches, or one pass over the videos.

    A batch is a dictionary with

    - ``clips``: float (b, views, C, T, H, W), augmented and normalised, on the device;
    - ``key``: names of the videos, after replacement of broken ones;
    - ``draw``: for each video the names (seed, epoch, …) of an objective's random draws;
    - ``frames``: int64 (b, views, T), frame numbers;
    - ``fps``: float (b,), frame rates of the videos;
    - ``broken``: names of videos that were replaced or left out because they cannot be decoded;
    - if the dataset has labels, the labels of
      :func:`~ssl_vivit.data.video.clevrer.clip_labels`, each (b, views, …).

    Do not pass this object to ``accelerator.prepare``, since it already splits batches over
    processes.

    Args:
        dataset: dataset of the videos.
        workers: number of processes that decode. 0 decodes in this process. None means the number
            of cores that the training processes leave free, at most 8.
        shuffle: whether each epoch has a new order. If false, the order is that of ``indices``.
        indices: indices of the videos to use, without those that the dataset skips as too short.
            None means all videos.
        broken: dictionary of reasons by name of the video, for videos that were found to be broken
            earlier.

    Attributes:
        broken: dictionary from the name of each broken video found so far to the reason.
        unlabelled: dictionary of reasons by name of the video, for videos found so far whose labels
            cannot be read.
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
        """Return a dictionary that identifies the shards, with the key "data.shards".

        The value is a digest of the shards. The dictionary is empty if the videos are not in
        shards.
        """
        videos = self.dataset.videos
        return {"data.shards": videos.digest()} if isinstance(videos, ShardSet) else {}

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device | str
    ) -> Generator[dict[str, Any], None, None]:
        """Yield the micro-batches of all optimisation steps from ``start_step`` on, without end.

        Each step has ``split.accumulation`` micro-batches. The batches of a step do not depend on
        ``start_step``. Closing the iterator ends the workers.

        Raises:
            DataError: if there are fewer videos than a batch needs, if shared memory is too small
                for the workers, or, while reading, if too many videos are broken
                (:func:`~ssl_vivit.data.video.broken_videos.refuse_many_broken`).
        """
        steps = self.steps_per_epoch(split.total_batch_size)
        self._check_shared_memory(split.micro_batch_size)
        schedule = self._schedule(split, start_step, steps)
        return self._batches(schedule, torch.device(device), replace=True)

    def once(
        self, batch_size: int, device: torch.device | str, *, epoch: int = 0
    ) -> Generator[dict[str, Any], None, None]:
        """Yield batches of one pass over ``indices`` in order; the last batch may be smaller.

        Broken videos are left out and not replaced. Batches are not split over processes.

        Args:
            batch_size: number of videos in a batch.
            device: device of the batches.
            epoch: number of the epoch, on which the dataset's random draws depend.
        """
        self._check_shared_memory(min(batch_size, len(self.indices)))
        pairs = [(int(index), epoch) for index in self.indices]
        schedule = (pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size))
        return self._batches(schedule, torch.device(device), replace=False)

    def of_process(self, rank: int, world_size: int) -> ClipBatches:
        """Return the batches of one process: every ``world_size``-th video, from ``rank`` on."""
        if world_size == 1:
            return self
        indices = self.indices[rank::world_size]
        part = ClipBatches(self.dataset, workers=self.workers, shuffle=False, indices=indices)
        part.broken, part.unlabelled, part._total = self.broken, self.unlabelled, self._total
        return part

    def _schedule(
        self, split: BatchSplit, start_step: int, steps: int
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield for each micro-batch a list with (index of a video, epoch) for each sample."""
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
                "labels cannot be read for any video; the first error: "
                f"{next(iter(self.unlabelled.values()))}"
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
            # Without a generator the loader would draw from torch's global one.
            generator=torch.Generator().manual_seed(0),
        )
        others = set(multiprocessing.active_children())
        iterator = iter(loader)
        started = set(multiprocessing.active_children()) - others
        # Workers ignore SIGTERM, and the interpreter waits for them at its end, so kill them first
        # if this generator is still open.
        end_workers = functools.partial(_end, started)
        atexit.register(end_workers)
        shared_memory.started(self)
        try:
            yield from iterator
        finally:
            closing.value = 1  # so that a worker that waits for a server ends
            if self.workers:
                # The iterator's finaliser would also do this, unless a traceback keeps the iterator
                # alive.
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
                logger.warning("%s is broken and is left out: %s", name, reason)
        for name, reason in message["unlabelled"].items():
            if name not in self.unlabelled:
                self.unlabelled[name] = reason
                count = len(self.unlabelled)
                if count <= _NAMED:
                    logger.warning(
                        "video without labels is left out (%d so far): %s", count, reason
                    )
                elif count == _NAMED + 1:
                    logger.warning(
                        "more than %d videos have no labels; further ones are not named", _NAMED
                    )
        lost = {**self.broken, **self.unlabelled} if given_up else self.broken
        refuse_many_broken(lost, self._total, given_up=given_up)

    def _check_shared_memory(self, batch_size: int) -> None:
        if not self.workers or not Path("/dev/shm").is_dir():
            return
        frames = batch_size * self.dataset.clip.views * self.dataset.clip.length
        batch = frames * 3 * self.dataset.decoded_size[0] * self.dataset.decoded_size[1]
        # Count the prefetched batches, the batch in use and the batch being made.
        needed = batch * (self.workers * _PREFETCH + 2) * _local_processes()
        free = shutil.disk_usage("/dev/shm").free
        if missing := shared_memory.missing(self, needed, free):
            raise DataError(
                f"--data.workers {self.workers} need {needed / 2**20:,.0f} MiB of shared memory "
                f"for prefetched batches, but /dev/shm has {free / 2**20:,.0f} MiB free, "
                f"{missing / 2**20:,.0f} MiB too few for all loaders; lower --data.workers or "
                "--data.frame_size, or enlarge /dev/shm (docker: --shm-size)"
            )


def _end(workers: set[Any]) -> None:
    for worker in workers:
        # Kill, since a worker that is decoding a long video does not react to other requests.
        if worker.is_alive():
            worker.kill()
        worker.join()


def _start_worker(flags: Sequence[Any], parent: int, worker: int) -> None:
    """Prepare a worker process, which ignores signals, since the training process handles them."""
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
