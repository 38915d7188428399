"""A training step does not depend on how its batch is split, with all draws by names."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from draws_on_ranks import BATCH, OBJECTIVES, one_step
from safetensors.torch import load_file
from session_folders import folder

from ssl_vivit.data.batch_split import BatchSplit


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write two sessions whose trials are as long as a window, so that clips of a movie are equal."""
    root = tmp_path_factory.mktemp("sessions")
    common = {"tiers": ("train",) * 6 + ("oracle",), "behaviour": 0, "size": (6, 8)}
    return [
        folder(root, "a", lengths=(8,), movies=(0, 0, 0, 1, 1, 1, 2), **common),
        folder(root, "b", lengths=(12, 15), seed=1, **common),
    ]


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_is_the_same_on_any_number_of_processes(processes, folders, tmp_path):
    script = Path(__file__).parent / "draws_on_ranks.py"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
         "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
         script, tmp_path, *folders],
        check=True,
    )  # fmt: skip
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(processes)]
    for objective in OBJECTIVES:
        expected = one_step(objective, folders, BatchSplit(BATCH))
        assert any(value.abs().max() > 1e-3 for name, value in expected.items() if name != "loss")
        loss = sum(rank[f"{objective}/loss"] for rank in ranks) / processes
        for rank in ranks:
            found = {
                name.removeprefix(f"{objective}/"): value
                for name, value in rank.items()
                if name.startswith(f"{objective}/")
            }
            assert_equal(found | {"loss": loss}, expected)


@pytest.mark.parametrize("objective", ["masked", "neural"])
def test_a_step_is_the_same_with_accumulation(objective, folders):
    """SimCLR is left out, because its negatives come from one micro-batch."""
    whole = one_step(objective, folders, BatchSplit(BATCH))
    split = one_step(objective, folders, BatchSplit(BATCH, accumulation=2))
    assert_equal(split, whole)
