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
A session takes its name when it is whole; a command that was stopped begins again. A picture of it:
`python -m data_prep.sensorium check DIR --sheet FILE.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.command_line import command, frame_size, start
from data_prep.synthetic_neural.settings import SimulationConfig
from ssl_vivit.command import OneLineParser


@command("interrupted; the same command begins again", shards="--videos")
def main(argv: Sequence[str] | None = None) -> int:
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
    add("--calcium", action="store_true", default=None, help="a calcium signal instead of spikes")
    add(
        "--gaze-shift",
        type=float,
        metavar="PIXELS",
        help="how far gaze moves receptive fields, a standard deviation (default: 0)",
    )
    add("--seed", type=int, help="default: 0")
    options = vars(parser.parse_args(argv))
    out, videos = options.pop("out"), options.pop("videos")
    given = {name: value for name, value in options.items() if value is not None}
    if "mean_rate" in given:
        given["mean_rate"] = tuple(given["mean_rate"])
    config = SimulationConfig(**given)
    from data_prep.synthetic_neural.simulation import simulate
    from data_prep.synthetic_neural.truth import summary

    simulate(out, config, videos=videos)
    print(summary(out))
    return 0


if __name__ == "__main__":
    start(main)
