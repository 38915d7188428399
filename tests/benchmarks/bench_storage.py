"""How fast clips are sampled from shards, by storage.

    python tests/benchmarks/bench_storage.py [VIDEOS] [--size 240 320] [--clips 40]

Packs the videos (a folder or zip; without one, renders CLEVRER-like ones) as jpeg and h264 at one
frame size, and as they came; then times random clips, two views of 16 frames at stride 2, on one
core, all at that frame size and of the original files also at their own. Prints processor time a clip, ratio to
the fastest, and bytes. The page cache is warm: on slow disks small files gain.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from data_prep.packing import pack
from ssl_vivit.data.shards import ShardSet

VIEWS, FRAMES, STRIDE = 2, 16, 2


def seconds_a_sample(
    videos: ShardSet, size: tuple[int, int] | None, clips: int, repeats: int = 3
) -> float:
    """Median over repeats of the mean time to decode two random views of one video."""
    times = []
    for repeat in range(repeats + 1):
        draw = np.random.default_rng(repeat)
        start = time.process_time()
        for _ in range(clips):
            i = int(draw.integers(len(videos)))
            last = int(videos.num_frames[i]) - (FRAMES - 1) * STRIDE
            starts = draw.integers(last, size=VIEWS)
            wanted = (starts[:, None] + np.arange(FRAMES) * STRIDE).ravel()
            videos.frames(i, wanted.tolist(), size)
        times.append(time.process_time() - start)
    return float(np.median(times[1:])) / clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", nargs="?", help="folder or zip; default: rendered ones")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--clips", type=int, default=40)
    args = parser.parse_args()
    size = tuple(args.size)
    with tempfile.TemporaryDirectory() as folder:
        source = args.videos
        if source is None:
            from data_prep.synthetic_clevrer import render

            source = Path(folder, "rendered")
            render(source, 6, workers=1)
        results = {}
        for storage in ("original", "h264", "jpeg"):
            asked = None if storage == "original" else size
            report = pack(source, Path(folder, storage), storage=storage, size=asked, workers=1)
            bytes_a_video = sum(p.stat().st_size for p in report.shards) / report.packed
            videos = ShardSet(str(Path(folder, storage)))
            results[storage] = seconds_a_sample(videos, size, args.clips), bytes_a_video
            if storage == "original":
                own = seconds_a_sample(videos, None, args.clips)
                results["original, own size"] = own, bytes_a_video
    fastest = min(results, key=lambda name: results[name][0])
    for name, (seconds, size_of_one) in sorted(results.items(), key=lambda item: item[1]):
        ratio = seconds / results[fastest][0]
        print(f"{name:20} {1e3 * seconds:7.1f} ms  {ratio:5.2f}×  {size_of_one / 1024:7.0f} KiB")
    print(f"fastest: {fastest}")


if __name__ == "__main__":
    main()
