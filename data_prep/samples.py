"""Small samples that recipes make when no data are given: rendered videos, a simulated session."""

from __future__ import annotations

from pathlib import Path

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from data_prep.synthetic_neural.settings import SimulationConfig
from data_prep.synthetic_neural.simulation import simulate

NUM_VIDEOS = 320
FRAME_SIZE = (96, 144)


def clevrer_sample(
    directory: str | Path = "samples/clevrer", *, num_videos: int = NUM_VIDEOS
) -> str:
    """Render and pack the sample if it is missing or incomplete.

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


SAMPLE = SimulationConfig(
    neurons=80,
    train_trials=200,
    held_out_movies=4,
    repeats=4,
    seconds=4.0,
    mean_rate=(5.0, 15.0),
)


def neural_sample(
    directory: str | Path = "samples/neural",
    *,
    videos: str | None = None,
    config: SimulationConfig = SAMPLE,
) -> str:
    """Simulate the sample session if it is missing or incomplete.

    Args:
        directory: the session's folder.
        videos: pattern of shards whose videos are shown; by default those of
            :func:`clevrer_sample`, made where they are missing.
        config: what to simulate.

    Returns:
        The session's folder.

    """
    # Asked first, as it takes its name when it is whole: else videos would be rendered for nothing.
    if not Path(directory).exists():
        simulate(directory, config, videos=videos or clevrer_sample())
    return str(directory)
