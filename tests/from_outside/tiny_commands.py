"""All recipes, and all commands of data_prep that write files, with settings that take seconds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killed_command import ROOT, Command
from nwb_recording import record
from small_runs import NEURAL, options, save_linear_model

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from ssl_vivit.encoders import create_encoder, save_pretrained

GEOMETRY = {
    "num_frames": 4, "image_size": (16, 24), "tubelet_size": (2, 8, 8), "embed_dim": 24,
    "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1,
}  # fmt: skip
LOOP = {
    "training.run_dir": "run",
    "training.resume": "auto",
    "training.steps": 6,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.optimizer.warmup_steps": 2,
    "training.tracker": "none",
}
PRETRAINING = LOOP | {
    "encoder.name": "vivit_tiny",
    "encoder.overrides": GEOMETRY | {"drop_path": 0.2},
    "data.clip.frame_stride": 4,
    "data.held_out": 0.3,
    "data.workers": 1,
    "evaluation.every": 3,
    "probe.every": 3,
}
NEURONS = (
    LOOP
    | NEURAL
    | {"training.steps": 4, "training.optimizer.scaling": "none", "tuning.held_out_steps": 2}
)
RENDERING = {"num-videos": 4, "size": "24x36", "num-frames": 32}
SIMULATION = SimulationConfig(
    neurons=5, train_trials=8, held_out_movies=2, repeats=2, seconds=1.0, size=(12, 20),
    stimuli="textures", mean_rate=(8.0, 12.0),
)  # fmt: skip


def make_inputs(made: Path) -> None:
    """Fill a folder with inputs of the commands: videos, sessions, an encoder, a model of neurons."""
    render(made / "videos", 14, size=(24, 36), num_frames=32, workers=1, progress=False)
    pack(made / "videos", made / "shards", made / "videos", frames=32, workers=1,
         samples_per_shard=7, progress=False)  # fmt: skip
    torch.manual_seed(0)
    encoder = create_encoder("vivit_tiny", **GEOMETRY)
    prepared = {"mean": [0.5] * 3, "std": [0.1] * 3, "fps": 25.0, "frame_stride": 2}
    save_pretrained(encoder, made / "encoder", preprocessing=prepared)
    simulate(made / "session", SIMULATION, progress=False)
    noise = np.random.default_rng(0)
    shutil.copytree(made / "session", made / "long" / "session")
    for trial in range(20):
        np.save(made / f"long/session/data/videos/{100 + trial}.npy", noise.bytes(1_000_000))
    shutil.make_archive(str(made / "session"), "zip", made / "long")
    save_linear_model(made / "neurons", [str(made / "session")], lambda model: None)
    record(made / "mouse.nwb")


def recipe(name: str, settings: dict[str, Any], *words: str, differs=()) -> Command:
    script = str(ROOT / "recipes" / f"{name}.py")
    return Command([script, *words, *options(settings)], differs=differs)


def prepared(module: str, *words: str | Path, inputs=None) -> Command:
    return Command(["-m", f"data_prep.{module}", *map(str, words)], inputs)


def recipes(inputs: Path) -> dict[str, Command]:
    """Return name → command for every recipe."""
    shards, session = str(inputs / "shards" / "*.tar"), str(inputs / "session")
    neurons = NEURONS | {"data.sessions": [session]}
    small = {"objective.hidden_dim": 16, "objective.output_dim": 8}
    rates = {"training.optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    return {
        "simclr_clevrer": recipe(
            "simclr_clevrer", PRETRAINING | small | {"data.shards": shards}
        ),
        "mae_clevrer": recipe(
            "mae_clevrer",
            PRETRAINING
            | {"data.shards": shards, "objective.decoder_depth": 1, "data.clip.views": 1,
               "objective.mask_ratio": 0.5},
        ),
        "finetune_neural": recipe(
            "finetune_neural",
            neurons
            | {"training.steps": 6, "tuning.mode": "readout_first", "tuning.readout_steps": 3,
               "data.held_out_neurons": 0.4, "evaluation.fields": 2},
        ),
        "compare_neural": recipe(
            "compare_neural", neurons | {"cores": ["ln", "vivit"], "seeds": 1, "shares": [1.0]}
        ),
        "search_neural": recipe(
            "search_neural", neurons | {"space": rates, "trials": 2}, differs=("study.journal",)
        ),
        "probe_clevrer": recipe(
            "probe_clevrer",
            {"encoders": [str(inputs / "encoder")], "data.shards": shards, "data.held_out": 0.4,
             "data.workers": 1, "seeds": 1, "attentive.steps": 4, "finetune.steps": 2,
             "finetune.total_batch_size": 4,
             "run_dir": "probes"},
        ),
        "extract_features": recipe(
            "extract_features",
            {"encoder": str(inputs / "encoder"), "videos": str(inputs / "videos"), "out": "features",
             "features": "both", "part_size": 4, "data.workers": 1},
        ),
        "evaluate_neural": recipe(
            "evaluate_neural",
            {"sessions": [session], "run_dir": "scores", "resamples": 50, "nwb": True},
            str(inputs / "neurons"), differs=("predictions_session.nwb",),
        ),
    }  # fmt: skip


def preparations(inputs: Path, mirror: str) -> dict[str, Command]:
    """Return name → command for every command of data_prep that writes files."""
    shards, videos, session = inputs / "shards", inputs / "videos", inputs / "session"

    def bare_tars(folder: Path) -> None:
        for tar in shards.glob("*.tar"):
            shutil.copy(tar, folder)

    return {
        "synthetic_clevrer": prepared(
            "synthetic_clevrer", "--out", "out", *options(RENDERING), "--workers", "2",
            "--contact-sheet", "sheet.png",
        ),
        "clevrer_pack": prepared(
            "clevrer", "pack", "--videos", videos, "--annotations", videos, "--out", "out",
            "--frames", "32", "--samples-per-shard", "4", "--workers", "2",
        ),
        "clevrer_index": prepared("clevrer", "index", "*.tar", inputs=bare_tars),
        "clevrer_info": prepared("clevrer", "info", shards / "*.tar", "--contact-sheet", "sheet.png"),
        "clevrer_download": prepared(
            "clevrer", "download", "--split", "test", "--out", "out", "--base-url", mirror
        ),
        "synthetic_neural": prepared(
            "synthetic_neural", "--out", "sessions/s", "--videos", shards / "*.tar", "--neurons", "6",
            "--train-trials", "8", "--held-out-movies", "2", "--repeats", "2", "--seconds", "1",
            "--size", "12x20",
        ),
        "sensorium_convert": prepared(
            "sensorium", "convert", inputs / "session.zip", "--out", "sessions"
        ),
        "sensorium_movies": prepared("sensorium", "movies", session, "--out", "movies"),
        "sensorium_check": prepared("sensorium", "check", session, "--sheet", "sheet.png"),
        "nwb": prepared(
            "nwb", inputs / "mouse.nwb", "--out", "sessions/mouse", "--stimulus", "movie_a", "movie_b",
            "--running", "speed", "--trials", "trials", "--tiers", "tier",
        ),
    }  # fmt: skip
