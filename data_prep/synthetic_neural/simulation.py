"""Simulate a session: movies, an animal's behaviour and neurons' responses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.output_files import refuse_other_settings
from data_prep.session_writer import SessionWriter
from data_prep.synthetic_neural.behaviour import draw_behaviour
from data_prep.synthetic_neural.population import Filters, Population, calibrated, draw_population
from data_prep.synthetic_neural.recording import calcium_signal, expected_calcium
from data_prep.synthetic_neural.settings import SimulationConfig
from data_prep.synthetic_neural.stimuli import Movie, Screen
from data_prep.synthetic_neural.truth import Ceiling, settings_of, write_ground_truth
from ssl_vivit.data.randomness import named_generator, permutation
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.errors import DataError

SIMULATION = 1
"""Version of the simulation; increase it if a change alters the session of given settings."""
_CALIBRATION_MOVIES = 48


def simulate(
    out: str | Path,
    config: SimulationConfig | None = None,
    *,
    videos: str | list[str] | None = None,
    progress: bool = True,
) -> Path:
    """Simulate a session and write it; an existing session with equal settings is kept.

    Args:
        out: the session's folder.
        config: settings of the simulation; None uses the defaults.
        videos: shards, see :class:`~ssl_vivit.data.video.shards.ShardSet`; may be None if all
            stimuli are textures.
        progress: show a progress bar.

    Returns:
        ``out``.

    Raises:
        DataError: if a setting does not fit, shards cannot be used, or ``out`` contains another
            session.
        DecodingError: if a video is broken.
    """
    out, config = Path(out), config or SimulationConfig()
    source = None
    if config.stimuli != "textures":
        if not videos:
            raise DataError(
                f"--stimuli {config.stimuli} needs --videos SHARDS; or use --stimuli textures"
            )
        source = ShardSet(videos)
    settings = _settings(config, source)
    if out.exists():
        refuse_other_settings(
            f"--out {out} contains a session made",
            settings_of(out),
            settings,
            "choose another --out, or the settings of the existing session",
        )
        return out
    screen = Screen(
        config.size, config.frames, config.frames_per_second, seed=config.seed, videos=source
    )
    train, held_out = screen.plan(config.stimuli, config.train_trials, 2 * config.held_out_movies)
    # Use evenly spaced movies, so that both kinds of a mix are included.
    chosen = [train[i] for i in _evenly_spaced(len(train), _CALIBRATION_MOVIES)]
    population = calibrated(
        draw_population(
            config.neurons,
            config.size,
            config.frames_per_second,
            mean_rate=config.mean_rate,
            seed=config.seed,
        ),
        [screen.show(movie) for movie in chosen],
    )
    filters = Filters(population)
    trials = _trials(config, train, held_out)
    session = SessionWriter(
        out,
        frames_per_second=config.frames_per_second,
        kind="calcium" if config.calcium else "spikes",
        unit_ids=np.arange(config.neurons),
        coordinates=_cortex(population, config.seed),
        facts={"source": "data_prep.synthetic_neural"},
    )
    with session, tqdm(trials, desc="simulating", unit="trial", disable=not progress) as bar:
        ceiling = _record(session, screen, filters, config, bar)
        write_ground_truth(session.path, filters, settings, [movie for _, movie in trials], ceiling)
    return out


def _record(
    session: SessionWriter,
    screen: Screen,
    filters: Filters,
    config: SimulationConfig,
    trials: Iterable[tuple[str, Movie]],
) -> Ceiling:
    """Simulate and write all trials; return the scores of the true rates on the test trials."""
    ceiling = Ceiling()
    repeated: dict[int, np.ndarray] = {}
    for number, (tier, movie) in enumerate(trials):
        video = repeated[movie.number] if movie.number in repeated else screen.show(movie)
        if tier != "train":
            repeated[movie.number] = video
        draw = named_generator(config.seed, "trial", number)
        animal = draw_behaviour(draw, config.frames, config.frames_per_second)
        shift = animal.gaze * config.gaze_shift if config.gaze_shift else None
        rates = filters.rates(video, animal.state, shift).double().numpy()
        if config.calcium:
            resting = (filters.population.baseline * filters.population.mean_rate).numpy()
            responses = calcium_signal(draw, rates, resting, config.frames_per_second)
            rates = expected_calcium(rates, resting, config.frames_per_second)
        else:
            responses = draw.poisson(rates)
        session.add(
            tier,
            video,
            responses,
            behaviour=animal.recorded,
            pupil_centre=animal.pupil_centre,
            true_rates=rates,
        )
        if tier == "live_test_main":
            ceiling.add(rates, responses)
    return ceiling


def _trials(
    config: SimulationConfig, train: list[Movie], held_out: list[Movie]
) -> list[tuple[str, Movie]]:
    """Return (tier, movie) of every trial, in random order."""
    half = config.held_out_movies
    tiers = [("oracle", movie) for movie in held_out[:half]]
    tiers += [("live_test_main", movie) for movie in held_out[half:]]
    trials = [("train", movie) for movie in train] + tiers * config.repeats
    return [trials[i] for i in permutation(config.seed, 1, len(trials))]


def _cortex(population: Population, seed: int) -> np.ndarray:
    """Return positions of the neurons in cortex, (N, 3) in micrometres.

    The first two coordinates are a retinotopic map with scatter; the third is depth.
    """
    draw = named_generator(seed, "cortex", len(population))
    place = population.center.numpy() * [400.0, -250.0] + draw.normal(0, 30.0, (len(population), 2))
    return np.column_stack([place, draw.uniform(150.0, 350.0, len(population))])


def _evenly_spaced(length: int, most: int) -> list[int]:
    """Return at most ``most`` evenly spaced indices from 0 to ``length`` − 1."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int)).tolist()


def _settings(config: SimulationConfig, source: ShardSet | None) -> dict[str, Any]:
    keys = [] if source is None else source.keys
    return {
        "simulation": SIMULATION,
        **asdict(config),
        "size": list(config.size),
        "mean_rate": list(config.mean_rate),
        "videos": {"count": len(keys), "first": keys[:1], "last": keys[-1:]},
    }
