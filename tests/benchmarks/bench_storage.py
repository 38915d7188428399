"""Speed of sampling clips from shards, by storage and decoder.

    python tests/benchmarks/bench_storage.py [VIDEOS] [--size 240 320] [--out DIR]

The script packs videos (a folder or zip; by default it renders CLEVRER-like videos) as jpeg and
h264 at one frame size, and unchanged. It then times random samples of two views of 16 frames at
stride 2 on one core, all cases in turn, by PyAV and, if it is installed, by torchcodec. For
comparison it times decoding alone, without a resize, of the needed frames and of all frames; and
the usual way, which decodes all frames of a video, resizes each, stacks them and indexes the needed
ones. The page cache is warm; on slow disks small files have an additional advantage.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from operator import truediv
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from results import Results, Table, add_out, publish
from side_by_side import ratio, rounds, seconds

from data_prep.clevrer.packing import pack
from ssl_vivit.data.video.decoding import Decoder
from ssl_vivit.data.video.shards import ShardSet

VIEWS, FRAMES, STRIDE = 2, 16, 2
DECODERS: dict[str, Decoder] = {"PyAV": "pyav", "torchcodec": "torchcodec"}

# Takes videos, number of one, and frame numbers; returns those frames (n, H, W, 3).
Way = Callable[[ShardSet, int, list[int]], np.ndarray]


def needed(
    videos: ShardSet, i: int, wanted: list[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode only the needed frames, as the loader does."""
    return videos.frames(i, wanted, size)


def all_frames(videos: ShardSet, i: int, wanted: list[int]) -> np.ndarray:
    """Decode the whole video without a resize."""
    return videos.frames(i, list(range(int(videos.num_frames[i]))))[wanted]


def usual(videos: ShardSet, i: int, wanted: list[int], size: tuple[int, int]) -> np.ndarray:
    """Decode all frames, resize each, stack and index them."""
    frames = videos.frames(i, list(range(int(videos.num_frames[i]))))
    resized = [Image.fromarray(frame).resize(size[::-1], Image.Resampling.BOX) for frame in frames]
    return np.stack(resized)[wanted]


class Sampling:
    """Draw two random views of random videos; equal numbers of calls draw equal samples."""

    def __init__(self, videos: ShardSet, way: Way, samples: int) -> None:
        self.videos, self.way, self.samples = videos, way, samples
        self.draw = np.random.default_rng(0)

    def __call__(self) -> None:
        for _ in range(self.samples):
            i = int(self.draw.integers(len(self.videos)))
            last = int(self.videos.num_frames[i]) - (FRAMES - 1) * STRIDE
            starts = self.draw.integers(last, size=VIEWS)
            wanted = (starts[:, None] + np.arange(FRAMES) * STRIDE).ravel()
            self.way(self.videos, i, wanted.tolist())


def decoders() -> list[str]:
    """Return the decoders that can be loaded; print why torchcodec cannot."""
    try:
        import torchcodec.decoders  # noqa: F401
    except ImportError:
        print(
            "torchcodec is not installed, so it is left out: pip install 'ssl_vivit[fast-decode]'"
        )
    except (RuntimeError, OSError):
        print("torchcodec finds no FFmpeg, so it is left out: install FFmpeg's shared libraries")
    else:
        return list(DECODERS)
    return ["PyAV"]


def figure(rows: list[str], medians: dict[str, list[float | None]]) -> Figure:
    """Draw bars of processor time per sample, with a group for each way."""
    drawn = Figure(figsize=(9, 4.5), layout="constrained")
    axes = drawn.subplots()
    height = 0.8 / len(medians)
    for k, (decoder, values) in enumerate(medians.items()):
        places = [row + k * height for row, value in enumerate(values) if value is not None]
        known = [value for value in values if value is not None]
        bars = axes.barh(places, known, height, label=decoder)
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("processor time of a sample, JPEG storage = 1")
    axes.legend(loc="upper right")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", nargs="?", help="folder or zip; default: rendered ones")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--clips", type=int, default=5, help="samples of a case in a round")
    parser.add_argument("--rounds", type=rounds, default=7)
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    size = tuple(args.size)
    with tempfile.TemporaryDirectory() as folder:
        source = args.videos
        if source is None:
            from data_prep.synthetic_clevrer.videos import render

            source = Path(folder, "rendered")
            render(source, 6, workers=1)
        kib = {}
        for storage in ("original", "h264", "jpeg"):
            asked = None if storage == "original" else size
            report = pack(source, Path(folder, storage), storage=storage, size=asked, workers=1)
            kib[storage] = sum(p.stat().st_size for p in report.shards) / report.packed / 1024
        resized = f"{size[0]}×{size[1]}"
        ways: dict[str, tuple[str, Way]] = {
            "jpeg": ("jpeg", needed),
            "h264": ("h264", needed),
            "original, resized in decoding": ("original", partial(needed, size=size)),
            "original, needed frames, no resize": ("original", needed),
            "jpeg, all frames": ("jpeg", all_frames),
            "h264, all frames": ("h264", all_frames),
            "original, all frames, no resize": ("original", all_frames),
            "original, the usual way": ("original", partial(usual, size=size)),
        }
        # PyAV alone decodes JPEG pictures and resizes in decoding.
        by_one = {name for name in ways if name.startswith("jpeg") or "resized" in name}
        cases = {
            (name, decoder): Sampling(
                ShardSet(str(Path(folder, storage)), decoder=DECODERS[decoder]), way, args.clips
            )
            for name, (storage, way) in ways.items()
            for decoder in decoders()
            if decoder == "PyAV" or name not in by_one
        }
        named = {f"{name}/{decoder}": case for (name, decoder), case in cases.items()}
        times = seconds(named, args.rounds, "cpu")
    reference = times["jpeg/PyAV"]
    rows: list[list[str]] = []
    medians: dict[str, list[float | None]] = {decoder: [] for _, decoder in cases}
    for name, (storage, _) in ways.items():
        cells = []
        for decoder, values in medians.items():
            own = times.get(f"{name}/{decoder}")
            cells.append("—" if own is None else ratio(own, reference))
            values.append(own and statistics.median(map(truediv, own, reference)))
        rows.append([name, *cells, f"{kib[storage]:.0f}"])
    caption = (
        f"Processor time of a sample, two clips of {FRAMES} frames at stride {STRIDE}, as a multiple "
        f"of that from jpeg storage: medians of {args.rounds} rounds, in brackets the range of their "
        f"middle half. Clips a second and core are in inverse proportion. jpeg and h264 (a key frame "
        f"every 8 frames) are stored at {resized}; the usual way decodes all frames, resizes each to "
        f"{resized} by Pillow, stacks and indexes."
    )
    plot = "storage.png" if args.out else ""
    head = ["way", *medians, "KiB a video"]
    title = "Clips from shards by storage and decoder"
    publish(Results("storage", title, [Table(caption, head, rows)], plot), "cpu", args.out)
    if args.out:
        figure(list(ways), medians).savefig(args.out / plot, dpi=100)


if __name__ == "__main__":
    main()
