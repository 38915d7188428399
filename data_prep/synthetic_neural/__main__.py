"""Simulate a recording of visual neurons with known receptive fields.

    python -m data_prep.synthetic_neural --videos 'shards/clevrer-train-*.tar' --out sessions/sim

writes a session in the Sensorium 2023 layout: grey movies of 36×64 pixels at 30 Hz, cut out of the
shards' videos and mixed with moving textures; pupil size, running speed and gaze; and the spikes of
simple and complex cells with direction tuning, surround and behavioural gain. It also contains

    meta/ground_truth.safetensors   parameters of the rates, receptive fields and kernels, by neuron
    meta/ground_truth.json          settings, units, the movie of each trial, and the scores of the
                                    true rates on the test trials, an upper bound for models
    data/true_rates/N.npy           expected responses per frame, (neurons, frames)

Movies of the tiers oracle and live_test_main are repeated with new behaviour; these movies and the
videos they are cut from are not in the tier train. Equal settings give equal sessions. A session is
written atomically; after an interruption the command starts again. To draw a session, run

    python -m data_prep.sensorium check DIR --sheet FILE.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.command_line import command, frame_size, start
from data_prep.synthetic_neural.settings import SimulationConfig
from ssl_vivit.command import OneLineParser


@command("interrupted; nothing was written, run the same command again", shards="--videos")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m data_prep.synthetic_neural`; return the exit status."""
    parser = OneLineParser(
        prog="python -m data_prep.synthetic_neural",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = SimulationConfig()
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the session's folder")
    add("--videos", nargs="+", metavar="SHARDS", help="paths, globs or URLs of shards")
    add("--neurons", type=int, metavar="N", help=f"number of neurons (default: {default.neurons})")
    add(
        "--train-trials",
        type=int,
        metavar="N",
        help=f"training trials (default: {default.train_trials})",
    )
    add(
        "--held-out-movies",
        type=int,
        metavar="N",
        help="number of movies in each of the tiers oracle and live_test_main "
        f"(default: {default.held_out_movies})",
    )
    add(
        "--repeats",
        type=int,
        metavar="N",
        help=f"repeats of each movie of oracle and live_test_main (default: {default.repeats})",
    )
    add(
        "--seconds",
        type=float,
        help=f"length of a trial in seconds (default: {default.seconds:g})",
    )
    add(
        "--fps",
        type=float,
        dest="frames_per_second",
        metavar="HZ",
        help="frames per second (default: 30)",
    )
    add("--size", type=frame_size, metavar="HxW", help="size of a frame in pixels (default: 36x64)")
    add(
        "--stimuli",
        choices=("videos", "textures", "mix"),
        help="kind of movies; textures need no --videos (default: mix)",
    )
    add(
        "--mean-rate",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of mean rates in spikes per second (default: {:g} {:g})".format(
            *default.mean_rate
        ),
    )
    add(
        "--calcium",
        action="store_true",
        default=None,
        help="record a calcium signal instead of spikes",
    )
    add(
        "--gaze-shift",
        type=float,
        metavar="PIXELS",
        help="shift of receptive fields by one standard deviation of gaze (default: 0)",
    )
    add("--seed", type=int, help="random seed (default: 0)")
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
