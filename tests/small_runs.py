"""Small sessions, models and settings of runs, for the tests of recipes and commands."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.neural.building import build_neural_model
from ssl_vivit.neural.checkpoint import save_neural_model
from ssl_vivit.neural.config import BaselineConfig, NeuralEncoderChoice, NeuralModelConfig
from ssl_vivit.neural.linear_nonlinear import LinearNonlinearConfig
from ssl_vivit.neural.model import NeuralModel

RECORDED = Path(__file__).parent / "assets" / "mouse_v1_gratings" / "session_fov4_cut"
TINY = {
    "embed_dim": 8, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1,
    "tubelet_size": [4, 4, 4],
}  # fmt: skip
# Settings of recipes/finetune_neural.py for a model and a run of seconds.
NEURAL = {
    "encoder.overrides": TINY,
    "data.window": 12,
    "model.modulator.kind": "film",
    "model.stream_filters": 4,
    "training.optimizer.warmup_steps": 1,
    "training.tracker": "none",
    "evaluation.every": 2,
    "evaluation.fields": 0,
}


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as arguments of the command line: strings unchanged, other values as JSON."""
    given = {k: v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def launcher(main: Callable[[], None]) -> Callable:
    """Return a fixture: a function that calls a command with arguments and returns its ``--out``."""

    @pytest.fixture
    def launch(monkeypatch, tmp_path):
        def call(*words: str, out: str = "out") -> Path:
            folder = tmp_path / out
            monkeypatch.setattr(sys, "argv", ["command", *words, "--out", str(folder)])
            main()
            return folder

        return call

    return launch


def small_session(folder: Path, **changes: Any) -> str:
    """Simulate a session with textures and trials of one second; ``changes`` are further settings."""
    config = SimulationConfig(**{
        "neurons": 5, "train_trials": 4, "held_out_movies": 2, "repeats": 1, "seconds": 1.0,
        "size": (12, 20), "stimuli": "textures", "mean_rate": (10.0, 20.0), **changes,
    })  # fmt: skip
    return str(simulate(folder, config, progress=False))


def save_linear_model(
    run: Path,
    sessions: str | Sequence[str],
    change: Callable[[NeuralModel], None],
    *,
    core: str = "ln",
    lags: int | None = None,
    seed: int = 0,
    held_out: float = 0.0,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Save a linear–nonlinear model in the layout of a run, after ``change`` has set its parameters."""
    facts = build_sessions(NeuralDataConfig(sessions=sessions, held_out_neurons=held_out)).facts
    baseline = BaselineConfig()
    if lags is not None:
        baseline = BaselineConfig(ln=LinearNonlinearConfig(lags=lags))
    torch.manual_seed(seed)
    built = build_neural_model(
        core, NeuralEncoderChoice(), NeuralModelConfig(), baseline, facts, longest=30
    )
    with torch.no_grad():
        change(built.model)
    save_neural_model(built.model, run / "model", facts, training=training)
    return str(run)


def noise(scale: float) -> Callable[[NeuralModel], None]:
    """Return a function that adds normal noise to all parameters of a model."""

    def add(model: NeuralModel) -> None:
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))

    return add


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
