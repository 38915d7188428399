"""Features of any videos by any exported encoder, as safetensors files.

    python recipes/extract_features.py --encoder runs/demo/encoder --videos FOLDER --out features
    python recipes/extract_features.py --shards 'shards/clevrer-*.tar' --features both --clips 4

Killed and started again, it goes on where it was. ``load_features(out)`` of
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
from ssl_vivit.evaluation.features.config import Kept, ReadingForEncoder, Summary
from ssl_vivit.evaluation.features.files import FeatureFiles, fingerprint, write_parts
from ssl_vivit.evaluation.features.preparation import preparation
from ssl_vivit.settings import check_least


@dataclass
class ExtractRecipe:
    """Extract features of videos.

    Args:
        encoder: an exported directory or a name on the hub.
        videos: a folder, searched at any depth.
        shards: in place of a folder, shards.
        out: folder for the features; one that was begun is continued.
        features: ``pooled`` vectors, patch ``tokens``, or both.
        summary: what is pooled: the encoder's own ``pooled`` vector, the ``mean`` of its patch
            tokens, or both side by side.
        clips: clips of each video, evenly spread; pooled vectors are averaged.
        part_size: videos in a file.
        batch_size: videos that the encoder sees at once.
        data: how videos are read.
    """

    encoder: str = "runs/demo/encoder"
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
    """Keep other runs out of the folder, and extract."""
    config = training.parse(ExtractRecipe)
    processes = training.join_processes()
    with training.locked_run(Path(config.out), "--out"):
        extract(config, processes)


def extract(config: ExtractRecipe, processes: Any) -> None:
    """Open encoder and videos, make the parts that are missing.

    Args:
        config: what to extract.
        processes: of :func:`ssl_vivit.training.join_processes`.
    """
    device = processes.device
    data = config.data
    encoder = data.open_encoder(config.encoder).to(device)
    videos, broken = _open(config, processes.print)
    prepared = preparation(encoder, videos.fps, data.clip, config.clips)
    if prepared.clip.fps is None and (encoder.preprocessing or {}).get("fps"):
        processes.print(
            "some videos name no frame rate, so every frame of all counts as one step; set "
            "--data.clip.fps and leave them out to go by time"
        )
    refuse_many_broken(broken, len(videos) + len(broken))
    start_counts(videos, prepared.clip, data.short_videos)  # refuses videos that are all too short
    short = {videos.keys[i]: why for i, why in too_short(videos, prepared.clip).items()}
    if line := short_videos_line(list(short), len(videos), data.short_videos):
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
            "read it  from ssl_vivit.evaluation.features.files import load_features; "
            f'load_features("{config.out}")'
        )


def _open(config: ExtractRecipe, tell: Callable[[str], None]) -> tuple[Videos, dict[str, str]]:
    """The videos, and name → reason of those that are broken."""
    data = config.data
    if (config.videos is None) == (config.shards is None):
        raise DataError("give --videos FOLDER or --shards PATTERN, one of them")
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
