"""Speed, utilisation, memory and data wait of training by the recipes.

    python tests/benchmarks/bench_training.py [--device cuda] [--only simclr] [--steps 60]

Each case is a run of a recipe in a process of its own, with the settings of a preset except the
variant of the encoder and the batch. Videos are rendered and sessions simulated. The numbers are
read from metrics.jsonl. The first half of a run is left out, because graphs are compiled in it. MFU
is the arithmetic of the model, forward and backward, divided by the dense half-precision peak in
the GPU's data sheet.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from results import Results, Table, add_out, publish
from side_by_side import device

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from data_prep.synthetic_neural.settings import SimulationConfig
from data_prep.synthetic_neural.simulation import simulate

ROOT = Path(__file__).parents[2]
MODELS = {"Model 2": "factorized_encoder", "Model 3": "factorized_self_attention"}
# Clips of 16 × 224 × 224 in 8 × 14 × 14 tubelets, as VideoMAE-B is measured.
VIDEOMAE = ("--encoder.overrides.num_frames", "16", "--encoder.overrides.image_size", "[224, 224]")


@dataclass(frozen=True)
class Case:
    """A run of a recipe.

    Attributes:
        name: name in the table.
        recipe: file name of the recipe.
        batch: samples in a step.
        words: further options.
    """

    name: str
    recipe: str
    batch: int
    words: tuple[str, ...] = ()


def pretraining_cases() -> list[Case]:
    cases = []
    for objective, recipe in (("simclr", "simclr_clevrer.py"), ("mae", "mae_clevrer.py")):
        for size, batch in (("tiny", 128), ("small", 64), ("base", 16)):
            for model, variant in MODELS.items():
                words = ("--config", f"{objective}_vivit_{size}",
                         "--encoder.overrides.variant", variant)  # fmt: skip
                cases.append(Case(f"{objective} {size}, {model}", recipe, batch, words))
    words = ("--config", "mae_vivit_base", *VIDEOMAE)
    return [*cases, Case("mae base, Model 2, 16×224×224", "mae_clevrer.py", 64, words)]


def neural_cases() -> list[Case]:
    return [
        Case(preset.replace("_", " "), "finetune_neural.py", batch, ("--config", preset))
        for preset, batch in (("neural_small", 16), ("neural_baseline", 4))
    ]


def measure(case: Case, data: tuple[str, ...], steps: int, device: str, folder: Path) -> list[str]:
    """Run a case and return the numbers that it logged."""
    run_dir = folder / case.name.replace(" ", "_").replace(",", "")
    options = {
        "training.steps": steps, "training.total_batch_size": case.batch, "training.log_every": 5,
        "training.checkpoint_every": steps, "training.tracker": "none", "evaluation.every": steps,
        "training.optimizer.warmup_steps": 5, "training.run_dir": run_dir,
        "training.compile": device == "cuda",
        "training.precision": "bf16" if device == "cuda" else "fp32",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value).lower()
             if isinstance(value, bool) else str(value))]  # fmt: skip
    command = [sys.executable, str(ROOT / "recipes" / case.recipe), *case.words, *data, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [case.name, str(case.batch), last[:120], "", "", ""]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if "train/loss" in line and line["step"] > steps // 2]

    def median(name: str, digits: str) -> str:
        values = [line[name] for line in kept if name in line]
        return format(statistics.median(values), digits) if values else "–"

    return [
        case.name,
        str(case.batch),
        median("train/clips_per_second", ".1f"),
        median("system/mfu", ".1%"),
        median("system/gpu_memory", ".1f"),
        median("train/data_wait", ".1%"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, help="samples in a step, in place of each case's own")
    parser.add_argument("--videos", type=int, default=160, help="videos to render")
    add_out(parser)
    args = parser.parse_args()
    cases = [c for c in [*pretraining_cases(), *neural_cases()] if args.only in c.name]
    if not cases:
        parser.error(f"--only {args.only}: no case has that in its name")
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sources: dict[str, tuple[str, ...]] = {}
        for case in cases:
            kind = "neural" if case.recipe == "finetune_neural.py" else "video"
            if kind not in sources:
                sources[kind] = _make(kind, folder, args.videos)
            if args.batch:
                case = Case(case.name, case.recipe, args.batch, case.words)
            rows.append(measure(case, sources[kind], args.steps, args.device, folder))
            print(*rows[-1], sep="  ", file=sys.stderr)
    head = ["case", "samples a step", "samples/s", "MFU", "GiB of GPU memory", "data wait"]
    where = "bfloat16, compiled" if args.device == "cuda" else "float32, one thread"
    caption = (
        f"Training by the recipes, {where}, medians over the second half of {args.steps} steps."
    )
    publish(Results("training", "Training", [Table(caption, head, rows)]), args.device, args.out)


def _make(kind: str, folder: Path, videos: int) -> tuple[str, ...]:
    if kind == "video":
        render(folder / "videos", videos, progress=False)
        pack(folder / "videos", folder / "shards", folder / "videos", progress=False)
        return ("--data.shards", str(folder / "shards" / "*.tar"))
    config = SimulationConfig(neurons=1000, train_trials=40, stimuli="textures")
    simulate(folder / "session", config, progress=False)
    return ("--data.sessions", str(folder / "session"))


if __name__ == "__main__":
    main()
