"""Recipes and data_prep commands that are killed and started again write the files of an
uninterrupted run.

KILLS=100 python -m pytest -m slow tests/from_outside/test_kills.py -k simclr_clevrer -s
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import Answer, FaultyServer
from killed_command import Kill, faults, run_whole

for extra in ("pynwb", "optuna", "pyarrow"):
    pytest.importorskip(extra)
from tiny_commands import make_inputs, preparations, recipes  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="operations are counted through /proc"),
]

# Runs of each command that are killed, half of them before an operation on files.
KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("KILLS_SEED", "0"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("inputs")
    make_inputs(made)
    return made


@pytest.fixture(scope="module")
def mirror(inputs) -> Iterator[str]:
    """Return the address of a server of CLEVRER's archives, which needs a second for the test split."""
    with FaultyServer() as server:
        content = (inputs / "session.zip").read_bytes()
        server.files["/videos/test/video_test.zip"] = content
        server.always["/videos/test/video_test.zip"] = Answer(rate=len(content))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.released.set()
        server.shutdown()
        thread.join()


RECIPES = (
    "simclr_clevrer", "mae_clevrer", "finetune_neural", "compare_neural", "search_neural",
    "probe_clevrer", "extract_features", "evaluate_neural",
)  # fmt: skip
PREPARATIONS = (
    "synthetic_clevrer", "clevrer_pack", "clevrer_index", "clevrer_info", "clevrer_download",
    "synthetic_neural", "sensorium_convert", "sensorium_movies", "sensorium_check", "nwb",
)  # fmt: skip


@pytest.mark.parametrize("name", [*RECIPES, *PREPARATIONS])
def test_killed_commands_end_with_the_files_of_uninterrupted_ones(name, inputs, mirror, tmp_path):
    command = {**recipes(inputs), **preparations(inputs, mirror)}[name]
    whole = run_whole(command, tmp_path / "whole")
    draw, count, runs, unequal = random.Random(f"{SEED} {name}"), 0, 0, []
    for trial in range(KILLS):
        folder = tmp_path / f"killed_{trial}"
        # Some runs are killed again while they go on.
        kills = [
            Kill.drawn(whole, draw, timed=trial % 2 == 0) for _ in range(draw.choice([1, 1, 2]))
        ]
        own, found = faults(command, folder, whole, kills)
        count, runs, unequal = count + own, runs + (own > 0), unequal + found
        print("\n".join(found), end="\n" * bool(found), flush=True)
        if not found:
            shutil.rmtree(folder)
    wrong = sum(line.startswith("killed ") for line in unequal)
    print(f"{name}: {count} kills in {runs} runs, {runs - wrong} equal")
    assert count or not KILLS
    assert not unequal, "\n".join(unequal)
