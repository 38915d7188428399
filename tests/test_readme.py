"""The commands in README and docs that are marked as tested run unchanged, in sequence."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_vivit.neural import load_neural_model

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorials" / "videos_to_neurons.md"
NEW_ANIMAL = ROOT / "docs" / "tutorials" / "new_animal.md"
MARK = "<!-- tested -->"
# The commands are long runs; these words make them short and change nothing else.
FEWER = {
    "--num-videos 320": "--num-videos 24",
    "--neurons 80": "--neurons 4",
    "--train-trials 200": "--train-trials 4 --held-out-movies 1 --repeats 1",
    "--seconds 4": "--seconds 2",
}
SHORT_RUN = "--steps 2 --total_batch_size 4 --evaluation.every 2 --training.tracker none"


def marked_blocks(text: str) -> list[tuple[str, str]]:
    """Return kind (shell or python) and code of each marked block, in the order of the page."""
    found = []
    for part in text.split(MARK)[1:]:
        part = part.lstrip("\n")
        if part.startswith("```python\n"):
            found.append(("python", part.removeprefix("```python\n").split("```")[0]))
        else:
            lines = re.match(r"(?:    .*\n|\n)+", part)
            assert lines is not None, f"no block of code follows {MARK}"
            found.append(("shell", "\n".join(line[4:] for line in lines[0].splitlines())))
    return found


def shortened(command: str) -> str:
    """Return the command with few videos, trials and steps."""
    for many, few in FEWER.items():
        command = command.replace(many, few)
    if "recipes/" in command:
        command += f" {SHORT_RUN}"
    return command


def test_marked_blocks_are_found():
    text = "a\n\n<!-- tested -->\n\n    one 1\n    two\n\nb\n\n<!-- tested -->\n\n```python\nx = 1\n```\n"
    assert marked_blocks(text) == [("shell", "one 1\ntwo\n"), ("python", "x = 1\n")]


def test_pages_with_marked_blocks():
    pages = [README, *(ROOT / "docs").rglob("*.md")]
    assert {page for page in pages if MARK in page.read_text()} == {
        README, TUTORIAL, NEW_ANIMAL,
    }  # fmt: skip


def test_the_commands_of_readme_and_tutorial_run_in_sequence(tmp_path):
    blocks = marked_blocks(TUTORIAL.read_text())
    assert [kind for kind, _ in blocks] == ["shell", "python"]
    # README gives the tutorial's commands alone, so they run once for both.
    assert marked_blocks(README.read_text()) == blocks[:1]
    commands = [line for line in blocks[0][1].splitlines() if line]
    assert [many for many in FEWER if many not in blocks[0][1]] == []
    assert sum("python recipes/" in command for command in commands) == 2
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for command in commands:
        said = call(shlex.split(shortened(command)), tmp_path)
    code = blocks[1][1] + "\nassert rates.shape == (1, 60, 4) and bool((rates > 0).all())\n"
    call([sys.executable, "-c", code], tmp_path)

    # The command that the last run names fits the model without pretraining; both have a report.
    rows = [line for line in said.splitlines() if line.startswith("without pretraining")]
    call(shlex.split(rows[0].removeprefix("without pretraining")), tmp_path)
    runs = ["runs/simclr", "runs/neurons", "runs/neurons_fresh"]
    said = call([sys.executable, str(ROOT / "examples" / "demo_report.py"), *runs], tmp_path)
    scores = [json.loads((tmp_path / run / "scores.json").read_text())["tiers"] for run in runs[1:]]
    bits = [each["live_test_main"]["scores"]["bps_mean"] for each in scores]
    assert re.search(rf"bits per spike, test trials +{bits[1]:.3f} +{bits[0]:.3f} ", said)
    assert bits[0] != bits[1]
    with Image.open(tmp_path / "runs/simclr/figures/demo.png") as figure:
        assert figure.width <= 900  # as wide as a web page
    shutil.rmtree(tmp_path / "runs/neurons_fresh")
    with pytest.raises(AssertionError, match=r"neurons_fresh/scores\.json is missing"):
        call([sys.executable, str(ROOT / "examples" / "demo_report.py"), *runs], tmp_path)


@pytest.mark.slow
def test_a_new_animal_is_fitted_on_the_core_of_others(tmp_path):
    """The tutorial's commands run with few trials, neurons and steps."""
    (kind, block), (other, code) = marked_blocks(NEW_ANIMAL.read_text())
    assert (kind, other) == ("shell", "python")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    fewer = {
        "--neurons 80": "--neurons 4",
        "--train-trials 120 --held-out-movies 4 --repeats 4 --seconds 4":
            "--train-trials 6 --held-out-movies 1 --repeats 2 --seconds 2",
        "--data.train_trials 16": "--data.train_trials 4",
        "--data.window 120": "--data.window 60",
    }  # fmt: skip
    assert [many for many in fewer if many not in block] == []
    said = ""
    for command in block.replace("\\\n", "").splitlines():
        for many, few in fewer.items():
            command = command.replace(many, few)
        if "finetune_neural" in command:
            command += f" {SHORT_RUN}"
        if command:
            said = call(shlex.split(command), tmp_path)
    # Readouts alone were trained: the core is that of the other animals, bit for bit.
    fitted, new = (load_neural_model(tmp_path / "runs" / name).model for name in ("animals", "new"))
    core = {k: v for k, v in fitted.state_dict().items() if not k.startswith("session_readouts")}
    assert len(core) > 20
    assert all(torch.equal(new.state_dict()[name], value) for name, value in core.items())
    assert new.sessions == ("new",)
    # The last command compares both models neuron by neuron.
    assert "live_test_main" in said
    assert (tmp_path / "runs/new_scores").is_dir()
    code += "\nassert rates.shape == (1, 60, 4) and bool((rates > 0).all())\n"
    call([sys.executable, "-c", code], tmp_path)


def call(words: list[str], folder: Path) -> str:
    """Run a command that must succeed, and return its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    made = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert made.returncode == 0, f"{words}\n{made.stdout[-2000:]}\n{made.stderr[-4000:]}"
    return made.stdout
