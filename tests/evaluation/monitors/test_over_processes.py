"""Evaluation of held-out videos on several processes equals one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Videos, videos at once, broken ones: equal parts, unequal ones, a part with nothing.
CASES = [[8, 2, []], [23, 3, [4, 9]], [1, 4, []], [5, 1, [2]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    loader_tests = Path(__file__).parents[2] / "data" / "video"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(loader_tests), *sys.path])}
    for processes in (1, 2):
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             "--nproc_per_node", str(processes), Path(__file__).with_name("evaluation_on_ranks.py"),
             folder, json.dumps(CASES)],
            check=True, env=environment,
        )  # fmt: skip
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_all_processes_get_the_rows_of_one(found, case):
    one, *two = (found[name][case] for name in ("0_of_1", "0_of_2", "1_of_2"))
    count, _, broken = CASES[case]
    assert len(one["keys"]) == count - len(broken)
    assert two[0]["calls"] == two[1]["calls"] <= one["calls"]
    for rank in two:
        assert {**rank, "calls": one["calls"]} == one
