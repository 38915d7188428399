"""Labels of videos, from CLEVRER's annotations or from the names of folders."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.video.clevrer import video_labels
from ssl_vivit.data.video.loader import ClipBatches
from ssl_vivit.data.video.video_folder import VideoFolder
from ssl_vivit.data.video.videos import Videos
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.probes.scores import CLEVRER_TARGETS
from ssl_vivit.objectives.targets import Target


class Labels(Protocol):
    """Function from a batch of clips to target → labels of the videos.

    Attributes:
        targets: the targets that have labels.
        annotated: whether labels come from CLEVRER's annotations.
    """

    targets: tuple[Target, ...]
    annotated: bool

    def __call__(self, batch: dict[str, Any]) -> dict[str, Tensor]: ...


class ClevrerLabels:
    """Labels from CLEVRER's annotations, see :func:`~ssl_vivit.data.video.clevrer.clip_labels`.

    Several clips of a video have one label: objects visible in any frame of the clips, and
    collisions from the first to the last clip.

    Args:
        videos: videos with annotations.
    """

    targets: tuple[Target, ...] = CLEVRER_TARGETS
    annotated = True

    def __init__(self, videos: Videos) -> None:
        self._videos = videos
        self._index = {key: i for i, key in enumerate(videos.keys)}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return target → labels (b, …) of the batch's videos.

        Raises:
            AnnotationError: if an annotation has no valid labels.
        """
        if batch["frames"].shape[1] == 1 and all(t.name in batch for t in self.targets):
            # The loader's workers have already read the annotations.
            return {t.name: batch[t.name][:, 0] for t in self.targets}
        told = [
            video_labels(self._videos, self._index[key], [np.unique(frames).tolist()])[0]
            for key, frames in zip(batch["key"], batch["frames"].cpu().numpy(), strict=True)
        ]
        return {name: torch.stack([each[name] for each in told]) for name in told[0]}


class FolderLabels:
    """Classes of videos from the names of their folders, ``root/class/….mp4``.

    Args:
        videos: videos below the root.

    Attributes:
        classes: sorted names of the classes.

    Raises:
        DataError: if a video is in the root itself, or if there are fewer than two folders.
    """

    annotated = False

    def __init__(self, videos: VideoFolder) -> None:
        loose = [key for key in videos.keys if "/" not in key]
        self.classes = sorted({key.split("/")[0] for key in videos.keys})
        if loose or len(self.classes) < 2:
            what = f"{loose[0]} is in no such folder" if loose else f"it has {len(self.classes)}"
            raise DataError(
                f"--data.folder {videos.root} must hold two or more folders of videos, one for "
                f"each class; {what}"
            )
        self.targets: tuple[Target, ...] = (Target("class", "class", len(self.classes)),)

    def missing_classes(self, keys: Sequence[str]) -> str | None:
        """Return a phrase for a message, naming the classes to which no video in ``keys`` belongs.

        None if all classes have videos.
        """
        missing = sorted({*self.classes} - {key.split("/")[0] for key in keys})
        return f"no video of the classes {', '.join(missing)}" if missing else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the class index of each video of the batch, int64 (b,)."""
        numbers = [self.classes.index(key.split("/")[0]) for key in batch["key"]]
        return {"class": torch.tensor(numbers)}


class LabelledBatches:
    """Batches for supervised training: batches of a loader with the additional key ``labels``.

    Args:
        batches: the loader.
        labels: labels of the loader's videos.
    """

    def __init__(self, batches: ClipBatches, labels: Labels) -> None:
        self.batches, self.labels = batches, labels

    def steps_per_epoch(self, total_batch_size: int) -> int:
        """Return the number of whole batches in an epoch."""
        return self.batches.steps_per_epoch(total_batch_size)

    def stream(
        self, split: BatchSplit, *, start_step: int, device: torch.device
    ) -> Generator[dict[str, Any], None, None]:
        """Yield labelled batches like :meth:`~ssl_vivit.data.video.loader.ClipBatches.stream`."""
        with closing(self.batches.stream(split, start_step=start_step, device=device)) as batches:
            for batch in batches:
                told = {name: value.to(device) for name, value in self.labels(batch).items()}
                yield {**batch, "labels": told}
