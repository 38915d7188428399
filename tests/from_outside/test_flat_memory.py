"""Memory of training and its loader workers stays flat over 2,000 steps of each recipe that trains."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killed_command import started

pytest.importorskip("pynwb")
from tiny_commands import make_inputs, options, recipes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

STEPS = 2000
# Before it, allocators and caches grow to their size; two evaluations are among these steps.
WARM = 600
# MB in 1,000 steps: 5 kB a step, a thirtieth of a batch of clips. A worker's heap goes up and down by
# as much.
BOUND = 5.0
SETTINGS = {
    "training.steps": STEPS, "training.checkpoint_every": 500, "training.log_every": 10,
    "evaluation.every": 250,
}  # fmt: skip
OWN = {
    "simclr_clevrer": {"probe.every": 500},
    "mae_clevrer": {"probe.every": 500},
    "finetune_neural": {"tuning.readout_steps": 300},
}


def memory(process: int) -> float:
    """Return the memory of a process in MB: heap and shared memory, without mapped files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(value.split()[0]) for value in found.values()) / 1024


def group(leader: int) -> list[int]:
    """Return the processes of a group, the leader first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(folder.name))
    return sorted(found, key=lambda number: number != leader)


def reached(metrics: Path) -> int:
    """Return the last step in a run's metrics.jsonl."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        whole = file.read().decode().split("\n")[:-1]
    return int(whole[-1].split('"step": ')[1].split(",")[0].rstrip("}")) if whole else 0


def samples(process: subprocess.Popen[str], metrics: Path) -> np.ndarray:
    """Sample step, MB of the main process and MB of its oldest worker, (n, 3), during a run.

    Evaluations have further workers, which end with them.
    """
    found = []
    while process.poll() is None:
        time.sleep(0.2)
        try:
            own, *others = [memory(each) for each in group(process.pid)]
            step = reached(metrics)
        except (OSError, ValueError):  # a process ends between two of these lines
            continue
        found.append((step, own, others[0] if others else 0))
    return np.array(found)


def slope(samples: np.ndarray) -> tuple[float, float]:
    """Return the least-squares growth in MB per 1,000 steps after warm-up, of main process and workers."""
    kept = samples[(samples[:, 0] > WARM) & (samples[:, 0] < STEPS)]
    assert len(kept) > 50
    return tuple(1000 * np.polyfit(kept[:, 0], kept[:, 1:], 1)[0])


@pytest.mark.parametrize("name", OWN)
def test_memory_is_flat(name, tmp_path_factory, tmp_path):
    inputs = tmp_path_factory.mktemp("inputs")
    make_inputs(inputs)
    command = recipes(inputs)[name]
    command.words.extend(options(SETTINGS | OWN[name]))
    log = tmp_path / "operations.log"
    with (tmp_path / "errors.txt").open("w") as errors:
        process = started(command, tmp_path, log, errors=errors)
        found = samples(process, tmp_path / "run" / "metrics.jsonl")
    assert process.returncode == 0, (tmp_path / "errors.txt").read_text()[-2000:]
    np.savetxt(os.environ.get("SAMPLES", tmp_path / "samples.txt"), found, "%.2f")
    own, others = slope(found)
    print(f"{name}: main process {own:+.2f} MB in 1,000 steps, loader worker {others:+.2f}")
    assert max(own, others) < BOUND
