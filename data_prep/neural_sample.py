"""A small simulated recording, made once: what recipes use when no sessions are given."""

from __future__ import annotations

from pathlib import Path

from data_prep.sample import clevrer_sample
from data_prep.synthetic_neural import SimulationConfig, simulate

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
    """Simulate the sample session where it is missing; a whole one is left alone.

    Args:
        directory: the session's folder.
        videos: pattern of shards whose videos are shown; by default those of
            :func:`~data_prep.sample.clevrer_sample`, made where they are missing.
        config: what to simulate.

    Returns:
        The session's folder.

    """
    # Asked first, as it takes its name when it is whole: else videos would be rendered for nothing.
    if not Path(directory).exists():
        simulate(directory, config, videos=videos or clevrer_sample())
    return str(directory)
