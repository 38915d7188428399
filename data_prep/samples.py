"""Make the small samples that recipes use without data: rendered videos, a simulated session."""

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
        directory: folder of the sample; it gets subfolders ``videos`` and ``shards``.
        num_videos: number of videos, of 128 frames of 96×144 pixels each.

    Returns:
        Pattern that matches the shards.
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
        videos: pattern of shards whose videos are shown; None uses :func:`clevrer_sample`, which is
            made if it is missing.
        config: settings of the simulation.

    Returns:
        The session's folder.

    """
    # The folder exists only if it is complete; then no videos need to be rendered.
    if not Path(directory).exists():
        simulate(directory, config, videos=videos or clevrer_sample())
    return str(directory)
