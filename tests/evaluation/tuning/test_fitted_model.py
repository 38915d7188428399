"""Tuning and receptive fields of a fitted model, compared with its simulated neurons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GRATINGS = "--directions 12 --spatial_frequencies 0.08 0.12 0.18 --temporal_frequencies 2 4 --sizes [] --contrasts [] --fits false"


def python(*words: str, folder: Path) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, check=True, capture_output=True
    )


@pytest.mark.slow
def test_orientations_and_places_of_a_fitted_model_are_the_true_ones(tmp_path):
    simulate = "-m data_prep.synthetic_neural --out s --stimuli textures --calcium --neurons 40 --train-trials 120 --held-out-movies 4 --repeats 2 --seconds 4 --seed 3"
    python(*simulate.split(), folder=tmp_path)
    recipe = str(ROOT / "recipes" / "finetune_neural.py")
    settings = "--sessions s --config neural_calcium --steps 150 --run_dir run --tracker none"
    python(recipe, *settings.split(), folder=tmp_path)
    python("-m", "ssl_vivit.evaluation.tuning", "run", *GRATINGS.split(), "--against", "s",
           "--out", "tuning", folder=tmp_path)  # fmt: skip
    truth = json.loads((tmp_path / "tuning" / "agreement.json").read_text())["truth"]
    assert truth["orientation"]["correlation"] > 0.9
    assert truth["orientation"]["median_difference"] < 8
    python("-m", "ssl_vivit.evaluation.fields", "run", "--frames", "6000",
           "--against", "s", "--out", "fields", folder=tmp_path)  # fmt: skip
    found = json.loads((tmp_path / "fields" / "agreement.json").read_text())["ellipses"]
    for method in ("position", "gradient", "noise"):
        assert found[f"{method}, truth"]["x"] > 0.95, method
        assert found[f"{method}, truth"]["y"] > 0.95, method
