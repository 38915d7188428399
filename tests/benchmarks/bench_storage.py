"""How fast clips are sampled from shards, by storage.

    python tests/benchmarks/bench_storage.py [VIDEOS] [--size 240 320]

Packs the videos (a folder or zip; without one, renders CLEVRER-like ones) as jpeg and h264 at one
frame size, and as they came; then times random samples, two views of 16 frames at stride 2, on one
core, all at that frame size and of the original files also at their own. Prints processor time a
sample, its ratio to the fastest, and bytes a video. The page cache is warm: on slow disks small
files gain.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from data_prep.clevrer.packing import pack
from ssl_vivit.data.video.shards import ShardSet

VIEWS, FRAMES, STRIDE = 2, 16, 2


def seconds_a_sample(
    videos: ShardSet, size: tuple[int, int] | None, seed: int, clips: int
) -> float:
    """Mean processor time to decode two random views of a random video."""
    draw = np.random.default_rng(seed)
    start = time.process_time()
    for _ in range(clips):
        i = int(draw.integers(len(videos)))
        last = int(videos.num_frames[i]) - (FRAMES - 1) * STRIDE
        starts = draw.integers(last, size=VIEWS)
        wanted = (starts[:, None] + np.arange(FRAMES) * STRIDE).ravel()
        videos.frames(i, wanted.tolist(), size)
    return (time.process_time() - start) / clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", nargs="?", help="folder or zip; default: rendered ones")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--clips", type=int, default=20, help="a round")
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args()
    size = tuple(args.size)
    with tempfile.TemporaryDirectory() as folder:
        source = args.videos
        if source is None:
            from data_prep.synthetic_clevrer.videos import render

            source = Path(folder, "rendered")
            render(source, 6, workers=1)
        cases = {}
        for storage in ("original", "h264", "jpeg"):
            asked = None if storage == "original" else size
            report = pack(source, Path(folder, storage), storage=storage, size=asked, workers=1)
            bytes_a_video = sum(p.stat().st_size for p in report.shards) / report.packed
            videos = ShardSet(str(Path(folder, storage)))
            cases[storage] = videos, size, bytes_a_video
        cases["original, own size"] = cases["original"][0], None, cases["original"][2]
        # All in turn, and the best round of each: a busy machine slows some rounds, not some cases.
        times = dict.fromkeys(cases, float("inf"))
        for seed in range(args.rounds):
            for name, (videos, wanted, _) in cases.items():
                times[name] = min(times[name], seconds_a_sample(videos, wanted, seed, args.clips))
    fastest = min(times, key=lambda name: times[name])
    for name in sorted(times, key=lambda name: times[name]):
        ratio = times[name] / times[fastest]
        kib = cases[name][2] / 1024
        print(f"{name:20} {1e3 * times[name]:7.1f} ms  {ratio:5.2f}×  {kib:7.0f} KiB")
    print(f"fastest: {fastest}")


if __name__ == "__main__":
    main()
