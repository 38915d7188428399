"""The command that measures tuning: files, agreement with recordings, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from readable_figures import faults
from small_runs import RECORDED, launcher, noise, rows_of, save_linear_model, small_session

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation.tuning import figure as tuning_figure
from ssl_vivit.evaluation.tuning.command import main
from ssl_vivit.neural.checkpoint import load_neural_model

FEW = ("--directions", "8", "--spatial_frequencies", "0.1", "0.2", "--temporal_frequencies", "3")
SHORT = (*FEW, "--lead", "0.2", "--seconds", "0.7", "--transient", "0.2", "--contrasts", "0.3", "1")
launch = launcher(main)


def fresh_model(run: Path, session: str) -> str:
    return save_linear_model(run, [session], noise(0.05))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[str, str]:
    """Return a model and its session."""
    root = tmp_path_factory.mktemp("simulated")
    session = small_session(root / "sim", repeats=3)
    return fresh_model(root / "run", session), session


def test_files_contain_the_measured_curves(simulated, launch, capsys, monkeypatch):
    pytest.importorskip("scipy")
    figures = []
    keep = tuning_figure.save
    monkeypatch.setattr(
        tuning_figure, "save", lambda made, path: (figures.append(made), keep(made, path))
    )
    model, session = simulated
    out = launch(model, *SHORT, "--against", session)
    assert sorted(path.name for path in out.iterdir()) == [
        "agreement.json", "recorded.png", "tuning.csv", "tuning.npz", "tuning.png", "units.csv",
    ]  # fmt: skip
    assert [fault for made in figures for fault in faults(made)] == []
    units, points = rows_of(out / "units.csv"), rows_of(out / "tuning.csv")
    arrays = np.load(out / "tuning.npz", allow_pickle=False)
    assert [row["unit"] for row in units] == [str(unit) for unit in range(5)]
    assert arrays["grid"].shape == (5, 8, 2, 1)
    for name, count in (
        ("direction", 8),
        ("orientation", 4),
        ("spatial_frequency", 2),
        ("contrast", 2),
        ("size", 8),
    ):
        own = [row for row in points if row["unit"] == "3" and row["property"] == name]
        assert len(own) == count
        assert [float(row["response"]) for row in own] == pytest.approx(
            arrays[f"{name}_responses"][3]
        )
        assert [float(row["value"]) for row in own] == pytest.approx(arrays[f"{name}_values"])
    told = json.loads((out / "agreement.json").read_text())
    assert told["truth"].keys() >= {"direction", "orientation", "spatial_frequency", "dsi"}
    # Two movies in each of oracle and live_test_main.
    assert told["recorded"]["tiers"] == ["oracle", "live_test_main"]
    recorded = [float(row["recorded_model"]) for row in units]
    assert np.mean(recorded) == pytest.approx(told["recorded"]["model"]["mean"])
    said = capsys.readouterr().out
    assert "control: model's curves of other units" in said
    assert said.splitlines()[-1] == f"results  {out}"


def test_a_model_directory_is_enough(simulated, launch):
    model, _ = simulated
    out = launch(model, *FEW, "--lead", "0.1", "--seconds", "0.5", "--transient", "0.1", "--fits", "false",
                 "--units", "4", "1", "--contrasts", "[]", "--sizes", "8", "--position", "0.5", "0")  # fmt: skip
    units = rows_of(out / "units.csv")
    assert [row["unit"] for row in units] == ["4", "1"]
    assert "best_size" in units[0]
    assert not {"preferred_direction", "best_contrast", "recorded_model"} & units[0].keys()
    assert sorted(path.name for path in out.iterdir()) == [
        "tuning.csv", "tuning.npz", "tuning.png", "units.csv",
    ]  # fmt: skip


def test_recorded_curves_are_means_after_the_onset(launch, tmp_path):
    model = fresh_model(tmp_path / "run", str(RECORDED))
    # The copy has one or two trials of a movie; all of them are taken.
    names = sorted(set(Session(RECORDED).tier_names.tolist()) - {"none"})
    out = launch(model, *FEW, "--lead", "0.1", "--seconds", "0.5", "--transient", "0.1", "--fits", "false",
                 "--contrasts", "[]", "--sizes", "[]", "--against", str(RECORDED), "--tiers", *names)  # fmt: skip
    session, predictor = Session(RECORDED), load_neural_model(model)
    movies = sorted({int(session.contents[trial]) for trial in session.trials})
    curves = []
    for movie in movies:
        trials = [trial for trial in session.trials if session.contents[trial] == movie]
        mean = np.mean([session.responses(trial)[16:].mean(0) for trial in trials], 0)
        rates = predictor.predict([session.video(trials[0])])[0][16:].mean(0).numpy()
        curves.append((mean, rates))
    recorded, predicted = (np.array(each).T for each in zip(*curves, strict=True))
    for row, one, two in zip(rows_of(out / "units.csv"), recorded, predicted, strict=True):
        expected = np.corrcoef(one, two)[0, 1] if np.ptp(one) else None
        found = row["recorded_model"]
        assert (
            (found == "") if expected is None else float(found) == pytest.approx(expected, abs=1e-4)
        )


def test_mistakes_are_reported_in_one_line(simulated, launch, tmp_path):
    model, session = simulated
    full = tmp_path / "full"
    full.mkdir()
    (full / "units.csv").write_text("mine")
    for words, said in [
        ((str(tmp_path / "none"),), "^model: .*none is no model of neurons: there is no such directory"),
        ((model, "--session", "b"), "^--session b: the model has no such session; it has sim"),
        ((model, "--units", "3", "77"), "^--units 77: session sim has no such unit; its 5 units are 0, 1, 2, 3, 4"),
        ((model, "--against", str(tmp_path / "none")), "none is not a folder"),
        ((model, "--against", str(RECORDED)), "session_fov4_cut .* is not in the checkpoint"),
        ((model, "--temporal_frequencies", "20"), "20 Hz cannot be shown at 30 frames a second"),
        ((model, "--spatial_frequencies", "0.7"), "0.7 must be above 0 and at most 0.5 cycles"),
        ((model, "--against", session, "--tiers", "live_main"), "--tiers live_main: no session has"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            launch(*words, "--fits", "false")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--unit", "3"), "unknown setting unit; did you mean units?"),
        (("--directions", "many"), "directions: expected"),
        (("--tiers", "oracle"), "--tiers needs --against SESSION"),
        (("--position", "0.5"), r"--position \[0.5\] must be x and y from -1 to 1"),
        (("--draw", "0"), "--draw is 0; it must be at least 1"),
    ],
)
def test_mistyped_options_are_named(launch, capsys, words, said):
    with pytest.raises(SystemExit) as status:
        launch("runs/a", *words)
    assert status.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(said, told), told
