"""Videos for training and testing probes."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_vivit.data.provenance import trained_on
from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.broken_videos import refuse_many_broken
from ssl_vivit.data.video.clips import ClipConfig, needed_length, too_short
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.files_below import passed_over_line
from ssl_vivit.data.video.loader import ClipBatches, split_keys
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.shards.sample_keys import sample_keys
from ssl_vivit.data.video.video_folder import VideoFolder
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.preparation import Preparation
from ssl_vivit.evaluation.probes.config import ProbeData
from ssl_vivit.evaluation.probes.labelled_videos import ClevrerLabels, FolderLabels, Labels
from ssl_vivit.evaluation.probes.linear import FOLDS

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """Videos of the training or the test part.

    Attributes:
        videos: shards or folder with the videos.
        indices: indices of the part's videos.
        labels: function from a batch to the labels of its videos.
        limit: maximum number of videos to use.
        config: settings for reading videos.
    """

    videos: ShardSet | VideoFolder
    indices: np.ndarray
    labels: Labels
    limit: int
    config: ProbeData

    def drawn(self, seed: int, name: str) -> np.ndarray:
        """Return indices of the videos to use, in ascending order.

        These are all videos, or ``limit`` videos that are drawn at random. The draw depends on
        ``seed`` and ``name``.
        """
        if len(self.indices) <= self.limit:
            return self.indices
        order = named_generator(seed, name).permutation(len(self.indices))
        return np.sort(self.indices[order[: self.limit]])

    def dataset(self, prepared: Preparation, *, spread: bool = False) -> ClipDataset:
        """Return the data set of clips of the videos.

        Several clips per video are evenly spaced. A single clip starts at a random position in each
        epoch, or is in the middle of the video if ``spread`` is true.
        """
        return prepared.dataset(
            self.videos,
            labels=self.labels.annotated,
            frame_size=self.config.frame_size,
            spread=spread or prepared.clip.views > 1,
            short_videos=self.config.short_videos,
        )

    def batches(
        self, prepared: Preparation, indices: np.ndarray, *, spread: bool = False
    ) -> ClipBatches:
        """Return a loader of clips of the videos ``indices``, in this order.

        For the other arguments see :meth:`dataset`.
        """
        workers = self.config.workers
        dataset = self.dataset(prepared, spread=spread)
        return ClipBatches(dataset, workers=workers, shuffle=False, indices=indices)


class Parts(NamedTuple):
    """Training and test videos of probes."""

    train: Part
    test: Part

    def long_enough(self, clips: Sequence[ClipConfig]) -> tuple[Parts, list[str]]:
        """Leave out videos that are too short for any of the clips.

        All encoders are thus evaluated on the videos that are long enough for all of them. Videos
        are left out only if ``short_videos`` in the part's ``config`` is "skip".

        Args:
            clips: clips of the encoders.

        Returns:
            The parts, and the names of all videos that are too short, including videos that are
            padded instead of left out.

        Raises:
            DataError: if the remaining videos are too few to train and test a probe.
        """
        parts: list[Part] = []
        names: set[str] = set()
        for part in self:
            short = {i for clip in clips for i in too_short(part.videos, clip)}
            names |= {part.videos.keys[i] for i in part.indices if i in short}
            if part.config.short_videos == "skip":
                part = part._replace(indices=np.setdiff1d(part.indices, list(short)))
            if not len(part.indices):
                longest = max(clips, key=lambda clip: clip.span / (clip.fps or 1))
                raise DataError(
                    "all videos of the training or the test part are too short: "
                    f"{needed_length(longest)}; give longer videos, lower --clips or "
                    "--data.clip.frame_stride, or set --data.short_videos pad"
                )
            parts.append(part)
        _warn_of_missing_classes(parts)
        count = len(parts[0].indices)
        if count < FOLDS:
            raise DataError(
                f"a probe needs at least {FOLDS} training videos, but there are {count}; give more "
                "videos, or lower --data.held_out"
            )
        return Parts(*parts), sorted(names)


def _warn_of_missing_classes(parts: Sequence[Part]) -> None:
    """Log a warning, in the main process, for a part without videos of some of the classes."""
    for what, part in zip(("training", "test"), parts, strict=True):
        if isinstance(part.labels, FolderLabels) and os.environ.get("RANK", "0") == "0":
            keys = [part.videos.keys[i] for i in part.indices]
            if missing := part.labels.missing_classes(keys):
                logger.warning(
                    "the %d %s videos contain %s, so scores say little; give more videos, or "
                    "another --data.held_out", len(keys), what, missing,
                )  # fmt: skip


def open_parts(data: ProbeData, train_videos: int = 2000, test_videos: int = 1000) -> Parts:
    """Open the videos and split them into a training and a test part.

    Args:
        data: settings that select the videos.
        train_videos: maximum number of training videos; if there are more, each seed draws its own.
        test_videos: maximum number of test videos.

    Raises:
        DataError: if there are no videos, if they have no annotations, or if a video is in both
            parts.
    """
    train: ShardSet | VideoFolder
    labels: Labels
    if data.folder is not None:
        if data.shards or data.test_shards:
            other = "--data.shards" if data.shards else "--data.test_shards"
            raise DataError(
                f"--data.folder and {other} are both set; omit one of them. Test videos are a part "
                "of the folder (--data.held_out)"
            )
        train = folder = data.open_folder(data.folder, "--data.folder")
        refuse_many_broken(folder.broken, len(folder) + len(folder.broken))
        if os.environ.get("RANK", "0") == "0":
            if passed := passed_over_line(folder.passed_over):
                logger.warning("%s", passed)
            for name, reason in folder.broken.items():
                logger.warning("%s is broken and left out: %s", name, reason)
        labels = FolderLabels(folder)
    elif data.shards:
        train = data.open_shards(data.shards)
        labels = _annotated(train)
    else:
        raise DataError(
            "--data.shards is not set; make shards by `python -m data_prep.clevrer pack`"
        )
    if data.test_shards:
        test = data.open_shards(data.test_shards)
        if both := _common_videos(train, test):
            raise DataError(
                f"--data.shards and --data.test_shards have {len(both)} common videos, such as "
                f"{both[0]}; give other --data.test_shards"
            )
        everything = np.arange(len(train)), np.arange(len(test))
        return Parts(
            Part(train, everything[0], labels, train_videos, data),
            Part(test, everything[1], _annotated(test), test_videos, data),
        )
    # A folder is split like the shards that `pack` makes from it, so that videos held out in
    # pretraining are the test videos.
    keys = train.keys if data.folder is None else sample_keys(train.keys)
    kept, held_out = split_keys(keys, data.held_out)
    if not len(kept) or not len(held_out):
        raise DataError(
            f"--data.held_out {data.held_out} splits {len(train)} videos into {len(kept)} training "
            f"videos and {len(held_out)} test videos; choose another fraction"
        )
    return Parts(
        Part(train, kept, labels, train_videos, data),
        Part(train, held_out, labels, test_videos, data),
    )


def not_unseen(name: str, provenance: dict[str, Any] | None, test: Part) -> str | None:
    """Return a warning if an encoder may have been trained on test videos, else None.

    Args:
        name: name of the encoder, for the warning.
        provenance: the encoder's record of the runs that trained its weights.
        test: test videos of the probes.
    """
    while provenance is not None:
        record, provenance = provenance.get("data"), provenance.get("before")
        if not isinstance(record, dict):
            continue
        count = trained_on(record, test.videos, test.indices)
        if count:
            config, share = test.config, record["held_out"]
            option = "--data.folder" if config.folder is not None else "--data.test_shards"
            mend = f"give other videos by {option}"
            others = count < len(test.indices)
            if others and 0 < share < config.held_out and not config.test_shards:
                mend = f"set --data.held_out {share:g} as in its pretraining, or {mend}"
            return (
                f"warning: {count} of the {len(test.indices)} test videos may have been used to "
                f"train {name}: {mend}"
            )
    return None


def _common_videos(train: ShardSet | VideoFolder, test: ShardSet) -> list[str]:
    """Return names of test videos whose name or source file also occurs in training."""
    keys = set(train.keys)
    sources = {train.source(i) for i in range(len(train))} - {None}
    return sorted(
        key for i, key in enumerate(test.keys) if key in keys or test.source(i) in sources
    )


def _annotated(videos: ShardSet) -> ClevrerLabels:
    if not videos.has_annotation.all():
        raise DataError(
            f"{videos.keys[int(np.argmin(videos.has_annotation))]} has no annotation, which gives "
            "the labels of shards; pack the shards with `python -m data_prep.clevrer pack "
            "--annotations …`, or give a folder of classes by --data.folder"
        )
    return ClevrerLabels(videos)
