"""What a person needs to know to prepare video for an encoder as its pretraining did."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_vivit.data.video.samples import ClipDataset


def preprocessing(dataset: ClipDataset) -> dict[str, Any]:
    """Pixel range, mean, std, frame rate, frame stride and size, as JSON-serialisable values.

    They are saved with an exported encoder: pixels in ``pixel_range``, resized to ``resize``
    (H, W), minus ``mean``, over ``std``; ``channels`` is rgb or luma (ITU-R 601); of a video at
    ``fps`` frames per second, every ``frame_stride``-th is taken.
    """
    clip, augment = dataset.clip, dataset.augment
    fps = clip.fps if clip.fps is not None else float(np.median(dataset.videos.fps))
    return {
        "pixel_range": [0.0, 1.0],
        "channels": "rgb" if augment.in_channels == 3 else "luma",
        "mean": list(augment.mean),
        "std": list(augment.std),
        "fps": fps,
        "frame_stride": clip.frame_stride,
        "resize": list(augment.size),
    }
