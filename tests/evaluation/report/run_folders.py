"""Small run directories for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from small_runs import save_linear_model, small_session

from ssl_vivit.evaluation.figures import draw_curves


def neural_run(root: Path, *, repeats: int = 2) -> Path:
    """Return a run of a small linear model on a simulated session."""
    session = small_session(root / "session", neurons=7, held_out_movies=3, repeats=repeats)
    run = root / "run"
    save_linear_model(
        run, [session], lambda model: None, core="ln_separable", lags=6,
        training={"command": "python recipes/finetune_neural.py", "seed": 0},
    )  # fmt: skip
    write_config(run, {"data": {"sessions": [session]}, "training": {"steps": 2}})
    write_metrics(run, [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 0.25}])
    return run


def pretraining_run(root: Path) -> Path:
    """Return a run that was stopped after 20 of 40 steps, with three sheets of one kind."""
    run = root / "pretraining"
    lines = [{"step": step, "train/loss": 1 / step, "train/lr": 1e-5} for step in range(1, 21)]
    write_metrics(run, lines)
    write_config(run, {"training": {"steps": 40}, "data": {"shards": "<script>alert(1)</script>"}})
    (run / "figures").mkdir()
    for step in (0, 10, 20):
        path = run / "figures" / f"reconstructions_step_{step:08d}.png"
        draw_curves(lines, {f"at {step}": {"train/loss": "loss"}}, path)
    return run


def write_config(run: Path, settings: dict) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def write_metrics(run: Path, lines: list[dict]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
