"""If one process of a run fails, its error is shown once with its rank, and all processes end."""

import os
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_vivit.errors import RunError
from ssl_vivit.training.loop import _Run

SCRIPT = Path(__file__).with_name("failing_rank.py")


def started(folder: Path, place: str, failing: int) -> tuple[list[int], str]:
    """Start two processes without a launcher; return their exit statuses and output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder), place, str(failing)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        first = None
        while any(process.poll() is None for process in processes):
            if first is None and any(process.poll() is not None for process in processes):
                first = time.monotonic()
            assert first is None or time.monotonic() - first < 15, "a process waits for the other"
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
    # A process that is ended may leave its progress bar without a line break.
    told = "\n".join(process.communicate()[0] for process in processes)
    return [process.returncode for process in processes], told


def errors(told: str) -> list[str]:
    return [line for line in told.splitlines() if line.startswith("error")]


@pytest.mark.parametrize(
    ("place", "failing", "line"),
    [
        ("evaluation", 1, "error on rank 1 of 2: session a has no test trials"),
        pytest.param(
            "data", 1, "error on rank 1 of 2: video 17 of clevrer.tar cannot be decoded",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "evaluation", 0, "error on rank 0 of 2: session a has no test trials",
            marks=pytest.mark.slow,
        ),
        pytest.param("export", 0, "error on rank 0 of 2: ", marks=pytest.mark.slow),
        pytest.param("checkpoint", 0, "error on rank 0 of 2: ", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_error_is_shown_once_and_ends_all_processes(tmp_path, place, failing, line):
    status, told = started(tmp_path / "run", place, failing)
    assert all(code > 0 for code in status), told
    assert len(errors(told)) == 1, told
    assert errors(told)[0].startswith(line), told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    status, told = started(tmp_path / "run", "fault", 1)
    assert all(code > 0 for code in status), told
    assert errors(told) == ["error on rank 1 of 2:"]
    assert told.count("Traceback (most recent call last)") == 1
    assert "KeyError: 'a fault of the program'" in told


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_killed_process_ends_the_other_with_one_line(tmp_path, failing):
    status, told = started(tmp_path / "run", "killed", failing)
    assert status[failing] == -9, told
    assert status[1 - failing] == 1
    assert len(errors(told)) == 1, told
    assert errors(told)[0].startswith(
        f"error on rank {1 - failing} of 2: another process cannot be reached"
    )
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_launcher_does_not_hide_the_error(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "run"), "evaluation", "1"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("error on rank 1 of 2: session a has no test trials") == 1
    assert "error on rank 0" not in done.stderr


def test_the_first_rank_with_an_error_is_named():
    run = SimpleNamespace(
        pending=deque(), stopping=False, interruption=SimpleNamespace(received=None),
        host=SimpleNamespace(
            mean=lambda values: [0.0, 2 / 4], gather=lambda failure: [None, None, "broken", "too"]
        ),
    )  # fmt: skip
    with pytest.raises(RunError, match="broken") as raised:
        _Run._read_record(run, 0, None)
    assert raised.value.rank == 2
