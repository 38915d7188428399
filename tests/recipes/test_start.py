"""State of the process before recipes load torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path for path in (ROOT / "recipes").glob("*.py") if "run(main)" in path.read_text()
)

# Runs a recipe as the launcher does, and says what OpenMP reads when torch is first imported.
WATCHED = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("policy", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
path = sys.argv[1]
sys.path[0] = os.path.dirname(path)
runpy.run_path(path)
"""


def test_recipes_are_found():
    assert len(RECIPES) == 8


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_threads_that_wait_sleep(recipe):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(recipe)],
        env=environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "policy PASSIVE\n"


# Runs `--help` of a recipe, and says which modules were loaded that only training needs.
HELP = """
import os, runpy, sys
path = sys.argv[1]
sys.argv[1:] = ["--help"]
sys.path[0] = os.path.dirname(path)
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print("loaded", *sorted({"timm", "torchvision", "matplotlib", "accelerate"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_help_waits_for_nothing_that_only_training_needs(recipe):
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(recipe)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded"
