"""Render videos like CLEVRER's, with its folders, file names and annotation schema.

    python -m data_prep.synthetic_clevrer --out DIR --num-videos 64

makes DIR/video_00000-01000/video_00000.mp4 … and DIR/annotation_00000-01000/annotation_00000.json
…: 3 to 6 cubes, spheres and cylinders in 8 colours and 2 materials enter, collide and spin on a
grey ground. The default is 128 frames of 480×320 (width × height) at 25 frames per second, h264 in
yuv420p. A video depends only on the seed and its number. A second run keeps existing videos and
renders the missing ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.command_line import FrameSize, command, png_file, start
from ssl_vivit.command import OneLineParser


@command("interrupted; run the same command again to continue")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m data_prep.synthetic_clevrer`; return the exit status."""
    parser = OneLineParser(
        prog="python -m data_prep.synthetic_clevrer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the videos"
    )
    parser.add_argument(
        "--num-videos", type=int, default=64, metavar="N", help="number of videos (default: 64)"
    )
    parser.add_argument(
        "--size",
        action=FrameSize,
        nargs="+",
        default=(320, 480),
        metavar="H W",
        help="frame height and width in pixels, such as 320x480 or 320 480 (default: 320x480)",
    )
    parser.add_argument(
        "--num-frames", type=int, default=128, metavar="N", help="frames per video (default: 128)"
    )
    parser.add_argument("--fps", type=float, default=25, help="frames per second (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--start-index",
        type=int,
        default=0,
        metavar="N",
        help="number of the first video (default: 0)",
    )
    parser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--contact-sheet",
        type=png_file,
        metavar="FILE.png",
        help="also save a picture of some frames",
    )
    options = parser.parse_args(argv)
    from data_prep.synthetic_clevrer.videos import contact_sheet, render

    render(
        options.out,
        options.num_videos,
        size=options.size,
        num_frames=options.num_frames,
        fps=options.fps,
        seed=options.seed,
        start_index=options.start_index,
        workers=options.workers,
    )
    if options.contact_sheet:
        contact_sheet(options.out, options.contact_sheet)
    return 0


if __name__ == "__main__":
    start(main)
