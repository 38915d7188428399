"""Convert an NWB file to a session: spikes or calcium signals, and the stimulus.

    python -m data_prep.nwb SESSION.nwb --list
    python -m data_prep.nwb SESSION.nwb --out sessions/name
    python -m data_prep.nwb SESSION.nwb --out sessions/name --stimulus movie_one movie_two \\
        --running running_speed --pupil pupil_position --trials trials --tiers tier
    python -m data_prep.nwb SESSION.nwb --out sessions/name --stimulus natural_movie_one_presentations \\
        --units 'quality == "good" and snr > 2'
    python -m data_prep.nwb SESSION.nwb --out sessions/name --responses DfOverF/RoiResponseSeries

A stimulus is a series of frames or indices with the times at which they were shown, or a table of
intervals. A column of the table says which picture of a template a row shows: numbers from 0 on, −1
for grey, or names of images. The screen is grey between rows that are less than 3 s apart.

A bin is a frame of the stimulus, from its onset to the next onset, or 1 / --rate seconds. A spike
on an edge belongs to the bin that begins there. Signals are averaged over each bin; a bin without
samples has the last value before it, so that no bin depends on later samples. Frames are converted
to grey, 8 bit, and resized to --size without keeping the aspect ratio.

Without --tiers, movies that were shown repeatedly are held out first, alternately as oracle and
live_test_main. Held-out movies are not shown in train; trials that share half of their frames count
as showing one movie.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from data_prep.command_line import command, frame_size, start
from ssl_vivit.command import OneLineParser


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m data_prep.nwb",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="SESSION.nwb")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="DIR", help="the session's folder, such as sessions/name")
    what.add_argument(
        "--list", action="store_true", help="list the contents of the file and write nothing"
    )
    parser.add_argument(
        "--stimulus",
        nargs="+",
        default=[],
        metavar="NAME",
        help="series or tables of presentations (default: the file's only stimulus)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="pictures that a table of presentations shows (default: the template of the table's "
        "name)",
    )
    parser.add_argument(
        "--frame-column",
        metavar="COLUMN",
        help="column of the table that says which picture a row shows (default: the column that is "
        "named frame, movie_frame_index, image_index or image_name)",
    )
    parser.add_argument(
        "--external-movies",
        action="store_true",
        help="read movies from files in the NWB file's folder",
    )
    parser.add_argument(
        "--responses",
        metavar="NAME",
        help="RoiResponseSeries to use as responses (default: spikes of the units)",
    )
    parser.add_argument(
        "--units",
        metavar="CONDITION",
        help="condition on columns of the units' or regions' table, such as "
        "'quality == \"good\" and snr > 2'",
    )
    parser.add_argument("--running", metavar="NAME", help="TimeSeries of running speed")
    parser.add_argument(
        "--pupil",
        nargs="+",
        default=[],
        metavar="NAME",
        help="TimeSeries of the pupil: its centre (2 columns) and its size (1 column)",
    )
    parser.add_argument(
        "--behaviour", nargs="+", default=[], metavar="NAME", help="further TimeSeries of behaviour"
    )
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="bins per second (default: one bin per frame)"
    )
    parser.add_argument(
        "--size",
        type=frame_size,
        default=(36, 64),
        metavar="HxW",
        help="size of the frames (default: 36x64)",
    )
    parser.add_argument(
        "--trials",
        metavar="TABLE",
        help="table of intervals, one row per trial (default: the file's trials, if any)",
    )
    parser.add_argument(
        "--trial-seconds",
        type=float,
        metavar="S",
        help="cut trials of about this length instead of using a table (default without a table: 10)",
    )
    parser.add_argument(
        "--tiers",
        metavar="COLUMN",
        help="column of the table of trials with each trial's tier (default: split by movie)",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.2,
        help="fraction of trials not used for training (default: %(default)s)",
    )
    parser.add_argument(
        "--transpose", action="store_true", help="frames are stored (frame, column, row)"
    )
    return parser


@command("stopped; nothing was written")
def main(argv: Sequence[str] | None = None) -> int:
    """List or convert one file; return the exit status."""
    args = _parser().parse_args(argv)
    from data_prep.nwb.file import NwbFile
    from data_prep.nwb.listing import listing
    from data_prep.nwb.session import convert

    if args.list:
        with NwbFile(args.file) as file:
            print("\n".join(listing(file)))
        return 0
    report = convert(
        args.file,
        args.out,
        stimuli=args.stimulus,
        template=args.template,
        frame_column=args.frame_column,
        external_movies=args.external_movies,
        responses=args.responses,
        units=args.units,
        running=args.running,
        pupil=args.pupil,
        behaviour=args.behaviour,
        rate=args.rate,
        size=args.size,
        trials=args.trials,
        trial_seconds=args.trial_seconds,
        tiers=args.tiers,
        held_out=args.held_out,
        transpose=args.transpose,
    )
    tiers = ", ".join(f"{count} {tier}" for tier, count in report.tiers.items())
    print(
        f"wrote {report.path}: {report.neurons} neurons at {report.frames_per_second:g} frames per "
        f"second, trials {tiers}"
    )
    for note in report.notes:
        print(f"  {note}")
    return 0


if __name__ == "__main__":
    start(main)
