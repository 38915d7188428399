"""A small CLEVRER stand-in, rendered and packed once: what recipes use when no shards are given."""

from __future__ import annotations

from pathlib import Path

from data_prep.packing import pack
from data_prep.synthetic_clevrer import render

NUM_VIDEOS = 320
FRAME_SIZE = (96, 144)


def clevrer_sample(
    directory: str | Path = "samples/clevrer", *, num_videos: int = NUM_VIDEOS
) -> str:
    """Render and pack the sample where it is missing; a whole one is left alone.

    Args:
        directory: where it lies; ``videos`` and ``shards`` are made in it.
        num_videos: how many videos of 128 frames of 96×144 pixels.

    Returns:
        The pattern of its shards.
    """
    directory = Path(directory)
    videos, shards = directory / "videos", directory / "shards"
    pattern = str(shards / "sample-train-*.tar")
    if not any(shards.glob("sample-train-*.tar")):
        render(videos, num_videos, size=FRAME_SIZE)
    pack(videos, shards, videos, prefix="sample-train", samples_per_shard=64)
    return pattern
