"""The command that measures receptive fields: files, methods, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from readable_figures import faults
from small_runs import RECORDED, launcher, rows_of, save_linear_model, small_session

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation.chosen_units import choose_units
from ssl_vivit.evaluation.fields import figure as fields_figure
from ssl_vivit.evaluation.fields.command import main
from ssl_vivit.evaluation.fields.methods import by_gradient, by_position, clips_of_movies
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.neural.model import NeuralModel

SHORT = ("--past", "0.2", "--check", "2", "--frames", "2400", "--clips", "6")
launch = launcher(main)


def spots(model: NeuralModel) -> None:
    """Set the filters to spots that are strongest at lag 2."""
    (readout,) = model.session_readouts
    readout.courses.zero_()
    readout.courses[:, 0, 1:4] = torch.tensor([0.5, 1.0, 0.5])
    readout.images.zero_()
    rows, columns = readout.images.shape[-2:]
    y, x = torch.arange(rows)[:, None], torch.arange(columns)[None]
    for unit in range(len(readout.images)):
        distance = (y - rows / 2) ** 2 + (x - 2 - unit) ** 2
        readout.images[unit, 0, 0] = 0.5 * torch.exp(-distance / 2)


def linear_model(run: Path, session: str) -> str:
    return save_linear_model(run, [session], spots, core="ln_separable", lags=6)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[str, str]:
    """Return a model and its session."""
    root = tmp_path_factory.mktemp("simulated")
    session = small_session(root / "sim")
    return linear_model(root / "run", session), session


def test_all_methods_find_the_spots(simulated, launch, capsys, monkeypatch):
    figures = []
    keep = fields_figure.save
    monkeypatch.setattr(
        fields_figure, "save", lambda made, path: (figures.append(made), keep(made, path))
    )
    model, session = simulated
    out = launch(model, *SHORT, "--against", session)
    assert sorted(path.name for path in out.iterdir()) == [
        "agreement.json", "ellipses.png", "fields.npz", "fields.png", "units.csv",
    ]  # fmt: skip
    assert [fault for made in figures for fault in faults(made)] == []
    rows = rows_of(out / "units.csv")
    assert [row["method"] for row in rows] == ["position"] * 5 + ["gradient"] * 5 + ["noise"] * 5
    # Squares of 2×2 pixels; unit 0 looks at the middle of square 2.
    expected = np.array([2 * (5 + 2 * unit) / 20 - 1 for unit in range(5)])
    for method in ("position", "gradient", "noise"):
        own = [row for row in rows if row["method"] == method]
        assert [float(row["x"]) for row in own] == pytest.approx(expected, abs=0.06), method
        if method != "position":
            assert [float(row["peak_ms"]) for row in own] == pytest.approx([2000 / 30] * 5)
            # A standard deviation of a square is two pixels.
            assert np.median([float(row["major"]) for row in own]) == pytest.approx(2, abs=0.5)
    arrays = np.load(out / "fields.npz", allow_pickle=False)
    assert arrays["gradient_filter"].shape == (5, 12, 20)
    assert arrays["noise_power"].shape == (5, 6, 10)
    course = arrays["gradient_kernels"][1]
    assert course / course.max() == pytest.approx([0, 0.5, 1, 0.5, 0, 0], abs=1e-4)
    told = json.loads((out / "agreement.json").read_text())
    assert told["ellipses"]["gradient, noise"]["x"] > 0.99
    assert set(told["kernels"]) == {"gradient", "noise"}
    assert "noise, truth" in told["ellipses"]
    assert capsys.readouterr().out.splitlines()[-1] == f"results  {out}"


@pytest.mark.parametrize("around", ["grey", "movies"])
def test_gradients_around_grey_and_movies(simulated, launch, around):
    model, session = simulated
    where = session if around == "movies" else around
    out = launch(model, *SHORT, "--around", where, "--units", "3", "1")
    rows = [row for row in rows_of(out / "units.csv") if row["method"] == "gradient"]
    assert [row["unit"] for row in rows] == ["3", "1"]
    assert [float(row["x"]) for row in rows] == pytest.approx(
        [2 * 11 / 20 - 1, 2 * 7 / 20 - 1], abs=0.06
    )
    assert "truth" not in (out / "agreement.json").read_text()


@pytest.mark.parametrize("grey", [None, 200.0])
def test_gradients_around_grey_are_taken_at_that_grey(simulated, launch, grey):
    model, _ = simulated
    words = () if grey is None else ("--grey", str(grey))
    out = launch(model, *SHORT, "--around", "grey", *words)
    chosen = choose_units(model)
    level = 255 * chosen.facts.video_mean if grey is None else grey
    expected = by_gradient(chosen, torch.full((1, 12, 12, 20), level), lags=6)
    found = np.load(out / "fields.npz", allow_pickle=False)["gradient_kernels"]
    np.testing.assert_allclose(found, expected.kernels, rtol=1e-4, atol=1e-7)


def test_gradients_are_those_of_the_model(simulated):
    """Gradients equal differences of rates after a change of one pixel in one earlier frame."""
    model, session = simulated
    chosen = choose_units(model, units=[2])
    clips = clips_of_movies([Session(session).video(0)], 1, 12)
    found = by_gradient(chosen, clips, lags=6)
    predictor = load_neural_model(model)
    row, column = np.unravel_index(found.images["power"][0].argmax(), (12, 20))
    changed = clips.clone()
    changed[0, 12 - 1 - 2, row, column] += 0.5
    before, after = (predictor.predict(video)[0, -1, 2].double() for video in (clips, changed))
    per_deviation = float(after - before) / 0.5 * 255 * chosen.facts.video_std
    assert found.kernels[0, 2] == pytest.approx(per_deviation, rel=0.02)


def test_clips_are_spread_over_movies_and_time():
    videos = [
        np.full((length, 2, 3), number, np.uint8) for number, length in enumerate((30, 9, 50))
    ]
    clips = clips_of_movies(videos, 6, 10)
    assert clips.shape == (6, 10, 2, 3)
    assert clips[:, 0, 0, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert len(clips_of_movies(videos, 1, 10)) == 1
    assert clips_of_movies(videos, 6, 60) is None


def test_the_readout_of_a_linear_model_has_only_centres(simulated):
    found = by_position(choose_units(simulated[0]))
    assert np.isfinite(found.ellipses.centres).all()
    assert np.isnan(found.ellipses.covariances).all()
    assert found.kernels is None


def test_mistakes_are_reported_in_one_line(simulated, launch, tmp_path):
    model, session = simulated
    for words, said in [
        ((str(tmp_path / "none"),), "^model: .*none is no model of neurons: there is no such directory"),
        ((model, "--units", "9"), "^--units 9: session sim has no such unit"),
        ((model, "--around", "nois"), "nois is not a folder"),
        ((model, "--around", session, "--past", "1"), r"--around .*: no movie has 60 frames, twice --past 1"),
        ((model, "--check", "9"), "--check 9 must be from 1 to 6"),
        ((model, "--hold", "6", "--past", "0.2"), "--hold 6 must be below 6, the number of frames in --past 0.2"),
        ((model, "--against", str(RECORDED)), "session_fov4_cut .* is not in the checkpoint"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            launch(*words)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


def test_a_recording_has_no_true_fields(launch, tmp_path):
    model = linear_model(tmp_path / "run", str(RECORDED))
    with pytest.raises(UserError, match="is a recording, whose true receptive fields are unknown"):
        launch(model, *SHORT, "--against", str(RECORDED))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arround", "grey"), "unknown setting arround; did you mean around?"),
        (("--past", "0"), "--past 0 must be above 0"),
        (("--check", "two"), "check: expected"),
        (("--grey", "255"), "--grey 255 must be above 0 and below 255"),
    ],
)
def test_mistyped_options_are_named(launch, capsys, words, said):
    with pytest.raises(SystemExit) as status:
        launch("runs/a", *words)
    assert status.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(said, told), told
