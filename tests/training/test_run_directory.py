"""The run directory: files, leftovers, and the lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_objective import ToyObjective, toy, toy_batches

from ssl_vivit.errors import RunError
from ssl_vivit.run_lock import LOCK, refuse_locked
from ssl_vivit.training import Periodic, check_run, fit, to_plain
from ssl_vivit.training.run_directory import place


def test_a_placed_directory_replaces_its_own_files_and_keeps_others(tmp_path):
    source, target = tmp_path / "checkpoint" / "encoder", tmp_path / "encoder"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_text("new")
    place(source, target)
    assert [path.name for path in target.iterdir()] == ["model.safetensors"]
    (target / "encoder.onnx").write_text("mine")
    (source / "model.safetensors").write_text("newer")
    place(source, target)
    assert (target / "model.safetensors").read_text() == "newer"
    assert (target / "encoder.onnx").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "encoder"]


HOLDER = """
from pathlib import Path
from ssl_vivit.run_lock import locked
with locked(Path({run_dir!r}), "--run_dir", print):
    print("held", flush=True)
    input()
"""


def test_a_directory_in_which_another_process_writes_is_refused(config):
    settings = config(steps=4, resume="auto")
    run_dir = fit(toy(), toy_batches(), settings).run_dir
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert run_dir / LOCK not in before
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(run_dir=str(run_dir))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "held\n"
    settings.steps = 6
    for start in (
        lambda: fit(toy(), toy_batches(), settings),
        lambda: check_run(ToyObjective, settings, {"training": to_plain(settings)}),
    ):
        with pytest.raises(RunError, match=rf"run_dir \S+ is in use: process {other.pid} on host"):
            start()
    held = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    assert held.pop(run_dir / LOCK)
    assert held == before
    other.communicate("\n")
    assert fit(toy(), toy_batches(), settings).step == 6


def test_a_run_locks_its_directory_until_it_ends(config):
    settings = config(steps=3)
    run_dir, outcomes = Path(settings.run_dir), []

    def ask(moment) -> None:
        child = os.fork()
        if not child:
            try:
                refuse_locked(run_dir, "--run_dir")
            except RunError:
                os._exit(7)
            os._exit(0)
        outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    fit(toy(), toy_batches(), settings, periodic=[Periodic(1, ask)])
    assert set(outcomes) == {7}
    assert not (run_dir / LOCK).exists()
    # A directory with nothing but the lock of a killed process holds no other run.
    killed = Path(config("killed").run_dir)
    killed.mkdir()
    (killed / LOCK).write_text("{}")
    assert fit(toy(), toy_batches(), config("killed", steps=3)).step == 3
