"""Unpack and check sessions in the layout of Sensorium 2023.

    python -m data_prep.sensorium convert dynamic29515-10-12-Video-….zip --out sessions/
    python -m data_prep.sensorium check sessions/dynamic29515-10-12-Video-… --sheet sheet.png
    python -m data_prep.sensorium movies sessions/* --out movies

`convert` reads published archives or folders with one or more sessions each, and does not change
their arrays; run it again to continue after an interruption. `check` opens a session with all
checks of training and exits with 1 if the session cannot be used. `movies` writes the training
stimuli as video files, for pretraining without responses; movies of validation and test trials are
excluded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.command_line import command, png_file, start
from ssl_vivit.command import OneLineParser

_NAMED = 20


def _check(args: argparse.Namespace) -> int:
    from data_prep.sensorium.checking import check, sheet

    found = check(args.session)
    for line in found.problems[:_NAMED]:
        print(f"error: {line}", file=sys.stderr)
    if len(found.problems) > _NAMED:
        print(f"error: … and {len(found.problems) - _NAMED} more", file=sys.stderr)
    if found.session is None:
        return 1
    for name, value in found.facts.items():
        print(f"{name:13}{value}")
    for line in found.notes:
        print(f"note         {line}")
    if args.sheet:
        sheet(found.session, args.sheet)
        print(f"sheet        {args.sheet}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from data_prep.sensorium.archive import convert

    written, there = convert(args.sources, args.out)
    for path in there:
        print(f"already complete: {path}")
    for path in written:
        print(f"wrote {path}; next: python -m data_prep.sensorium check {path}")
    return 0


def _movies(args: argparse.Namespace) -> int:
    from data_prep.sensorium.movies import write_movies

    found = write_movies(args.sessions, args.out)
    if found.held_out:
        print(f"excluded {found.held_out} movies that validation or test trials also show")
    if found.there:
        print(f"kept {len(found.there)} movies that already existed")
    print(
        f"wrote {len(found.written)} movies; next: python -m data_prep.clevrer pack --videos "
        f"{args.out} --storage original --out SHARDS"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m data_prep.sensorium",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("check", help="print counts, tiers, padding, repeats and errors")
    p.set_defaults(run=_check)
    p.add_argument("session", metavar="DIR", help="one session's folder")
    p.add_argument(
        "--sheet",
        type=png_file,
        metavar="FILE.png",
        help="picture to write, with frames and traces of some trials",
    )

    p = commands.add_parser("convert", help="convert archives to folders; run again to continue")
    p.set_defaults(run=_convert)
    p.add_argument("sources", nargs="+", metavar="FILE.zip", help="zip archives, or folders")
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the sessions")

    p = commands.add_parser(
        "movies", help="write training stimuli as video files; run again to continue"
    )
    p.set_defaults(run=_movies)
    p.add_argument("sessions", nargs="+", metavar="DIR", help="folders of sessions")
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the videos")
    return parser


@command("stopped; run the same command again to continue")
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    args = _parser().parse_args(argv)
    return int(args.run(args))


if __name__ == "__main__":
    start(main)
