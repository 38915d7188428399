"""metrics.jsonl always, wandb without an account and without a prompt."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from toy_objective import toy, toy_batches

from ssl_vivit.training import fit
from ssl_vivit.training.tracking import Tracking, wandb_mode


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path


def test_mode_follows_the_account(no_account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode() == "offline"
    no_account.write_text("machine api.wandb.ai login user password none\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode() == "online"


def test_keys_and_steps(config) -> None:
    result = fit(toy(), toy_batches(), config(steps=10, log_every=4))
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 4, 8, 10]
    assert {key for key in rows[0] if not key.startswith("system/")} == {
        "step",
        "train/loss",
        "train/grad_norm",
        "train/lr",
        "train/clips_per_second",
        "train/spread",
    }
    assert rows[0]["train/lr"] == pytest.approx(0.5 * 4 / 256 / 2)
    assert all(row["train/clips_per_second"] > 0 for row in rows)


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    tracking = Tracking(tmp_path, "none", "p", {}, first_step=0)
    tracking.log(3, {"a": float("nan"), "b": float("-inf"), "c": 0.25})
    tracking.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 3, "a": None, "b": None, "c": 0.25}


def test_wandb_runs_offline_without_an_account(config, no_account: Path) -> None:
    settings = config(steps=3, tracker="wandb")
    result = fit(toy(), toy_batches(), settings)
    files = list((result.run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    # The tracker's service may still be writing when it has returned.
    until = time.monotonic() + 20
    while b"train/loss" not in (written := files[0].read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    assert b"train/loss" in written
    assert b"train/clips_per_second" in written


def test_a_failing_tracker_does_not_end_the_run(tmp_path: Path, capsys) -> None:
    class Gone:
        def log(self, values: dict, step: int) -> None:
            raise ConnectionResetError("connection lost")

    tracking = Tracking(tmp_path, "none", "p", {}, first_step=0)
    tracking._wandb = Gone()
    tracking.log(1, {"a": 1.0})
    tracking.log(2, {"a": 2.0})
    tracking.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["a"] for row in rows] == [1.0, 2.0]
    assert capsys.readouterr().err.count("wandb failed (ConnectionResetError") == 1
