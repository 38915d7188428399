"""Published results of training runs: tables equal stored scores, figures are readable."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import readable_figures
import torch
import yaml

from ssl_vivit import load_encoder

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "weights"
NAMES = sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))
RUNS = ROOT / "recipes" / "results" / "pretraining"


def program(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "published" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = program("probe_tables")


@pytest.mark.parametrize(("probe", "summary"), TABLES.TABLES)
def test_tables_of_probes_show_the_stored_scores(probe, summary):
    page = (ROOT / "docs" / "explanation" / "what_pretraining_learns.md").read_text()
    assert "\n".join(TABLES.table(probe, summary)) in page


def test_the_table_of_found_positions_shows_the_stored_shares():
    page = (ROOT / "docs" / "explanation" / "results_on_neurons.md").read_text()
    assert "\n".join(program("found_positions").table()) in page


def test_curves_are_readable():
    curves = program("loss_curves")
    for runs, panels in (
        (curves.MASKED, curves.MASKED_PANELS),
        (curves.SIMCLR, curves.SIMCLR_PANELS),
    ):
        assert readable_figures.faults(curves.figure(runs, panels)) == []


def test_masked_presets_beat_interpolation():
    """The held-out error of each trained masked preset is below both predictions from neighbours."""
    runs = sorted(RUNS.glob("mae_*/metrics*.jsonl"))
    assert len(runs) >= 7
    for run in runs:
        lines = [json.loads(line) for line in run.read_text().splitlines()]
        last = [line for line in lines if "val/error" in line][-1]
        guesses = (last["val/copy_error"], last["val/interpolation_error"])
        assert last["val/error"] < min(guesses), run


def test_the_weights_are_small():
    assert 2 <= len(NAMES) <= 4
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 10e6


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_in_single_precision_with_their_provenance(name):
    encoder = load_encoder(WEIGHTS / name)
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}
    facts = encoder.provenance
    assert facts["command"].startswith("python recipes/")
    assert f"--training.seed {facts['seed']}" in facts["command"]
    card = (WEIGHTS / name / "README.md").read_text()
    assert facts["command"] in card
    lines = [
        json.loads(line) for line in (WEIGHTS / name / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["step"] == facts["steps"]
    if name in TABLES.ROWS:
        assert TABLES.row_of(name) in card


def test_animals_are_averaged_and_rows_paired(tmp_path):
    animals = program("several_animals")
    # Rows differ by less than animals do.
    values = {"fresh": [0.30, 0.40, 0.50], "fitted": [0.32, 0.43, 0.52]}
    files = []
    for animal in range(3):
        results = [
            {"tier": tier, "row": row, "trials": 16, "mean": scores[animal] + shift}
            for row, scores in values.items()
            for tier, shift in (("oracle", 0.1), ("live_test_main", 0.0))
        ]
        files.append(tmp_path / f"{animal}.json")
        files[-1].write_text(json.dumps({"metric": "correlation_mean", "results": results}))
    metric, scores = animals.read(files, "live_test_main")
    assert metric == "correlation_mean"
    assert animals.mean_and_error(scores["fresh"][16]) == pytest.approx((0.4, 0.1 / 3**0.5))
    paired = animals.differences(scores, "fresh")
    assert list(paired) == ["fitted"]
    mean, error = animals.mean_and_error(paired["fitted"][16])
    assert (mean, error) == pytest.approx((0.07 / 3, 0.01 / 3))
    assert animals.table(paired, signed=True)[-1] == "| fitted | **+0.023 ± 0.003** |"
    assert animals.table(scores)[-2] == "| fresh | 0.400 ± 0.058 |"
    drawn = animals.figure(metric, scores, [("fresh", paired)])
    assert readable_figures.faults(drawn) == []
    both = animals.with_means(scores, [["both", "fresh", "fitted"]])
    assert list(both) == ["both"]
    assert both["both"][16] == pytest.approx([0.31, 0.415, 0.51])
    with pytest.raises(SystemExit, match="there is no row fited; rows are fresh; fitted"):
        animals.differences(scores, "fresh", ["fited"])
    files[0].write_text(json.dumps({"metric": "correlation_mean", "results": []}))
    with pytest.raises(SystemExit, match="fresh with 16 trials is in 2 of 3"):
        animals.read(files, "live_test_main")


def test_the_tables_of_pretraining_for_neurons_show_the_stored_scores():
    animals = program("several_animals")
    results = ROOT / "recipes" / "results" / "pretraining_for_neurons"
    files = sorted(results.glob("*.json"))
    assert len(files) == 5
    _, scores = animals.read(files, "live_test_main")
    rows = yaml.safe_load((ROOT / "docs/published/pretraining_for_neurons.yaml").read_text())[
        "rows"
    ]
    assert [*scores] == [*rows]
    random = [f"random weights {n}, frozen" for n in (1, 2, 3)]
    scores = animals.with_means(scores, [["random weights, frozen", *random]])
    page = (ROOT / "docs" / "explanation" / "results_on_neurons.md").read_text()
    assert "\n".join(animals.table(scores)) in page
    compared = {
        "random weights, frozen": [
            f"{name}, {stimuli}, frozen" for stimuli in ("textures", "videos")
            for name in ("masked", "SimCLR")
        ],
        "fresh, tuned": [
            *(f"{name}, {stimuli}, tuned" for stimuli in ("textures", "videos")
              for name in ("masked", "SimCLR")),
            "other animals' core, frozen",
        ],
    }  # fmt: skip
    for against, others in compared.items():
        found = animals.differences(scores, against, others)
        assert "\n".join(animals.table(found, signed=True)) in page


def test_the_table_of_cores_shows_the_stored_scores():
    results = ROOT / "recipes" / "results" / "cores"
    page = (ROOT / "docs" / "explanation" / "results_on_neurons.md").read_text()
    table = page[page.index("### A table of cores") : page.index("### Positions from few trials")]
    names = {"ViViT of the sample": "ViViT of the sample, tubelets 12×12×12",
             "ViViT small 8×8×8": "ViViT small, tubelets 8×8×8", "ResNet": "causal 3D ResNet",
             "X3D": "causal X3D, 8, 16 and 32 channels",
             "linear–nonlinear, full": "linear–nonlinear, full filters",
             "linear–nonlinear, separable": "linear–nonlinear, separable filters"}  # fmt: skip
    shown, name = {}, ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7:
            name = cells[0] or name
            shown[name, cells[4]] = cells[5:]
    stored = [
        result
        for path in sorted(results.glob("*.json"))
        for result in json.loads(path.read_text())["results"]
        if result["tier"] == "live_test_main"
    ]
    assert len(stored) == 12
    for result in stored:
        row, rate = result["row"].rsplit(", ", 1)
        error = result["standard_error"]
        bits = f"{result['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")
        seeds = [seed["correlation_mean"] for seed in result["seeds"]]
        correlation = sum(seeds) / len(seeds)
        assert shown[names[row], rate] == [bits, f"{correlation:.3f}"]


def test_the_table_of_the_recorded_session_shows_the_stored_scores():
    animals = program("several_animals")
    file = ROOT / "recipes" / "results" / "pretraining_on_gratings" / "seed0.json"
    _, scores = animals.read([file], "live_test_main")
    settings = yaml.safe_load((ROOT / "docs/published/pretraining_on_gratings.yaml").read_text())
    assert [*scores] == [*settings["rows"]]
    assert all([*by_trials] == settings["trials"] for by_trials in scores.values())
    page = (ROOT / "docs" / "explanation" / "results_on_neurons.md").read_text()
    assert "\n".join(animals.table(scores)) in page
