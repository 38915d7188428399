"""Fixtures of the tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_thread import one_thread  # noqa: F401
from toy_objective import TIMED

from ssl_vivit.training import OptimConfig, TrainingConfig


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TrainingConfig]:
    def make(name: str = "run", **changes: Any) -> TrainingConfig:
        optimizer = {"learning_rate": 0.5, "warmup_steps": 2, **changes.pop("optimizer", {})}
        settings = {
            "run_dir": str(tmp_path / name),
            "steps": 12,
            "total_batch_size": 4,
            "checkpoint_every": 4,
            "log_every": 1,
            "tracker": "none",
            **changes,
        }
        return TrainingConfig(optimizer=OptimConfig(**optimizer), **settings)

    return make


@pytest.fixture
def metrics() -> Callable[[Path | str], list[dict[str, float]]]:
    def read(run_dir: Path | str) -> list[dict[str, float]]:
        """Return all lines of metrics.jsonl without measured times."""
        lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return [{k: v for k, v in r.items() if k not in TIMED} for r in rows]

    return read
