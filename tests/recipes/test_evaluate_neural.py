"""The recipe that scores finished models of neurons: files, comparisons, errors."""

from __future__ import annotations

import builtins
import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import noise, rows_of, save_linear_model, small_session

from recipes.evaluate_neural import EvaluationRecipe, main
from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation.neurons.evaluation import LABELS
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.neural.scoring.metrics import bits_per_spike, single_trial_correlation
from ssl_vivit.training import parse

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("sessions")
    return [
        small_session(root / name, neurons=neurons, repeats=3, seed=neurons)
        for name, neurons in (("a", 6), ("b", 4))
    ]


def fresh_model(run: Path, sessions: list[str], seed: int, held_out: float = 0.0) -> str:
    return save_linear_model(run, sessions, noise(0.05), seed=seed, held_out=held_out)


@pytest.fixture(scope="module")
def models(sessions, tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [
        fresh_model(root / "one", sessions, 0, held_out=0.3),
        fresh_model(root / "two", sessions, 1),
    ]


def launch(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate_neural.py", *words])
    main()


def by_hand(path: str, session: str, tier: str):
    """Return predictions from raw recordings, and responses of a tier, (trials, T, neurons); and trial
    numbers."""
    predictor, recording = load_neural_model(path), Session(session)
    trials = np.flatnonzero(recording.tier_names == tier).tolist()
    rates = [
        predictor.predict(
            recording.video(trial)[None], recording.behaviour(trial)[None], recording.name,
            recording.pupil_centre(trial)[None],
        )[0]
        for trial in trials
    ]  # fmt: skip
    responses = [torch.from_numpy(recording.responses(trial)) for trial in trials]
    return torch.stack(rates), torch.stack(responses), trials


def test_sessions_are_those_of_the_run(sessions, models, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(Path(models[0]) / "model", run / "model")
    settings = {"data": {"sessions": sessions[:1]}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    found = {}
    for name, words in (
        ("named", [str(run), "--sessions", sessions[0]]),
        ("of_run", [str(run)]),
        ("of_model", [str(run / "model")]),
    ):
        launch(monkeypatch, *words, "--parquet", "false", "--run_dir", str(tmp_path / name))
        found[name] = json.loads((tmp_path / name / "scores.json").read_text())["tiers"]
    assert found["of_run"] == found["of_model"] == found["named"]
    settings["data"]["sessions"] = ["gone"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"config.yaml names session gone, which is not a folder"):
        launch(monkeypatch, str(run), "--run_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_scores_units_and_predictions_are_those_of_raw_recordings(
    sessions, models, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    launch(monkeypatch, models[0], "--sessions", *sessions, "--run_dir", str(out))
    table = capsys.readouterr().out
    assert "live_test_main, a: 6 trials of 2 movies" in table
    rows = [re.split(r"  +", line) for line in table.splitlines()]
    told = {(row[0], row[1], row[2]): row[3:] for row in rows if len(row) == 7}
    label = "single-trial correlation"
    assert ("live_test_main", "a", f"{label}, held-out neurons") in told
    # The tier that chose the step is marked, and so are intervals over two movies.
    assert {row[0] for row in told} == {"tier", "oracle (validation)", "live_test_main"}
    assert "the training run selected the model's step by its score on these trials" in table
    assert all(row[1] == "–" or row[1].endswith(" (2 movies)") for key, row in told.items()
               if key[0] != "tier")  # fmt: skip
    assert "are over fewer than 5 movies, too few to generalise" in table
    assert {file.name for file in out.iterdir()} == {
        "scores.json", "units.csv", "units.parquet", "predictions.parquet",
    }  # fmt: skip
    stored = json.loads((out / "scores.json").read_text())
    assert list(stored["tiers"]) == ["oracle", "live_test_main"]
    units = rows_of(out / "units.csv")
    predicted = parquet.read_table(out / "predictions.parquet")
    assert len(units) == 2 * (6 + 4)
    for path in sessions:
        name = Path(path).name
        for tier in ("oracle", "live_test_main"):
            rates, responses, trials = by_hand(models[0], path, tier)
            rows = [row for row in units if (row["session"], row["tier"]) == (name, tier)]
            correlation = single_trial_correlation(rates, responses)
            assert [float(row["correlation"]) for row in rows] == pytest.approx(
                correlation.tolist(), abs=1e-5
            )
            held_out = torch.tensor([row["held_out"] == "True" for row in rows])
            assert 0 < held_out.sum() < len(rows)
            scores = stored["tiers"][tier]
            for group, chosen in (("scores", ~held_out), ("held_out", held_out)):
                bits = bits_per_spike(rates[..., chosen], responses[..., chosen])
                assert scores[group][f"bps_{name}"] == pytest.approx(bits, abs=1e-5)
            low, high = scores["intervals"][f"correlation_{name}"]
            assert -1 <= low < scores["scores"][f"correlation_{name}"] < high <= 1
            assert scores["validation"] == (tier == "oracle")
            # Means of the columns of units.csv are the scores, over as many neurons as are told.
            for kind, label in LABELS.items():
                values = [float(row[kind]) for row in rows
                          if row["held_out"] == "False" and row[kind]]  # fmt: skip
                key = f"{'bps_units' if kind == 'bps' else kind}_{name}"
                assert scores["neurons"].get(key, 0) == len(values)
                if values:
                    assert scores["scores"][key] == pytest.approx(np.mean(values))
                    shown = "oracle (validation)" if tier == "oracle" else tier
                    value, _, neurons, _ = told[shown, name, label]
                    assert value == f"{scores['scores'][f'{kind}_{name}']:.3f}"
                    assert int(neurons) == scores["neurons"][f"{kind}_{name}"]
            assert scores["ceiling"][f"correlation_{name}"] > 0.3
            assert (scores["trials"][name], scores["movies"][name]) == (6, 2)
            assert scores["trained_movies"][name] == 0

            mask = (np.array(predicted["session"]) == name) & (np.array(predicted["tier"]) == tier)
            part = predicted.filter(mask)
            assert sorted(set(part["trial"].to_pylist())) == trials
            for place, trial in enumerate(trials):
                own = part.filter(np.array(part["trial"]) == trial)
                frames, neurons = rates.shape[1:]
                assert own["frame"].to_pylist() == np.repeat(range(frames), neurons).tolist()
                assert own["unit"].to_pylist() == [*range(neurons)] * frames
                assert np.allclose(own["predicted"], rates[place].flatten(), atol=1e-5)
                assert np.array_equal(own["recorded"], responses[place].flatten())
    again = parquet.read_table(out / "units.parquet").to_pylist()
    assert [row["unit"] for row in again] == [int(row["unit"]) for row in units]
    assert again[0]["correlation"] == float(units[0]["correlation"])


def test_the_mean_over_sessions_and_the_seed(sessions, models, tmp_path, monkeypatch):
    found = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(found)}"
        launch(
            monkeypatch, "--model", f"{models[0]}/model", "--sessions", *sessions, "--run_dir",
            str(out), "--tiers", "live_test_main", "--seed", str(seed), "--resamples", "50",
            "--parquet", "false",
        )  # fmt: skip
        found.append(json.loads((out / "scores.json").read_text())["tiers"]["live_test_main"])
        assert {file.name for file in out.iterdir()} == {"scores.json", "units.csv"}
    scores, ends = found[0]["scores"], found[0]["intervals"]
    means = [(scores[f"{kind}_a"] + scores[f"{kind}_b"]) / 2 for kind in ("bps", "correlation")]
    assert [scores["bps_mean"], scores["correlation_mean"]] == pytest.approx(means)
    widths = {name: high - low for name, (low, high) in ends.items()}
    # Independent draws of both sessions.
    both = math.hypot(widths["correlation_a"], widths["correlation_b"]) / 2
    assert widths["correlation_mean"] == pytest.approx(both, rel=0.3)
    assert found[0] == found[1]
    assert found[0]["scores"] == found[2]["scores"]
    assert found[0]["intervals"] != found[2]["intervals"]


def test_first_frames_can_be_left_out(sessions, models, tmp_path, monkeypatch):
    launch(
        monkeypatch, models[1], "--sessions", sessions[0], "--run_dir", str(tmp_path / "out"),
        "--tiers", "oracle", "--drop_first", "10",
    )  # fmt: skip
    rates, responses, _ = by_hand(models[1], sessions[0], "oracle")
    expected = single_trial_correlation(rates[:, 10:], responses[:, 10:])
    rows = rows_of(tmp_path / "out" / "units.csv")
    assert [float(row["correlation"]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    table = parquet.read_table(tmp_path / "out" / "predictions.parquet")
    unknown = np.array(table["recorded"].is_null())
    assert np.array_equal(unknown, np.array(table["frame"]) < 10)


def test_two_models_are_compared_neuron_by_neuron(sessions, models, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    launch(monkeypatch, models[0], "--against", models[1], "--sessions", *sessions, "--tiers",
           "live_test_main", "--run_dir", str(out))  # fmt: skip
    assert "one less two" in capsys.readouterr().out
    expected = {
        "scores.json", "units.csv", "units.parquet", "predictions.parquet", "against",
        "comparison.json", "differences.csv", "differences.parquet",
        "comparison_live_test_main.png",
    }  # fmt: skip
    assert {file.name for file in out.iterdir()} == expected
    found = json.loads((out / "comparison.json").read_text())["tiers"]["live_test_main"]
    one, two = rows_of(out / "units.csv"), rows_of(out / "against" / "units.csv")
    rows = rows_of(out / "differences.csv")
    differences = [
        float(first["correlation"]) - float(second["correlation"])
        for first, second in zip(one, two, strict=True)
    ]
    assert [float(row["correlation_difference"]) for row in rows] == pytest.approx(differences)
    by_session = [np.mean(differences[:6]), np.mean(differences[6:])]
    correlation = found["correlation"]
    assert correlation["mean"] == pytest.approx(np.mean(by_session))
    assert correlation["sessions"] == pytest.approx(dict(zip("ab", by_session, strict=True)))
    assert correlation["wins"] == sum(value > 0 for value in differences)
    low, high = correlation["over_neurons"]
    assert low < correlation["mean"] < high
    wider = correlation["over_sessions"]
    assert wider[1] - wider[0] > high - low

    # A model beside itself differs nowhere.
    launch(monkeypatch, models[0], "--against", models[0], "--sessions", sessions[0], "--run_dir",
           str(tmp_path / "same"), "--parquet", "false")  # fmt: skip
    same = json.loads((tmp_path / "same" / "comparison.json").read_text())["tiers"]
    counts = [same["oracle"]["correlation"][name] for name in ("mean", "wins", "losses", "ties")]
    assert counts == [0, 0, 0, 6]
    assert same["oracle"]["correlation"]["over_sessions"] is None


def test_predictions_are_read_back_from_nwb(sessions, models, tmp_path, monkeypatch):
    pynwb = pytest.importorskip("pynwb")
    out = tmp_path / "out"
    launch(monkeypatch, models[0], "--sessions", *sessions, "--run_dir", str(out), "--nwb", "true",
           "--parquet", "false", "--tiers", "oracle", "live_test_main")  # fmt: skip
    assert {file.name for file in out.glob("*.nwb")} == {"predictions_a.nwb", "predictions_b.nwb"}
    with pynwb.NWBHDF5IO(str(out / "predictions_b.nwb"), mode="r") as opened:
        file = opened.read()
        series = file.processing["predictions"]
        trials = file.trials.to_dataframe()
        assert list(file.units.id[:]) == [0, 1, 2, 3]
        assert series["predicted"].rate == 30.0
        for tier in ("oracle", "live_test_main"):
            rates, responses, numbers = by_hand(models[0], sessions[1], tier)
            own = trials[trials.tier == tier].sort_values("trial")
            assert own.trial.tolist() == numbers
            for place, (start, stop) in enumerate(zip(own.start_time, own.stop_time, strict=True)):
                frames = slice(round(start * 30), round(stop * 30))
                shown = series["predicted"].data[frames]
                assert np.allclose(shown, rates[place], atol=1e-5)
                assert np.array_equal(series["recorded"].data[frames], responses[place])
        assert not pynwb.validate(io=opened)


def test_mistakes_have_one_line_with_the_fix(sessions, models, tmp_path, monkeypatch):
    encoder = tmp_path / "encoder"
    create_encoder(
        "vivit_tiny", num_frames=4, image_size=(32, 32), embed_dim=24, num_heads=2,
        spatial_depth=1, temporal_depth=1,
    ).save_pretrained(encoder)  # fmt: skip
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    alone = fresh_model(tmp_path / "alone", sessions[:1], 0)
    fewer = build_sessions(NeuralDataConfig(sessions=sessions[:1])).facts
    assert len(fewer) == 1
    new = str(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    for words, said in [
        ((str(tmp_path / "none"), "--sessions", sessions[0]), "^model: .*none is no model of neurons: there is no such directory"),
        ((str(encoder), "--sessions", sessions[0]), "holds an encoder and no model of neurons"),
        ((models[0], "--against", str(tmp_path / "none"), "--sessions", sessions[0]), "^--against: "),
        ((models[0], "--sessions", sessions[0], "--tiers", "live_main"), "--tiers live_main: no session"),
        ((models[0], "--sessions", sessions[0], "--run_dir", str(full)),
         r"full holds files \(notes\.txt …\), which are not overwritten; choose another folder, such as "
         r"--run_dir \S+full_2, or remove"),
        ((alone, "--sessions", *sessions), "^model .*alone: session b .* is not in the checkpoint"),
        ((models[0], "--sessions", str(tmp_path / "x")), "is not a folder"),
        # Without --sessions nothing is simulated for a model that cannot be scored on it.
        ((str(tmp_path / "none"),), "^model: .*none is no model of neurons"),
        ((models[0],), "^model .*one was trained on a, b, not on the simulated population; give the"),
    ]:  # fmt: skip
        told = words if "--run_dir" in words else (*words, "--run_dir", new)
        with pytest.raises(UserError, match=said) as error:
            launch(monkeypatch, *told)
        assert "\n" not in str(error.value)
    assert not Path(new).exists()
    assert not Path("samples").exists()
    # The results of an earlier evaluation are named as such, beside a folder that is free.
    (full / "units.csv").touch()
    (tmp_path / "full_2").mkdir()
    with pytest.raises(
        UserError, match=r"full holds scores of an earlier evaluation, .*full_3, or"
    ):
        launch(monkeypatch, models[0], "--sessions", sessions[0], "--run_dir", str(full))
    assert (full / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="--resamples is -1; it must be at least 0"):
        EvaluationRecipe(resamples=-1)


@pytest.mark.parametrize(
    ("missing", "words", "mend"),
    [
        ("pyarrow", (), "or set --parquet false"),
        ("pynwb", ("--nwb", "true"), "or omit --nwb"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_computed(
    sessions, models, tmp_path, monkeypatch, missing, words, mend
):
    known = builtins.__import__

    def without(name, *rest, **others):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=missing)
        return known(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError) as error:
        launch(monkeypatch, "no/such/model", "--sessions", sessions[0], "--run_dir",
               str(tmp_path / "out"), *words)  # fmt: skip
    said = str(error.value)
    assert f"needs {missing}; run `pip install 'ssl_vivit[neural]'`, {mend}" in said
    assert not (tmp_path / "out").exists()


def test_models_that_were_trained_on_other_trials_are_not_compared(
    sessions, models, tmp_path, monkeypatch
):
    config = json.loads((Path(models[1]) / "model" / "config.json").read_text())
    split = config["sessions"][0]["split"]
    split["train"].append(split["test"].pop())
    other = tmp_path / "other"
    (other / "model").mkdir(parents=True)
    for file in (Path(models[1]) / "model").iterdir():
        (other / "model" / file.name).write_bytes(file.read_bytes())
    (other / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tier live_test_main has 6 trials for one and 5 for the"):
        launch(monkeypatch, models[0], "--against", str(other), "--sessions", sessions[0],
               "--tiers", "live_test_main", "--run_dir", str(tmp_path / "out"))  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_movies_that_training_showed_are_counted(sessions, models, tmp_path, monkeypatch, capsys):
    """Three trials of the tier show movies of training trials."""
    again = tmp_path / "a"
    shutil.copytree(sessions[0], again)
    tiers = np.load(again / "meta/trials/tiers.npy")
    trained = np.flatnonzero(tiers == "train")[:3]
    for old, new in zip(trained, np.flatnonzero(tiers == "oracle"), strict=False):
        shutil.copy(again / f"data/videos/{old}.npy", again / f"data/videos/{new}.npy")
    launch(monkeypatch, models[0], "--sessions", str(again), "--parquet", "false", "--tiers", "oracle",
           "--run_dir", str(tmp_path / "out"))  # fmt: skip
    movies = len({(again / f"data/videos/{trial}.npy").read_bytes() for trial in
                  np.flatnonzero(tiers == "oracle")})  # fmt: skip
    line = f"oracle, a: 6 trials of {movies} movies, 3 of them shown in training, too\n"
    assert line in capsys.readouterr().out


def test_the_model_is_given_by_place_or_by_name():
    assert parse(EvaluationRecipe, ["x/y", "--seed", "3"], first="model").model == "x/y"
    assert parse(EvaluationRecipe, ["--model", "z"], first="model").model == "z"
    assert parse(EvaluationRecipe, [], first="model").model == "runs/finetune_neural"
    with pytest.raises(SystemExit):
        parse(EvaluationRecipe, ["x/y"])
