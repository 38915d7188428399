"""Training on a GPU: recipes, DDP and FSDP2, no synchronisation, no recompilation."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from data_prep.synthetic_neural.settings import SimulationConfig
from data_prep.synthetic_neural.simulation import simulate
from ssl_vivit import create_encoder
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.loader import ClipBatches
from ssl_vivit.objectives import MaskedTubelets, SimCLR
from ssl_vivit.training import OptimConfig, TrainingConfig, fit

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[1]
RECIPES = {
    "simclr_clevrer.py": ("--config", "simclr_vivit_tiny", "--training.total_batch_size", "8"),
    "mae_clevrer.py": ("--config", "mae_vivit_tiny", "--training.total_batch_size", "8"),
    "finetune_neural.py": ("--config", "neural_small", "--training.total_batch_size", "4"),
}
STEPS = 100


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("data")
    render(folder / "videos", 24, progress=False)
    pack(folder / "videos", folder / "shards", folder / "videos", progress=False)
    config = SimulationConfig(neurons=40, train_trials=12, stimuli="textures")
    simulate(folder / "session", config, progress=False)
    shards = ("--data.shards", str(folder / "shards" / "*.tar"))
    sessions = ("--data.sessions", str(folder / "session"))
    return {name: sessions if "neural" in name else shards for name in RECIPES}


def train(recipe: str, data, run_dir: Path, *launcher: str, **settings: object) -> list[dict]:
    settings = {
        "training.run_dir": run_dir, "training.steps": STEPS, "training.log_every": 10,
        "training.checkpoint_every": STEPS, "training.tracker": "none", "evaluation.every": STEPS,
        "training.precision": "bf16", "training.optimizer.warmup_steps": 10, **settings,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, *launcher, str(ROOT / "recipes" / recipe)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *RECIPES[recipe], *data[recipe], *words],
        capture_output=True, text=True, env=environment, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_learn_in_half_precision(recipe, compiled, data, tmp_path) -> None:
    lines = train(recipe, data, tmp_path / "run", **{"training.compile": compiled})
    losses = [line["train/loss"] for line in lines]
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-3:]) < losses[0]
    assert all(line["system/gpu_memory"] > 0 for line in lines)


@pytest.mark.parametrize("wrapping", ["ddp", "fsdp2"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_wrapped_process_is_close_to_an_unwrapped_one(recipe, wrapping, data, tmp_path) -> None:
    config = ROOT / "recipes" / "configs" / "accelerate" / f"{wrapping}.yaml"
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(config),
                "--num_processes", "1", "--main_process_port", "0")  # fmt: skip
    settings = {"training.steps": 20, "training.log_every": 5}
    wrapped = train(recipe, data, tmp_path / "wrapped", *launcher, **settings)
    alone = train(recipe, data, tmp_path / "alone", **settings)
    for one, other in zip(wrapped, alone, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=0.05)


class NoiseVideos:
    """Videos of noise in memory."""

    def __init__(self, count: int = 32) -> None:
        self.keys = [f"video_{i}" for i in range(count)]
        self.num_frames, self.fps = np.full(count, 24), np.full(count, 25.0)
        self.heights, self.widths = np.full(count, 80), np.full(count, 120)
        self.has_annotation = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.keys)

    def frames(self, i, indices, size=None):
        video = np.random.default_rng(i).integers(0, 256, (24, 80, 120, 3), dtype=np.uint8)
        return video[indices]


def objective_and_clips(kind: type):
    torch.manual_seed(0)
    views = 2 if kind is SimCLR else 1
    encoder = create_encoder("vivit_tiny", num_frames=8, image_size=(64, 64))
    augment = Augment(AugmentConfig(grey_probability=0.2), (64, 64))
    clips = ClipDataset(NoiseVideos(), ClipConfig(num_frames=8, views=views), augment, 0)
    return kind(encoder), ClipBatches(clips)


def settings(run_dir: Path, **changes: object) -> TrainingConfig:
    values = {
        "run_dir": str(run_dir), "steps": 30, "total_batch_size": 8, "precision": "bf16",
        "log_every": 1000, "checkpoint_every": 1000, "tracker": "none", **changes,
    }  # fmt: skip
    return TrainingConfig(optimizer=OptimConfig(warmup_steps=2), **values)


@pytest.mark.parametrize("kind", [SimCLR, MaskedTubelets])
def test_a_step_does_not_wait_for_the_device(kind, tmp_path) -> None:
    objective, clips = objective_and_clips(kind)

    def begin_step(step: int) -> None:
        # The last step is logged, and its checkpoint reads all weights.
        torch.cuda.set_sync_debug_mode("error" if 5 <= step < 29 else "default")

    objective.begin_step = begin_step
    try:
        assert fit(objective, clips, settings(tmp_path / "run")).step == 30
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", [SimCLR, MaskedTubelets])
def test_no_graph_is_added_after_the_first_steps(kind, tmp_path) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    objective, clips = objective_and_clips(kind)
    graphs = []
    objective.begin_step = lambda step: graphs.append(counters["stats"]["unique_graphs"])
    fit(objective, clips, settings(tmp_path / "run", compile=True))
    assert graphs[-1] == graphs[5] <= 6
    assert not counters["graph_break"]
