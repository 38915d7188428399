"""Extract features of videos with an exported encoder, and save them as safetensors files.

    python recipes/extract_features.py --encoder runs/demo/encoder --videos FOLDER --out features
    python recipes/extract_features.py --shards 'shards/clevrer-*.tar' --features both --clips 4

Run again after an interruption, the command continues. ``load_features(out)`` of
``ssl_vivit.evaluation.features.files`` reads the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import recipes  # noqa: F401  (sets how threads wait, before torch loads)
from ssl_vivit import training
from ssl_vivit.data.video.broken_videos import refuse_many_broken, short_videos_line
from ssl_vivit.data.video.clips import start_counts, too_short
from ssl_vivit.data.video.files_below import passed_over_line
from ssl_vivit.data.video.videos import Chosen, Videos, of_one_size
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.config import DEMO_ENCODER, Kept, ReadingForEncoder, Summary
from ssl_vivit.evaluation.features.files import FeatureFiles, fingerprint, write_parts
from ssl_vivit.evaluation.features.preparation import preparation
from ssl_vivit.settings import check_least


@dataclass
class ExtractRecipe:
    """Extract features of videos.

    Args:
        encoder: an exported directory or a name on the hub.
        videos: folder of videos, searched at any depth.
        shards: shards, instead of a folder.
        out: folder for the features; an unfinished extraction in it is continued.
        features: save ``pooled`` vectors, patch ``tokens``, or both.
        summary: kind of pooled vector: the encoder's ``pooled`` output, the ``mean`` of its patch
            tokens, or both concatenated.
        clips: number of clips of each video, evenly spaced; their pooled vectors are averaged.
        part_size: number of videos per file.
        batch_size: number of videos that are encoded at once.
        data: how videos are read.
    """

    encoder: str = DEMO_ENCODER
    videos: str | None = None
    shards: str | list[str] | None = None
    out: str = "features"
    features: Kept = "pooled"
    summary: Summary = "pooled"
    clips: int = 1
    part_size: int = 256
    batch_size: int = 16
    data: ReadingForEncoder = field(default_factory=ReadingForEncoder)

    def __post_init__(self) -> None:
        check_least(self, clips=1, part_size=1, batch_size=1)


def main() -> None:
    """Lock the folder and extract features."""
    config = training.parse(ExtractRecipe)
    processes = training.join_processes()
    with training.locked_run(Path(config.out), "--out"):
        extract(config, processes)


def extract(config: ExtractRecipe, processes: Any) -> None:
    """Open encoder and videos, and write the feature files that are missing.

    Args:
        config: settings of the extraction.
        processes: result of :func:`ssl_vivit.training.join_processes`.
    """
    device = processes.device
    data = config.data
    encoder = data.open_encoder(config.encoder).to(device)
    videos, broken = _open(config, processes.print)
    prepared = preparation(encoder, videos.fps, data.clip, config.clips)
    if prepared.clip.fps is None and (encoder.preprocessing or {}).get("fps"):
        processes.print(
            "some videos have no frame rate, so clips of all videos are sampled by frame number; "
            "to "
            "sample by time, remove these videos and set --data.clip.fps"
        )
    refuse_many_broken(broken, len(videos) + len(broken))
    start_counts(videos, prepared.clip, data.short_videos)  # raises if all videos are too short
    short = {videos.keys[i]: why for i, why in too_short(videos, prepared.clip).items()}
    if line := short_videos_line(list(short), len(videos), data.short_videos, [prepared.clip]):
        processes.print(line)
    skipped = dict(broken)
    if data.short_videos == "skip":
        skipped |= short
        videos = Chosen(videos, np.flatnonzero([key not in short for key in videos.keys]))
    if data.frame_size is None:
        videos = of_one_size(videos, prepared.size)
    dataset = prepared.dataset(videos, frame_size=data.frame_size, short_videos=data.short_videos)

    parts = np.split(np.arange(len(videos)), range(config.part_size, len(videos), config.part_size))
    settings = {
        "encoder": fingerprint(encoder), "videos_digest": _digest(videos),
        "features": config.features, "summary": config.summary, "part_size": config.part_size,
        "batch_size": config.batch_size, "frame_size": data.frame_size,
        "prepared": asdict(prepared),
    }  # fmt: skip
    with processes.main_process_first():
        files = FeatureFiles(Path(config.out), settings, len(parts))
        if processes.is_main_process:
            files.begin(processes.print)
    missing = files.missing()
    processes.wait_for_everyone()
    own = missing[processes.process_index :: processes.num_processes]

    todo = sum(len(parts[i]) for i in own)
    with tqdm(total=todo, desc=config.out, unit="video", dynamic_ncols=True,
              disable=not processes.is_main_process) as progress:  # fmt: skip
        write_parts(
            encoder, dataset, {i: parts[i] for i in own}, files, kept=config.features,
            summary=config.summary, batch_size=config.batch_size, workers=data.workers,
            broken=broken, device=device, seen=progress.update,
        )  # fmt: skip
    processes.wait_for_everyone()
    if processes.is_main_process:
        index = files.finish(skipped)
        for name, reason in index["skipped"].items():
            print(f"skipped {name}: {reason}")
        print(f"{index['videos']} videos, {len(index['skipped'])} skipped: {config.out}")
        print(
            "to read  from ssl_vivit.evaluation.features.files import load_features; "
            f'load_features("{config.out}")'
        )


def _open(config: ExtractRecipe, tell: Callable[[str], None]) -> tuple[Videos, dict[str, str]]:
    """Open the videos; return them, and the reason for each broken video by its name."""
    data = config.data
    if (config.videos is None) == (config.shards is None):
        raise DataError("give either --videos FOLDER or --shards PATTERN")
    if config.shards is not None:
        return data.open_shards(config.shards), {}
    folder = data.open_folder(str(config.videos), "--videos")
    if passed := passed_over_line(folder.passed_over):
        tell(passed)
    return folder, folder.broken


def _digest(videos: Videos) -> str:
    facts = json.dumps([videos.keys, videos.num_frames.tolist()])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


if __name__ == "__main__":
    training.run(main)
