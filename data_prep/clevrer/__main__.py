"""Pack CLEVRER, or any folder of videos, into shards for training.

    python -m data_prep.clevrer download --split train --out raw/
    python -m data_prep.clevrer pack --videos raw/video_train.zip \\
        --annotations raw/annotation_train.zip --out shards/
    python -m data_prep.clevrer verify 'shards/clevrer-train-*.tar'
    python -m data_prep.clevrer info 'shards/clevrer-train-*.tar' --contact-sheet sheet.png
    python -m data_prep.clevrer index 'elsewhere/*.tar'

`index` writes the index that training needs for webdataset tars made by other programs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from data_prep.clevrer.downloading import ARCHIVES, BASE_URL, download
from data_prep.clevrer.settings import CLEVRER_FRAMES, DEFAULT_STORAGE, Storage
from data_prep.command_line import FrameSize, command, png_file, start
from ssl_vivit.command import OneLineParser
from ssl_vivit.wording import quantity

if TYPE_CHECKING:
    from data_prep.clevrer.packing import PackReport

_NAMED = 20
# Mean rates of videos with varying rates differ slightly; smaller ratios of rates are not noted.
_OTHER_RATE = 1.05


def _pack(args: argparse.Namespace) -> int:
    from data_prep.clevrer.packing import pack
    from ssl_vivit.data.video.files_below import passed_over_line

    report = pack(
        args.videos,
        args.out,
        args.annotations,
        prefix=args.prefix,
        storage=args.storage,
        size=args.size,
        fps=args.fps,
        frames=args.frames,
        samples_per_shard=args.samples_per_shard,
        workers=args.workers,
    )
    pattern = f"{report.shards[0].name[: -len('000000.tar')]}*.tar"
    shards = os.path.join(args.out, pattern)
    print(
        f"packed {quantity(report.packed, 'video')}, {report.annotated} with annotation, in "
        f"{quantity(len(report.shards), 'shard')}: --data.shards '{shards}'"
    )
    if passed := passed_over_line(report.passed_over):
        print(passed)
    for note in _notes(report):
        print(f"note: {note}")
    _print_reasons("skipped", report.skipped)
    if report.too_many_skipped:
        print(
            "more than 1 % of CLEVRER's videos were skipped: download the archive again, or set "
            "the expected number of frames by --frames",
            file=sys.stderr,
        )
        return 1
    return 0


def _notes(report: PackReport) -> list[str]:
    """Return warnings if the packed videos have different frame sizes or frame rates."""
    notes, sizes, rates = [], report.sizes, report.rates
    if len(sizes) > 1:
        (low, narrow), (high, wide) = sizes[0], sizes[-1]
        notes.append(
            f"the videos have {len(sizes)} frame sizes, from {low}×{narrow} to {high}×{wide} "
            "(H×W), but training needs one; set --data.frame_size H W for training, or pack again "
            "with --size H W"
        )
    if rates and rates[-1] > _OTHER_RATE * rates[0]:
        notes.append(
            f"the videos have frame rates from {rates[0]:.4g} to {rates[-1]:.4g} frames/s, but "
            "--data.clip.frame_stride counts frames; set --data.clip.fps for training, or pack "
            f"again with --fps {rates[0]:.4g} or lower"
        )
    return notes


def _verify(args: argparse.Namespace) -> int:
    from data_prep.clevrer.inspection import verify

    failures = verify(args.shards, cache_dir=args.cache_dir, workers=args.workers)
    if failures:
        _print_reasons("broken", failures, all_of_them=True)
        return 1
    print("all samples decode and all CRCs are correct")
    return 0


def _info(args: argparse.Namespace) -> int:
    from data_prep.clevrer.inspection import channel_statistics, contact_sheet, info

    if args.contact_sheet:
        contact_sheet(args.shards, args.contact_sheet, cache_dir=args.cache_dir)
    for name, value in info(args.shards, cache_dir=args.cache_dir).items():
        if isinstance(value, dict):
            value = ", ".join(f"{v} ({count})" for v, count in sorted(value.items()))
        print(f"{name:10} {value}")
    if args.statistics:
        found = channel_statistics(args.shards, cache_dir=args.cache_dir)
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (found.mean, found.std))
        sample = f"{quantity(found.frames, 'frame')} of {quantity(found.videos, 'video')}"
        print(f"statistics --data.mean {mean} --data.std {std} ({sample})")
    return 0


def _index(args: argparse.Namespace) -> int:
    from data_prep.clevrer.indexing import index

    left_out = index(args.shards)
    print(f"indexed {quantity(len(left_out), 'shard')}")
    _print_reasons(
        "left out", {f"{k} in {s}": why for s, keys in left_out.items() for k, why in keys.items()}
    )
    return 0


def _download(args: argparse.Namespace) -> int:
    paths = download(args.split, args.out, args.base_url)
    print("complete archives: " + ", ".join(map(str, paths)))
    return 0


def _print_reasons(what: str, reasons: dict[str, str], all_of_them: bool = False) -> None:
    """Print on standard error how many samples failed, their names, and the reasons.

    Only the first samples are named, unless ``all_of_them`` is True.
    """
    if not reasons:
        return
    shown = list(reasons.items()) if all_of_them else list(reasons.items())[:_NAMED]
    print(f"{what}: {len(reasons)}", file=sys.stderr)
    for name, why in shown:
        print(f"  {name}: {why}", file=sys.stderr)
    if len(shown) < len(reasons):
        print(f"  … and {len(reasons) - len(shown)} more, listed in the indexes", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m data_prep.clevrer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("pack", help="pack videos into shards; run again to continue")
    p.set_defaults(run=_pack)
    p.add_argument("--videos", required=True, help="zip archive or folder, searched at any depth")
    p.add_argument("--annotations", help="zip archive or folder of annotation_00000.json …")
    p.add_argument("--out", required=True, help="folder of the shards")
    p.add_argument("--prefix", help="prefix of the shards' names (default: from the source's name)")
    p.add_argument(
        "--storage",
        choices=get_args(Storage),
        default=DEFAULT_STORAGE,
        help="original keeps the files, h264 encodes them for quick access, jpeg stores each "
        "frame (default: %(default)s)",
    )
    p.add_argument(
        "--size",
        action=FrameSize,
        nargs="+",
        metavar="H W",
        help="height and width of stored frames in pixels (default: unchanged)",
    )
    p.add_argument("--fps", type=float, help="frames kept per second (default: all)")
    p.add_argument(
        "--frames",
        type=int,
        help=f"frames that each video must have (default: {CLEVRER_FRAMES} for files named as "
        "CLEVRER's, any number for others)",
    )
    p.add_argument(
        "--samples-per-shard", type=int, default=256, help="videos per shard (default: %(default)s)"
    )
    p.add_argument("--workers", type=int, help="processes (default: one per core)")

    p = commands.add_parser("verify", help="decode all samples and check all CRCs")
    p.set_defaults(run=_verify)
    _shard_arguments(p)
    p.add_argument("--workers", type=int, help="threads (default: one per core)")

    p = commands.add_parser("info", help="print counts and sizes, draw a contact sheet")
    p.set_defaults(run=_info)
    _shard_arguments(p)
    p.add_argument(
        "--contact-sheet",
        type=png_file,
        metavar="FILE.png",
        help="picture to write, with frames of some videos",
    )

    p.add_argument(
        "--statistics",
        action="store_true",
        help="also print mean and standard deviation of the channels, as options for training, "
        "from 4 frames of each of at most 32 videos; remote shards that contain these videos are "
        "downloaded",
    )

    p = commands.add_parser("index", help="write indexes for tars of videos made by other programs")
    p.set_defaults(run=_index)
    p.add_argument("shards", nargs="+", help="local paths or patterns")

    p = commands.add_parser(
        "download", help="download the published archives; run again to continue"
    )
    p.set_defaults(run=_download)
    p.add_argument("--split", required=True, choices=list(ARCHIVES))
    p.add_argument("--out", required=True, help="folder of the archives")
    p.add_argument(
        "--base-url", default=BASE_URL, help="address of a mirror (default: %(default)s)"
    )
    return parser


def _shard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shards", nargs="+", help="paths, patterns or URLs")
    parser.add_argument("--cache-dir", help="cache folder for remote shards")


@command("stopped; run the same command again to continue")
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    args = _parser().parse_args(argv)
    return int(args.run(args))


if __name__ == "__main__":
    start(main)
