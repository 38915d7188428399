"""The recipe for models of neurons on two processes, as DDP and as FSDP2, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import options

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs" / "accelerate"
SETTINGS = {
    "encoder.overrides": {
        "embed_dim": 8, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1,
    },
    "data.window": 12,
    "data.held_out_neurons": 0.3,
    # Positions that are drawn would be others on each process.
    "model.readout.sampling": "mask",
    "model.modulator.kind": "film",
    "model.stream_filters": 4,
    "tuning.mode": "readout_first",
    "tuning.readout_steps": 2,
    "tuning.held_out_steps": 2,
    "training.steps": 4,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.optimizer.warmup_steps": 1,
    "training.tracker": "none",
    "evaluation.every": 2,
    "evaluation.batch_size": 3,
    "evaluation.fields": 0,
}  # fmt: skip


def launched(sessions: list[str], run_dir: Path, config: str | None) -> Path:
    command = [sys.executable]
    if config is not None:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
        command += ["--num_processes", "2", "--main_process_port", "0"]
    command += [str(ROOT / "recipes" / "finetune_neural.py"), "--sessions", *sessions]
    command += options(SETTINGS | {"training.run_dir": str(run_dir)})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return run_dir


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> list[str]:
    """Write sessions with an odd number of scored trials, which processes cannot divide evenly."""
    folder = tmp_path_factory.mktemp("sessions")
    made = []
    for name, movies, repeats in (("a", 1, 3), ("b", 1, 2)):
        config = SimulationConfig(
            neurons=5, train_trials=6, held_out_movies=movies, repeats=repeats, seconds=1.0,
            size=(12, 20), stimuli="textures", mean_rate=(8.0, 12.0), seed=repeats,
        )  # fmt: skip
        made.append(str(simulate(folder / name, config, progress=False)))
    return made


@pytest.fixture(scope="module")
def alone(sessions, tmp_path_factory) -> Path:
    return launched(sessions, tmp_path_factory.mktemp("alone") / "run", None)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp.yaml", "fsdp2.yaml"])
def test_two_processes_train_and_score_as_one(sessions, alone, tmp_path, config):
    made = launched(sessions, tmp_path / "run", config)
    for run_dir in (made / "held_out_neurons", made):
        one, two = (
            [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (alone / run_dir.relative_to(made), run_dir)
        )
        assert [line["step"] for line in one] == [line["step"] for line in two]
        for first, second in zip(one, two, strict=True):
            for name in first.keys() - {"train/clips_per_second", "train/data_wait", "train/bps"}:
                assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-5), name
    for file in ("model.safetensors", "encoder/model.safetensors"):
        first, second = (load_file(run_dir / "model" / file) for run_dir in (alone, made))
        for name in first:
            torch.testing.assert_close(second[name], first[name], rtol=1e-2, atol=2e-4)
    reports = [json.loads((run_dir / "scores.json").read_text()) for run_dir in (alone, made)]
    one, two = (report["tiers"]["live_test_main"] for report in reports)
    for part in ("scores", "held_out", "ceiling"):
        assert two[part] == pytest.approx(one[part], rel=1e-2, abs=1e-4)
