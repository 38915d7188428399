"""A full disk while a checkpoint is written gives one line, and the last checkpoint stays complete."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vivit.errors import RunError
from ssl_vivit.training.checkpoints.files import fault, newest_whole, write_checkpoint
from ssl_vivit.training.checkpoints.state import TrainingState

# A file-size limit makes the file system refuse a write in the middle, as a full one does.
LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from toy_objective import ToyObjective, toy_batches
from ssl_vivit.training import Periodic, TrainingConfig, fit, run
def fill(moment):
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
config = TrainingConfig(run_dir={run!r}, steps=12, total_batch_size=4, checkpoint_every=4,
    log_every=1, tracker="none")
config.optimizer.warmup_steps = 2
run(lambda: fit(ToyObjective(width=64), toy_batches(), config, periodic=[Periodic(6, fill)]))
"""


def test_refused_write_is_one_line_and_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code = LIMITED.format(tests=str(Path(__file__).parent), run=str(run_dir))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert "while saving step 8" in errors[0]
    assert "step_00000004" in errors[0]
    assert "Traceback" not in done.stderr
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000004"]
    assert fault(run_dir / "checkpoints" / "step_00000004") is None


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left in .* while saving step 7; no checkpoint exists yet"),
        (errno.EACCES, "cannot be written"),
    ],
)
def test_file_system_errors_have_different_messages(tmp_path: Path, number: int, said: str) -> None:
    def export(directory: Path) -> None:
        directory.mkdir()
        raise OSError(number, os.strerror(number))

    state = TrainingState({}, {}, {"groups": [], "state": {}})
    with pytest.raises(RunError, match=said):
        write_checkpoint(tmp_path, 7, state, {}, [], export)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_on_the_metrics_file(tmp_path: Path) -> None:
    from ssl_vivit.training.metrics.tracking import Tracking

    (tmp_path / "metrics.jsonl").write_text("")
    tracking = Tracking(tmp_path, "none", "p", {}, first_step=1)
    tracking._file.close()
    tracking._file = Path("/dev/full").open("a")  # noqa: SIM115 -- closed by the tracking
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written: No space left"):
        tracking.log(1, {"a": 1.0})
    tracking.close()


def test_nothing_to_continue_from(tmp_path: Path) -> None:
    lines: list[str] = []
    assert newest_whole(tmp_path, lines.append) is None
    (tmp_path / "step_00000003").mkdir()
    with pytest.raises(
        RunError, match=r"no checkpoint in \S+ is complete \(step_00000003: its manif"
    ):
        newest_whole(tmp_path, lines.append)
    assert lines == []
