"""The command that finds most exciting stimuli: files, comparisons, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from readable_figures import faults
from small_runs import RECORDED, launcher, noise, rows_of, save_linear_model, small_session

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation.chosen_units import choose_units
from ssl_vivit.evaluation.stimuli import figure as stimuli_figure
from ssl_vivit.evaluation.stimuli.command import main
from ssl_vivit.neural.checkpoint import load_neural_model

SHORT = ("--seconds", "0.3", "--lead", "0.2", "--steps", "12", "--random", "6")
launch = launcher(main)


def linear_model(run: Path, session: str) -> str:
    return save_linear_model(run, [session], noise(0.1), core="ln_separable", lags=6)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> tuple[str, str]:
    """Return a model and its session."""
    root = tmp_path_factory.mktemp("simulated")
    session = small_session(root / "sim")
    return linear_model(root / "run", session), session


def test_files_contain_the_measured_fields(simulated, launch, capsys, monkeypatch):
    figures = []
    keep = stimuli_figure.save
    monkeypatch.setattr(
        stimuli_figure, "save", lambda made, path: (figures.append(made), keep(made, path))
    )
    model, session = simulated
    out = launch(model, *SHORT, "--against", session)
    pictures = [f"unit_{unit}.{ending}" for unit in range(5) for ending in ("gif", "png")]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["agreement.json", "stimuli.npz", "stimuli.png", "units.csv", *pictures]
    )
    assert [fault for made in figures for fault in faults(made)] == []
    arrays = np.load(out / "stimuli.npz", allow_pickle=False)
    chosen = choose_units(model)
    facts, grey = chosen.facts, float(arrays["grey"])
    assert grey == pytest.approx(255 * facts.video_mean)
    assert arrays["video"].shape == (5, 9, 12, 20)
    assert arrays["image"].shape == (5, 12, 20)
    rows = {(row["kind"], row["unit"]): row for row in rows_of(out / "units.csv")}
    assert len(rows) == 10
    predictor = load_neural_model(model)
    for kind in ("video", "image"):
        pixels = arrays[kind].astype(float)
        assert pixels.min() >= 0
        assert pixels.max() <= 255
        contrast = np.sqrt(np.square(pixels - grey).reshape(5, -1).mean(1))
        assert contrast == pytest.approx(0.15 * 255 * facts.video_std, rel=1e-5)
        frames = pixels if kind == "video" else pixels[:, None].repeat(9, 1)
        clips = np.concatenate([np.full((5, 6, 12, 20), grey), frames], 1)
        rates = predictor.predict(clips).double().numpy()
        window = slice(-1, None) if kind == "video" else slice(6, None)
        for unit in range(5):
            row = rows[kind, str(unit)]
            expected = rates[unit, window, unit].mean()
            assert float(row["response"]) == pytest.approx(expected, rel=1e-4)
            assert arrays[f"{kind}_responses"][unit, -1] == pytest.approx(expected, rel=1e-4)
            assert float(row["response"]) > float(row["random_best"])
            assert row["random_percentile"] == "100.0"
    # Recorded movies as shown, every frame of them for videos.
    first = Session(session)
    movies = {int(first.contents[trial]): first.video(trial) for trial in first.trials}
    shown = np.concatenate([predictor.predict([movie])[0].double() for movie in movies.values()])
    for unit in range(5):
        row = rows["video", str(unit)]
        assert float(row["movies_best"]) == pytest.approx(shown[:, unit].max(), rel=1e-4)
        below = 100 * (shown[:, unit] < float(row["response"])).mean()
        assert float(row["movies_percentile"]) == pytest.approx(below, abs=0.5)
    told = json.loads((out / "agreement.json").read_text())
    assert told["video"].keys() == {"space", "drive"}
    assert told["image"].keys() == {"space"}
    of_units = [float(rows["video", str(unit)]["drive_correlation"]) for unit in range(5)]
    assert np.median(of_units) == pytest.approx(told["video"]["drive"]["median"])
    said = capsys.readouterr().out
    assert "percentile among the recorded movies" in said
    assert said.splitlines()[-1] == f"results  {out}"


def test_pictures_show_the_stimuli(simulated, launch):
    out = launch(simulated[0], *SHORT, "--units", "3", "1")
    arrays = np.load(out / "stimuli.npz", allow_pickle=False)
    assert arrays["unit"].tolist() == [3, 1]
    assert not (out / "agreement.json").exists()
    with Image.open(out / "unit_1.png") as picture:
        # 256 pixels or more in width: 13 times 20.
        shown = np.asarray(picture)
    assert shown.shape == (156, 260)
    assert np.array_equal(shown[6::13, 6::13], arrays["image"][1].round().astype(np.uint8))
    with Image.open(out / "unit_3.gif") as moving:
        assert moving.n_frames == 9
        assert moving.info["duration"] == 30
        for frame in range(9):
            moving.seek(frame)
            shown = np.asarray(moving.convert("L"))[6::13, 6::13]
            assert np.array_equal(shown, arrays["video"][0, frame].round().astype(np.uint8))


def test_the_stimulus_of_a_linear_model_is_its_filter(simulated, launch):
    model, _ = simulated
    plain = ("--blur", "0", "--time_blur", "0", "--jitter", "0", "--kind", "video")
    out = launch(model, *plain, "--units", "2", "--steps", "40", "--random", "6")
    found = np.load(out / "stimuli.npz", allow_pickle=False)
    chosen = choose_units(model, units=[2])
    clip = torch.full((1, 30, 12, 20), float(found["grey"]), requires_grad=True)
    (gradient,) = torch.autograd.grad(chosen.differentiable_rates(clip)[0, -1, 2], clip)
    filter_ = gradient[0, -15:].numpy()
    assert found["video"].shape == (1, 15, 12, 20)
    assert np.corrcoef(filter_.ravel(), found["video"][0].ravel())[0, 1] > 0.99


def test_a_seed_repeats_the_files(simulated, launch):
    one, two, other = (
        np.load(launch(simulated[0], *SHORT, "--kind", "image", "--seed", seed, out=name) / "stimuli.npz")
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )  # fmt: skip
    assert np.array_equal(one["image"], two["image"])
    assert not np.array_equal(one["image"], other["image"])
    assert "video" not in one


def test_ascents_start_at_the_best_random_stimulus_of_their_unit(simulated, launch):
    out = launch(simulated[0], *SHORT, "--kind", "video", "--jitter", "0", "--steps", "1")
    first = np.load(out / "stimuli.npz", allow_pickle=False)["video_responses"][:, 0]
    best = [float(row["random_best"]) for row in rows_of(out / "units.csv")]
    assert len(set(best)) == 5
    assert first == pytest.approx(best, rel=1e-4)


def test_responses_of_several_frames(simulated, launch):
    model, _ = simulated
    out = launch(model, *SHORT, "--kind", "video", "--response", "0.1", "--units", "0")
    found = np.load(out / "stimuli.npz", allow_pickle=False)
    clip = np.concatenate([np.full((1, 6, 12, 20), found["grey"]), found["video"]], 1)
    rates = load_neural_model(model).predict(clip)[0, -3:, 0]
    assert float(rows_of(out / "units.csv")[0]["response"]) == pytest.approx(
        float(rates.mean()), rel=1e-4
    )


def test_a_recording_is_compared_by_its_movies(launch, tmp_path):
    model = linear_model(tmp_path / "run", str(RECORDED))
    unit = str(choose_units(model).unit_ids[0])
    out = launch(model, *SHORT, "--kind", "image", "--units", unit, "--against", str(RECORDED))
    (row,) = rows_of(out / "units.csv")
    assert float(row["movies_best"]) > 0
    assert "space_correlation" not in row
    assert not (out / "agreement.json").exists()


def test_mistakes_are_reported_in_one_line(simulated, launch, tmp_path):
    model, _ = simulated
    for words, said in [
        ((str(tmp_path / "none"),), "^model: .*none is no model of neurons: there is no such directory"),
        ((model, "--session", "b"), "^--session b: the model has no such session; it has sim"),
        ((model, "--units", "3", "77"), "^--units 77: session sim has no such unit; its 5 units are 0, 1, 2, 3, 4"),
        ((model, "--against", str(tmp_path / "none")), "none is not a folder"),
        ((model, "--against", str(RECORDED)), "session_fov4_cut .* is not in the checkpoint"),
        ((model, "--contrast", "9"), "cannot be shown: it must be above 0 and below .*; change --contrast"),
        ((model, "--jitter", "12"), "--jitter 12 must be below 12, the shorter side of the frame"),
        ((model, "--response", "1"), "--response of 30 frames must be at least one and at most the 15 frames"),
        ((model, "--grey", "255"), "--grey 255 must be above 0 and below 255"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            launch(*words)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


def test_a_folder_with_other_content_stays(simulated, launch, tmp_path):
    full = tmp_path / "out"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"out holds files \(mine.txt …\), which are not overwritten"
    ):
        launch(simulated[0], *SHORT)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    (full / "mine.txt").rename(full / "units.csv")
    with pytest.raises(UserError, match="holds most exciting stimuli of an earlier evaluation"):
        launch(simulated[0], *SHORT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--unit", "3"), "unknown setting unit; did you mean units?"),
        (("--kind", "movie"), "kind"),
        (("--steps", "0"), "--steps is 0; it must be at least 1"),
        (("--seconds", "0"), "--seconds 0 must be finite and above 0"),
        (("--contrast", "-1"), "--contrast -1 must be finite and above 0"),
        (("--blur", "-1"), "--blur is -1.0; it must be at least 0"),
    ],
)
def test_mistyped_options_are_named(launch, capsys, words, said):
    with pytest.raises(SystemExit) as status:
        launch("runs/a", *words)
    assert status.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(said, told), told
