"""Dataset that runs in the loader's workers: it reads uint8 clips by (index, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import get_worker_info

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.augment import Augment
from ssl_vivit.data.video.clevrer import clip_labels, video_labels
from ssl_vivit.data.video.clips import (
    ClipConfig,
    clip_frames,
    draw_starts,
    even_starts,
    start_counts,
)
from ssl_vivit.data.video.videos import ShortVideos, Videos
from ssl_vivit.errors import DataError
from ssl_vivit.preprocessing import Preprocessing


class ClipDataset:
    """Dataset of uint8 clips of videos, with the parameters of their augmentation.

    Args:
        videos: the videos. Their lengths, sizes and annotations are checked without opening a
            video.
        clip: settings of the clips.
        augment: augmentation. Its parameters are drawn here, and ClipBatches applies it.
        seed: seed of all random draws.
        labels: whether to compute labels from CLEVRER's annotations.
        frame_size: (H, W) to which frames are decoded. None keeps their size.
        evaluation: whether views start at evenly spaced instead of random time steps.
        short_videos: see :func:`~ssl_vivit.data.video.clips.start_counts`. ClipBatches leaves out
            videos with 0 starts.

    Raises:
        DataError: if there are no videos, videos have different sizes and ``frame_size`` is None,
            videos are too short, or an annotation is missing that labels need.
    """

    def __init__(
        self,
        videos: Videos,
        clip: ClipConfig,
        augment: Augment,
        seed: int,
        *,
        labels: bool = False,
        frame_size: tuple[int, int] | None = None,
        evaluation: bool = False,
        short_videos: ShortVideos = "skip",
    ) -> None:
        if len(videos) == 0:
            raise DataError(
                "there are no videos in the shards; give other shards with --data.shards"
            )
        self.videos, self.clip, self.augment, self.seed = videos, clip, augment, seed
        self.labels, self.frame_size, self.evaluation = labels, frame_size, evaluation
        self.short_videos = short_videos
        self.start_counts = start_counts(videos, clip, short_videos)
        if labels and not videos.has_annotation.all():
            without = int(np.argmin(videos.has_annotation))
            clip_labels(None, [], videos.keys[without])
        if frame_size is None:
            sizes = sorted({*zip(videos.heights.tolist(), videos.widths.tolist(), strict=True)})
            if len(sizes) > 1:
                raise DataError(
                    f"the videos have {len(sizes)} different sizes, from "
                    f"{sizes[0][0]}×{sizes[0][1]} to {sizes[-1][0]}×{sizes[-1][1]} (H×W); set "
                    f"--data.frame_size to one size for all"
                )
            self.decoded_size = sizes[0]
        else:
            self.decoded_size = frame_size

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of clips without augmentation, which is saved with an exported encoder."""
        clip, augment = self.clip, self.augment
        return Preprocessing(
            pixel_range=(0.0, 1.0),
            channels="rgb" if augment.in_channels == 3 else "luma",
            mean=augment.mean,
            std=augment.std,
            fps=clip.fps if clip.fps is not None else float(np.median(self.videos.fps)),
            frame_stride=clip.frame_stride,
            resize=augment.size,
        )

    def clip_frames(self, index: int, starts: np.ndarray) -> np.ndarray:
        """Return frame numbers (views, t) of a video's clips that start at the given time steps."""
        times = None if self.clip.fps is None else self.videos.times(index)
        frames = clip_frames(starts, self.clip, float(self.videos.fps[index]), times)
        # Repeat the last frame of a padded video, which is shorter than its clips.
        return np.minimum(frames, self.videos.num_frames[index] - 1)

    def sample(self, index: int, epoch: int, *names: int | str) -> dict[str, Any]:
        """Read the views of one video.

        Args:
            index: index of the video.
            epoch: number of the epoch. Random draws depend on the seed, the epoch and ``names``.
            names: key of the sample. For a replacement, the key of the replaced sample and the
                number of the attempt.

        Returns:
            A dictionary that describes the views.

            - ``clips``: uint8 (views, T, H, W, 3), RGB frames
            - ``params``: dictionary of the parameters of the augmentation, each (views, …)
            - ``key``: name of the video
            - ``draw``: ``(seed, epoch, *names)``, names that seed an objective's random draws
            - ``frames``: int64 (views, T), frame numbers
            - ``fps``: frames per second of the video
            - ``labels``: dictionary of labels, each (views, …); empty without labels

        Raises:
            DecodingError: if the video is broken.
            AnnotationError: if labels are wanted and cannot be read from its annotation.
        """
        videos, key = self.videos, self.videos.keys[index]
        count, views = int(self.start_counts[index]), self.clip.views
        if self.evaluation:
            starts = even_starts(count, views)
        else:
            rng = named_generator(self.seed, epoch, *names, "starts")
            starts = draw_starts(rng, count, views, self.clip.view_gap)
        fps = float(videos.fps[index])
        frames = self.clip_frames(index, starts)
        labels = {}
        if self.labels:
            labels = _stack(video_labels(videos, index, frames.tolist()))
        pixels = videos.frames(index, frames.ravel().tolist(), self.frame_size)
        params = [
            self.augment.draw(
                named_generator(self.seed, epoch, *names, "augment", view), *pixels.shape[1:3]
            )
            for view in range(views)
        ]
        return {
            "clips": torch.from_numpy(rearrange(pixels, "(v t) h w c -> v t h w c", v=views)),
            "params": _stack(params),
            "key": key,
            "draw": (self.seed, epoch, *names),
            "frames": frames,
            "fps": fps,
            "labels": labels,
        }


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate the samples of a batch to one dictionary, which a worker sends to the main process.

    Only the clips are a tensor, and all other arrays are NumPy arrays. A worker therefore needs
    only one file descriptor to send the dictionary.

    Args:
        samples: results of :class:`~ssl_vivit.data.video.broken_videos.SampleFetcher`.
    """
    if any("stopped" in sample for sample in samples):
        return {"stopped": True}
    refusals = [sample["refusal"] for sample in samples if "refusal" in sample]
    if refusals:
        return {"refusal": refusals[0]}
    broken, unlabelled = (
        {name: reason for sample in samples for name, reason in sample[what].items()}
        for what in ("broken", "unlabelled")
    )
    whole = [sample for sample in samples if "clips" in sample]
    message: dict[str, Any] = {
        "broken": broken,
        "unlabelled": unlabelled,
        "lost": len(samples) - len(whole),
        "key": [sample["key"] for sample in whole],
        "draw": [sample["draw"] for sample in whole],
    }
    if whole:
        clips = [sample["clips"] for sample in whole]
        out = torch.empty((len(clips), *clips[0].shape), dtype=torch.uint8)
        if get_worker_info() is not None:
            out.share_memory_()
        message |= {
            "clips": torch.stack(clips, out=out),
            "params": _stack([sample["params"] for sample in whole]),
            "labels": _stack([sample["labels"] for sample in whole]),
            "frames": np.stack([sample["frames"] for sample in whole]),
            "fps": np.array([sample["fps"] for sample in whole], dtype=np.float32),
        }
    return message


def _stack(dicts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.stack([np.asarray(entry[name]) for entry in dicts]) for name in dicts[0]}
