"""Simulates a recording of visual neurons whose receptive fields are known.

    python -m data_prep.synthetic_neural --videos 'shards/clevrer-train-*.tar' --out sessions/sim

makes a session in the Sensorium 2023 layout: grey movies of 36×64 pixels at 30 Hz cut out of the
shards' videos and mixed with moving textures, pupil size and running speed, gaze, and the spikes of
simple and complex cells with direction tuning, surround and behavioural gain. Beside it stand

    meta/ground_truth.safetensors   what decides the rates, receptive fields and kernels, by neuron
    meta/ground_truth.json          settings, units, the movie of each trial, and what the true rates
                                    score on the test trials: the ceiling of every model
    data/true_rates/N.npy           expected responses a frame, (neurons, frames)

Movies of the tiers oracle and live_test_main repeat while the animal behaves anew; none of them and
none of the videos they are cut from is in the tier train. The same settings give the same session.
A session takes its name when it is whole; a command that was stopped begins again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.arguments import OneLineParser
from data_prep.session_layout import SessionWriter
from data_prep.stopping import stop_on_sigterm
from data_prep.synthetic_neural_behaviour import draw_behaviour
from data_prep.synthetic_neural_population import Filters, Population, calibrated, draw_population
from data_prep.synthetic_neural_recording import calcium_signal, expected_calcium
from data_prep.synthetic_neural_sheet import save_sheet
from data_prep.synthetic_neural_stimuli import Movie, Screen, StimulusKind
from data_prep.synthetic_neural_truth import Ceiling, settings_of, summary, write_ground_truth
from ssl_vivit.data.decoding import DecodingError
from ssl_vivit.data.errors import DataError
from ssl_vivit.data.randomness import named_generator, permutation
from ssl_vivit.data.shards import ShardSet

SIMULATION = 1
"""Counts up whenever the same settings come to give another session."""
_CALIBRATION_MOVIES = 48


@dataclass(frozen=True)
class SimulationConfig:
    """A simulated recording.

    Args:
        neurons: how many.
        train_trials: trials for training, each with a movie of its own.
        held_out_movies: movies of each of the tiers oracle and live_test_main.
        repeats: how often each held-out movie is shown.
        seconds: a trial's length.
        frames_per_second: of movies, behaviour and responses.
        size: (H, W) of the movies in pixels.
        stimuli: videos (needs shards), textures (needs none) or a mix of both, half and half.
        mean_rate: lowest and highest mean rate in spikes a second.
        complex_share: share of complex units; the others are simple.
        calcium: record a calcium signal instead of spikes.
        gaze_shift: pixels by which receptive fields move for one standard deviation of gaze.
        seed: with the other settings decides everything.
    """

    neurons: int = 200
    train_trials: int = 300
    held_out_movies: int = 6
    repeats: int = 8
    seconds: float = 5.0
    frames_per_second: float = 30.0
    size: tuple[int, int] = (36, 64)
    stimuli: StimulusKind = "mix"
    mean_rate: tuple[float, float] = (3.0, 12.0)
    complex_share: float = 0.5
    calcium: bool = False
    gaze_shift: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("neurons", "train_trials", "held_out_movies", "repeats"):
            if getattr(self, name) < 1:
                raise DataError(f"{_option(name)} {getattr(self, name)} must be at least 1")
        for name in ("seconds", "frames_per_second"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{_option(name)} {getattr(self, name):g} must be above 0")
        if self.frames < 2:
            raise DataError(
                f"--seconds {self.seconds:g} at --fps {self.frames_per_second:g} is "
                "less than two frames; make it longer"
            )
        if min(self.size) < 8:
            raise DataError(f"--size {self.size[0]}x{self.size[1]} must be at least 8x8")
        if not 0 < self.mean_rate[0] <= self.mean_rate[1] < math.inf:
            low, high = self.mean_rate
            raise DataError(f"--mean-rate {low:g} {high:g} must rise and lie above 0")
        if not 0 <= self.complex_share <= 1:
            raise DataError(f"--complex-share {self.complex_share:g} must lie between 0 and 1")
        if not math.isfinite(self.gaze_shift):
            raise DataError(f"--gaze-shift {self.gaze_shift} must be a number of pixels")
        if self.seed < 0:
            raise DataError(f"--seed {self.seed} must not be negative")

    @property
    def frames(self) -> int:
        """Of a trial."""
        return round(self.seconds * self.frames_per_second)


def simulate(
    out: str | Path,
    config: SimulationConfig | None = None,
    *,
    videos: str | list[str] | None = None,
    progress: bool = True,
) -> Path:
    """Simulate a session and write it; one that is there with the same settings is left alone.

    Args:
        out: the session's folder.
        config: what to simulate; its defaults when None.
        videos: shards, as :class:`~ssl_vivit.data.shards.ShardSet` takes them; may be None where
            all stimuli are textures.
        progress: whether to show a bar.

    Returns:
        ``out``.

    Raises:
        DataError: if a setting does not fit, shards cannot be used, or ``out`` holds another session.
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
        _refuse_other(out, settings)
        return out
    screen = Screen(
        config.size, config.frames, config.frames_per_second, seed=config.seed, videos=source
    )
    train, held_out = screen.plan(config.stimuli, config.train_trials, 2 * config.held_out_movies)
    # Every few movies, so that both kinds of a mix are there.
    chosen = [train[i] for i in _spread(len(train), _CALIBRATION_MOVIES)]
    population = calibrated(
        draw_population(
            config.neurons,
            config.size,
            config.frames_per_second,
            mean_rate=config.mean_rate,
            complex_share=config.complex_share,
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
    """Show every trial's movie to the neurons and write what they do; return the test's ceiling."""
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
    """Tier and movie of every trial, all tiers mixed over the session as in a recording."""
    half = config.held_out_movies
    tiers = [("oracle", movie) for movie in held_out[:half]]
    tiers += [("live_test_main", movie) for movie in held_out[half:]]
    trials = [("train", movie) for movie in train] + tiers * config.repeats
    return [trials[i] for i in permutation(config.seed, 1, len(trials))]


def _cortex(population: Population, seed: int) -> np.ndarray:
    """Positions in cortex in micrometres: a map of the visual field, with scatter, and depth."""
    draw = named_generator(seed, "cortex", len(population))
    place = population.center.numpy() * [400.0, -250.0] + draw.normal(0, 30.0, (len(population), 2))
    return np.column_stack([place, draw.uniform(150.0, 350.0, len(population))])


def _spread(length: int, most: int) -> list[int]:
    """Up to ``most`` positions of a list, some even and some odd ones."""
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


def _refuse_other(out: Path, settings: dict[str, Any]) -> None:
    found = settings_of(out)
    for name, value in settings.items():
        if found.get(name) != value:
            raise DataError(
                f"--out {out} holds a session made with {_option(name)} {found.get(name)}, "
                f"not {value}; choose another --out or the same settings"
            )


def _option(name: str) -> str:
    return "--fps" if name == "frames_per_second" else f"--{name.replace('_', '-')}"


def frame_size(text: str) -> tuple[int, int]:
    """`36x64` as height and width."""
    try:
        height, width = (int(number) for number in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no height and width, as in --size 36x64"
        ) from None
    return height, width


def main(argv: list[str] | None = None) -> int:
    """Command line of `python -m data_prep.synthetic_neural`; returns the exit status."""
    parser = OneLineParser(
        prog="python -m data_prep.synthetic_neural",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = SimulationConfig()
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the session's folder")
    add("--videos", nargs="+", metavar="SHARDS", help="paths, globs or addresses of shards")
    add("--neurons", type=int, metavar="N", help=f"default: {default.neurons}")
    add("--train-trials", type=int, metavar="N", help=f"default: {default.train_trials}")
    add(
        "--held-out-movies",
        type=int,
        metavar="N",
        help=f"of each of the tiers oracle and live_test_main (default: {default.held_out_movies})",
    )
    add("--repeats", type=int, metavar="N", help=f"of those movies (default: {default.repeats})")
    add("--seconds", type=float, help=f"a trial's length (default: {default.seconds:g})")
    add("--fps", type=float, dest="frames_per_second", metavar="HZ", help="default: 30")
    add("--size", type=frame_size, metavar="HxW", help="of a frame in pixels (default: 36x64)")
    add(
        "--stimuli",
        choices=("videos", "textures", "mix"),
        help="textures need no --videos (default: mix)",
    )
    add(
        "--mean-rate",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of mean rates in spikes a second (default: {:g} {:g})".format(
            *default.mean_rate
        ),
    )
    add(
        "--complex-share",
        type=float,
        metavar="SHARE",
        help=f"of complex cells; the others are simple (default: {default.complex_share:g})",
    )
    add("--calcium", action="store_true", default=None, help="a calcium signal instead of spikes")
    add(
        "--gaze-shift",
        type=float,
        metavar="PIXELS",
        help="how far gaze moves receptive fields, a standard deviation (default: 0)",
    )
    add("--seed", type=int, help="default: 0")
    add(
        "--contact-sheet",
        type=Path,
        metavar="FILE.png",
        help="also save a picture of movies, receptive fields, rates and responses",
    )
    options = vars(parser.parse_args(argv))
    out, videos, sheet = (options.pop(name) for name in ("out", "videos", "contact_sheet"))
    given = {name: value for name, value in options.items() if value is not None}
    if "mean_rate" in given:
        given["mean_rate"] = tuple(given["mean_rate"])
    try:
        if sheet is not None and sheet.suffix.lower() != ".png":
            raise DataError(f"--contact-sheet {sheet} must end in .png")
        simulate(out, SimulationConfig(**given), videos=videos)
        print(summary(out))
        if sheet is not None:
            save_sheet(out, sheet)
    except (DataError, DecodingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command begins again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    stop_on_sigterm()
    sys.exit(main())
