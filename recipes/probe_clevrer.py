"""Probe frozen encoders, and for reference untrained encoders, raw pixels and motion energy.

    python recipes/probe_clevrer.py
    python recipes/probe_clevrer.py --encoders runs/simclr/encoder runs/mae/encoder \\
        --data.shards 'shards/clevrer-train-*.tar' --data.test_shards 'shards/clevrer-validation-*.tar'

Defaults: without --encoders, the encoder of the demo; without --data.shards, a sample that is
rendered once.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recipes.samples import sample_shards
from ssl_vivit import training
from ssl_vivit.data.video.broken_videos import short_videos_line
from ssl_vivit.errors import RunError
from ssl_vivit.evaluation.features.config import DEMO_ENCODER
from ssl_vivit.evaluation.probes.config import FinetuneConfig, ProbeData, ProbeSettings
from ssl_vivit.evaluation.probes.data import not_unseen, open_parts
from ssl_vivit.evaluation.probes.report import claim, distinct
from ssl_vivit.settings import check_least


@dataclass
class ProbeRecipe(ProbeSettings):
    """Probe frozen encoders on the labels of clips.

    Args:
        encoders: exported directories or names on the hub, including imported image ViTs (``python
            -m ssl_vivit.encoders.imports``). A quoted pattern (``'runs/mae_seed*/encoder'``) makes
            one row of encoders that differ only in their pretraining seed; the probe's seeds use
            them in turn. null is runs/demo/encoder.
        data: labelled videos.
        train_videos: largest number of videos to train probes on, at least 5; each seed draws them at
            random.
        test_videos: largest number of videos to test probes on.
        finetune: settings of full supervised training, which adds a row.
        run_dir: folder for table, chart and JSON file.
    """

    encoders: list[str] | None = None
    data: ProbeData = field(default_factory=ProbeData)
    train_videos: int = 2000
    test_videos: int = 1000
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    run_dir: str = "runs/probe_clevrer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, train_videos=5, test_videos=1)


def main() -> None:
    """Lock the folder for the results and run the probes."""
    config = training.parse(ProbeRecipe)
    processes = training.join_processes()
    run_dir = Path(config.run_dir)
    with training.locked_run(run_dir, "--run_dir"):
        probe(config, claim(run_dir), processes)


def probe(config: ProbeRecipe, run_dir: Path, processes: Any) -> None:
    """Load encoders and videos, train and test probes, and write the report.

    Args:
        config: settings of the probes.
        run_dir: folder for the results.
        processes: result of :func:`ssl_vivit.training.join_processes`.
    """
    # Imported here, since they load timm, which --help does not need.
    from ssl_vivit.evaluation.probes.comparison import compare, subject
    from ssl_vivit.evaluation.probes.full import finetune

    data = config.data
    encoders = dict(_encoders(config, processes.print))
    if not data.shards and not data.folder:
        data = replace(data, shards=sample_shards(processes))
    parts = open_parts(data, config.train_videos, config.test_videos)
    for name, alike in encoders.items():
        warnings = (not_unseen(name, encoder.provenance, parts.test) for encoder in alike)
        if warning := next(filter(None, warnings), None):
            processes.print(warning)
    device = processes.device
    subjects = [
        subject(name, [e.to(device).eval() for e in alike], parts, data.clip, config.clips)
        for name, alike in encoders.items()
    ]
    clips = {each.prepared.clip for each in subjects}
    if config.long_clip:
        clips |= {each.prepared.one_long_clip().clip for each in subjects}
    total = sum(len(part.indices) for part in parts)
    parts, short = parts.long_enough(list(clips))
    if line := short_videos_line(short, total, data.short_videos, clips):
        processes.print(line)
    tuned = []
    for seed in range(config.seeds if config.finetune.steps else 0):
        for each in subjects:
            for fresh in [False, True][: 1 + config.finetune.from_scratch]:
                name = f"{each.name.replace('/', '_')}{'_fresh' * fresh}_seed{seed}"
                row = finetune(
                    each, parts, config.finetune, seed=seed, fresh=fresh,
                    run_dir=run_dir / "finetuned" / name, batch_size=config.batch_size,
                )  # fmt: skip
                if row is None:
                    return
                tuned.append(row)
    if not processes.is_main_process:
        return
    found = compare(subjects, parts, config, device=device, scratch=run_dir)
    for row in tuned:
        found.add(*row)
    found.facts["settings"] = training.to_plain(config)
    found.write(run_dir)
    print(found.table())
    print(found.legend())
    print(f"scores  {run_dir / 'probes.json'}\nchart   {run_dir / 'probes.png'}")


def _encoders(config: ProbeRecipe, tell) -> list[tuple[str, list[Any]]]:
    """Load the encoders to probe.

    Returns:
        The name and the encoders of each row of the table.
    """
    paths: Sequence[str] = config.encoders or (
        [DEMO_ENCODER] if Path(DEMO_ENCODER).is_dir() else []
    )
    if not paths:
        tell(
            f"no --encoders given, and {DEMO_ENCODER} does not exist (`make demo` creates it): a randomly "
            "initialised encoder is probed instead"
        )
        import torch

        from ssl_vivit.encoders import create_encoder

        torch.manual_seed(0)
        fresh = create_encoder("vivit_tiny", num_frames=16, image_size=(64, 96))
        return [("fresh vivit_tiny", [fresh])]
    names = distinct(paths)
    return [
        (names[path], [config.data.open_encoder(found) for found in _matches(path, config.seeds)])
        for path in paths
    ]


def _matches(path: str, seeds: int) -> list[str]:
    """Return the directories that match a pattern, in order; a plain path is returned unchanged."""
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path))
    if not found:
        raise RunError(f"--encoders {path} matches no directory; check the pattern")
    if seeds % len(found):
        raise RunError(
            f"--encoders {path} matches {len(found)} encoders, which --seeds {seeds} cannot use "
            f"equally often; set --seeds to {len(found)} or a multiple of it"
        )
    return found


if __name__ == "__main__":
    training.run(main)
