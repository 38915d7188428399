"""metrics.jsonl is always written; wandb works without an account and never prompts."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from toy_objective import toy, toy_batches

from ssl_vivit.errors import RunError
from ssl_vivit.training import fit
from ssl_vivit.training.metrics.tracking import Tracking, unreachable, wandb_mode
from ssl_vivit.training.speed.throughput import Throughput


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path


def test_clips_per_second_leave_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((0.0, 2.0, 12.0, 12.5, 13.5, 14.0, 15.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    throughput = Throughput()
    throughput.add(6)
    with throughput.paused():
        throughput.add(2)
    with throughput.waiting():
        pass
    assert throughput.read() == pytest.approx((8 / 4, 1 / 4))
    throughput.add(5)
    assert throughput.read() == pytest.approx((5 / 1, 0))


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
        "train/data_wait",
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


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Return an address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Replace wandb.init; return the arguments of its call."""
    import wandb

    arguments: dict = {}
    monkeypatch.setattr(wandb, "init", lambda **settings: arguments.update(settings))
    return arguments


def test_an_account_without_network_logs_offline_within_ten_seconds(
    no_account: Path, monkeypatch, silent_address: str, tmp_path: Path, capsys
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", silent_address)
    before = time.monotonic()
    tracking = Tracking(tmp_path, "wandb", None, {}, first_step=0)
    assert time.monotonic() - before < 10
    tracking.log(1, {"a": 1.0})
    tracking.close()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
    said = capsys.readouterr().err.strip()
    # Earlier versions of wandb add a warning of their own.
    (said,) = [line for line in said.splitlines() if not line.startswith("wandb: WARNING")]
    assert said.startswith(f"wandb: {silent_address} does not answer (")
    assert "this run is logged offline; `wandb sync " in said


def test_a_closed_port_a_missing_name_and_a_silent_server_do_not_answer(
    silent_address: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "refused" in str(unreachable(f"http://127.0.0.1:{port}"))
    assert unreachable("http://no-such-host.invalid", seconds=1.0)
    assert unreachable(silent_address, seconds=0.2) == "timed out"


def test_a_server_that_refuses_the_page_does_answer(no_account: Path, monkeypatch, given, tmp_path):
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *text: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        Tracking(tmp_path, "wandb", None, {}, first_step=0)
    finally:
        server.shutdown()
        server.server_close()
    assert given["mode"] == "online"


def test_project_name_and_folder_are_those_of_the_environment(
    no_account: Path, monkeypatch, given, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()

    def start(project: str | None) -> tuple[str, ...]:
        Tracking(run_dir, "wandb", project, {}, first_step=0)
        return tuple(given[key] for key in ("project", "name", "dir"))

    assert start(None) == ("ssl_vivit", "run", str(run_dir))
    for name, value in (("PROJECT", "mine"), ("NAME", "nice"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert start(None) == ("mine", "nice", str(tmp_path))
    assert start("explicit") == ("explicit", "nice", str(tmp_path))


@pytest.mark.parametrize(("name", "value"), [("DISABLED", "true"), ("MODE", "disabled")])
def test_wandb_can_be_disabled(no_account, monkeypatch, given, tmp_path, name, value) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv(f"WANDB_{name}", value)
    tracking = Tracking(tmp_path, "wandb", None, {}, first_step=0)
    tracking.log(1, {"a": 1.0})
    tracking.close()
    assert given == {}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_unknown_mode_is_refused_before_the_directory_is_claimed(
    config, no_account: Path, monkeypatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "of")
    settings = config(tracker="wandb")
    with pytest.raises(RunError, match="WANDB_MODE is of"):
        fit(toy(), toy_batches(), settings)
    assert not Path(settings.run_dir).exists()


def test_an_unknown_mode_is_named(no_account: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "false")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(RunError, match="WANDB_MODE is of; it must be online, offline or disabled"):
        wandb_mode()
