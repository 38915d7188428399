"""The recipe that compares models of neurons: one run per cell, numbers of the table, errors."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import NEURAL, TINY, options, small_session

from recipes import compare_neural
from recipes.compare_neural import (
    Cell,
    ComparisonRecipe,
    cells,
    collected,
    main,
    scores_of,
)
from recipes.finetune_neural import NeuralRecipe
from ssl_vivit import create_encoder, load_encoder
from ssl_vivit.evaluation.neurons.comparison import NeuralComparison
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.objectives.config import TuningConfig
from ssl_vivit.training import parse, run

SETTINGS = NEURAL | {
    "training.steps": 2,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 8,
    "seeds": 2,
}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sessions") / "a"
    return small_session(folder, neurons=4, train_trials=8, repeats=2, mean_rate=(8.0, 12.0))


def launch(monkeypatch, session: str, run_dir: Path, *more: str) -> None:
    settings = SETTINGS | {"training.run_dir": str(run_dir)}
    monkeypatch.setattr(
        sys, "argv", ["compare_neural.py", "--sessions", session, *options(settings), *more]
    )
    run(main)


@pytest.mark.slow
def test_every_run_once_and_the_table_is_of_their_scores(session, tmp_path, monkeypatch, capsys):
    encoder = create_encoder("vivit_neural_small", num_frames=8, image_size=(12, 20), **TINY)
    encoder.save_pretrained(tmp_path / "simclr" / "encoder", preprocessing={"fps": 30.0})
    asked = ["--cores", "ln", "--encoders", str(tmp_path / "simclr" / "encoder"),
             "--shares", "0.5", "1.0", "--learning_rates", '{"ln": 0.01}']  # fmt: skip
    made = tmp_path / "run"
    launch(monkeypatch, session, made, *asked)
    told = capsys.readouterr().out
    assert "run 8 of 8: simclr_encoder_share1_seed1" in told

    found = json.loads((made / "comparison.json").read_text())
    assert (made / "comparison.png").stat().st_size > 10_000
    results = {(result["row"], result["share"]): result for result in found["results"]}
    rows = ("ln", "simclr/encoder")
    assert set(results) == {(row, share) for row in rows for share in (0.5, 1.0)}
    stored = [
        json.loads((made / f"ln_share0.5_seed{seed}" / "scores.json").read_text())["tiers"]
        for seed in (0, 1)
    ]
    one, two = (tiers["live_test_main"]["scores"]["bps_mean"] for tiers in stored)
    assert one != two
    of_ln = results["ln", 0.5]
    assert of_ln["mean"] == pytest.approx((one + two) / 2)
    assert of_ln["standard_error"] == pytest.approx(abs(one - two) / 2)
    assert f"{(one + two) / 2:.3f} ± {abs(one - two) / 2:.3f}" in told
    ceilings = [r["score"] for r in found["references"] if r["name"] == "true rates"]
    assert len(set(ceilings)) == 1
    used = {}
    for share in ("0.5", "1"):
        (facts,) = load_neural_model(made / f"ln_share{share}_seed0" / "model").facts
        used[share] = set(facts.split["train"])
    assert len(used["0.5"]) == 4
    assert used["0.5"] < used["1"]

    # What is there is not run again; what is missing is.
    kept = {path: path.stat().st_mtime_ns for path in made.glob("*/scores.json")}
    lost = made / "ln_share1_seed0"
    shutil.rmtree(lost)
    launch(monkeypatch, session, made, *asked)
    assert capsys.readouterr().out.count("run ") == 1
    again = {path: path.stat().st_mtime_ns for path in made.glob("*/scores.json")}
    assert {path for path in kept if again[path] != kept[path]} == {lost / "scores.json"}
    assert json.loads((made / "comparison.json").read_text())["results"] == found["results"]

    with pytest.raises(SystemExit):
        launch(monkeypatch, session, made, *asked, "--data.window", "8")
    assert "was run with other settings: data.window (12 → 8); choose" in capsys.readouterr().err


def test_finished_runs_are_passed_over(session, tmp_path, monkeypatch):
    made = []

    def fine_tune(recipe, processes):
        made.append(Path(recipe.training.run_dir).name)
        return None if len(made) == 2 else recipe

    monkeypatch.setattr(compare_neural, "fine_tune", fine_tune)
    monkeypatch.setattr(
        compare_neural, "finished", lambda cell: cell.run_dir.name.endswith("seed0")
    )
    launch(monkeypatch, session, tmp_path / "run", "--cores", "ln", "--shares", "0.5", "1.0")
    assert made == ["ln_share0.5_seed1", "ln_share1_seed1"]


def test_scores_of_earlier_versions_are_those_of_all_test_trials(tmp_path):
    cell = Cell("ln", 1.0, NeuralRecipe())
    cell.recipe.training.run_dir = str(tmp_path)
    pooled = {"scores": {"bps_mean": 0.3}, "held_out": {}, "ceiling": {}, "tier": "test"}
    (tmp_path / "scores.json").write_text(json.dumps(pooled))
    assert scores_of(cell)["test"]["scores"] == {"bps_mean": 0.3}
    (tmp_path / "scores.json").write_text(json.dumps({"tiers": {"final_test_main": pooled}}))
    assert scores_of(cell) == {"final_test_main": pooled}


def test_runs_differ_only_in_the_compared_settings(tmp_path):
    told = ["--cores", '["vivit", "resnet"]', "--encoders", '["runs/a/encoder"]', "--shares",
            "[0.25, 1.0]", "--learning_rates", '{"vivit": 0.5, "a/encoder": 0.25}',
            "--encoder.overrides", '{"embed_dim": 8, "drop_path": 0.1}', "--seed", "5"]  # fmt: skip
    config = parse(ComparisonRecipe, told)
    planned = cells(config, tmp_path)
    assert len({cell.run_dir for cell in planned}) == len(planned) == 3 * 2 * 3
    # All rows of one seed before the next seed.
    assert [cell.recipe.training.seed for cell in planned] == [5] * 6 + [6] * 6 + [7] * 6
    fresh, resnet, pretrained = (cell.recipe for cell in planned[:3])
    assert (fresh.core, resnet.core, pretrained.core) == ("vivit", "resnet", "vivit")
    rates = [recipe.training.optimizer.learning_rate for recipe in (fresh, resnet, pretrained)]
    assert rates == [0.5, config.training.optimizer.learning_rate, 0.25]
    assert pretrained.encoder.path == "runs/a/encoder"
    assert pretrained.encoder == replace(fresh.encoder, path="runs/a/encoder")
    assert fresh.encoder.overrides == {"embed_dim": 8, "drop_path": 0.1}
    for cell in planned:
        seed = cell.recipe.training.seed - 5
        assert cell.recipe.data == replace(config.data, train_share=cell.share, share_seed=seed)
        assert cell.recipe.training.steps == config.training.steps
        assert cell.recipe.objective == config.objective


def test_numbers_of_trials_take_the_place_of_shares(tmp_path):
    told = ["--cores", '["ln"]', "--trials", "4", "16", "--seeds", "2", "--data.share_seed", "7"]
    config = parse(ComparisonRecipe, told)
    planned = cells(config, tmp_path)
    found = [(cell.recipe.data.train_trials, cell.recipe.data.share_seed) for cell in planned]
    assert found == [(4, 7), (16, 7), (4, 8), (16, 8)]
    assert [cell.share for cell in planned] == [4, 16, 4, 16]
    assert all(cell.recipe.data.train_share == 1 for cell in planned)
    assert planned[1].run_dir.name == "ln_trials16_seed0"
    shown = NeuralComparison("bps_mean", unit="trials")
    for cell in planned:
        shown.add("main", cell.row, cell.share, {"bps_mean": 0.1})
    assert shown.table().splitlines()[0].split()[-4:] == ["4", "trials", "16", "trials"]
    assert "0.100 ± 0.000" in shown.table()
    one = NeuralComparison("bps_mean", unit="trials")
    one.add("main", "ln", 4, {"bps_mean": 0.1})
    assert "0.100" in one.table()
    assert "±" not in one.table()
    assert [result["trials"] for result in shown.to_json()["results"]] == [4, 16]


def test_fitted_cores_are_rows(tmp_path):
    told = ["--cores", '["vivit", "ln"]', "--encoders", '["runs/mae/encoder"]', "--cores_from",
            '["runs/mice", "runs/rats"]', "--seeds", "1",
            "--learning_rates", '{"vivit": 0.5}']  # fmt: skip
    config = parse(ComparisonRecipe, told)
    found = {cell.row: cell.recipe for cell in cells(config, tmp_path)}
    assert [*found] == ["vivit", "ln", "mae/encoder", "mice", "rats"]
    assert found["mice"].core_from == "runs/mice"
    assert all(found[row].core_from is None for row in ("vivit", "ln", "mae/encoder"))
    # What is said of vivit is not said of a fitted core, which may be another.
    rates = {row: recipe.training.optimizer.learning_rate for row, recipe in found.items()}
    assert rates["vivit"] == rates["mae/encoder"] == 0.5
    assert rates["mice"] == rates["rats"] == config.training.optimizer.learning_rate


def test_rows_have_settings_of_their_own(tmp_path):
    rows = {
        "fresh": {},
        "masked, frozen": {
            "encoder.path": "runs/mae/encoder", "model.layers": [0, 1], "tuning.mode": "frozen",
            "tuning.feature_cache": 2.0,
        },
        "animals": {"core_from": "runs/mice", "training.seed": 5},
        "wide": {"encoder.overrides.embed_dim": 64},
    }  # fmt: skip
    told = ["--cores", "[]", "--rows", json.dumps(rows), "--seeds", "2", "--trials", "[4]",
            "--tuning.patience", "3", "--encoder.overrides", '{"num_heads": 2}',
            "--learning_rates", '{"animals": 0.25}']  # fmt: skip
    planned = cells(parse(ComparisonRecipe, told), tmp_path)
    assert [cell.row for cell in planned] == [*rows, *rows]
    found = {cell.row: cell.recipe for cell in planned[:4]}
    frozen = found["masked, frozen"]
    assert frozen.encoder.path == "runs/mae/encoder"
    assert frozen.model.layers == [0, 1]
    assert frozen.tuning == TuningConfig("frozen", patience=3, feature_cache=2.0)
    assert found["fresh"].tuning == TuningConfig("full", patience=3)
    assert found["animals"].core_from == "runs/mice"
    assert found["wide"].encoder.overrides == {"num_heads": 2, "embed_dim": 64}
    assert found["fresh"].encoder.overrides == {"num_heads": 2}
    assert [cell.recipe.training.seed for cell in planned if cell.row == "animals"] == [5, 6]
    assert found["animals"].training.optimizer.learning_rate == 0.25
    assert planned[1].run_dir == tmp_path / "masked__frozen_trials4_seed0"
    assert len({cell.run_dir for cell in planned}) == 8


def test_the_training_repeats_are_the_mean_over_the_draws(session, tmp_path, monkeypatch):
    told = ["--sessions", session, "--cores", '["ln"]', "--shares", "[0.25, 1.0]", "--seeds", "2"]
    planned = cells(parse(ComparisonRecipe, told), tmp_path)
    for cell in planned:
        cell.run_dir.mkdir()
        tiers = {"main": {"scores": {"bps_mean": 0.1}, "held_out": {}, "ceiling": {}}}
        (cell.run_dir / "scores.json").write_text(json.dumps({"tiers": tiers}))
    trained = {}

    def repeats(sessions):
        trials = sessions.facts[0].split["train"]
        trained.setdefault(len(trials), []).append(sum(trials))
        return {"main": {"bps_mean": float(sum(trials))}}

    monkeypatch.setattr(compare_neural, "score_training_repeats", repeats)
    found = collected(planned).references["main"]["mean of the training repeats"]
    assert found == {0.25: sum(trained[2]) / 2, 1.0: sum(trained[8]) / 2}
    assert len(trained[2]) == 2


def saved_encoder(folder: Path, **settings) -> str:
    encoder = create_encoder(
        "vivit_neural_small", num_frames=8, image_size=(12, 20), **TINY | settings
    )
    encoder.save_pretrained(folder, preprocessing={"fps": 30.0})
    return str(folder)


def test_every_block_of_every_encoder_is_a_row(tmp_path):
    one = saved_encoder(tmp_path / "mae" / "encoder")
    two = saved_encoder(tmp_path / "simclr" / "encoder", spatial_depth=2)
    told = ["--cores", '["ln", "vivit"]', "--encoders", json.dumps([one, two]), "--seeds", "1",
            "--tuning.mode", "frozen",
            "--learning_rates", '{"vivit": 0.5, "mae/encoder block 1": 0.25}']  # fmt: skip
    planned = cells(parse(ComparisonRecipe, [*told, "--blocks", "all"]), tmp_path)
    fresh = [("ln", None, None), ("vivit", None, None)]
    assert [(c.row, c.recipe.encoder.path, c.recipe.model.layers) for c in planned] == [
        *fresh,
        *((f"mae/encoder block {block}", one, block) for block in range(2)),
        *((f"simclr/encoder block {block}", two, block) for block in range(3)),
    ]
    assert [c.recipe.training.optimizer.learning_rate for c in planned][1:4] == [0.5, 0.5, 0.25]
    assert planned[2].run_dir.name == "mae_encoder_block_0_share1_seed0"
    assert len({cell.run_dir for cell in planned}) == len(planned)
    assert all(cell.recipe.tuning.mode == "frozen" for cell in planned)
    some = cells(parse(ComparisonRecipe, [*told, "--blocks", "-1", "0"]), tmp_path)
    assert [c.recipe.model.layers for c in some] == [None, None, 0, 1, 0, 2]


def test_only_cores_with_an_encoder_have_blocks_to_read(tmp_path):
    told = ["--cores", '["vivit", "ln"]', "--encoders", "runs/a/encoder", "--model.layers", "all"]
    planned = cells(parse(ComparisonRecipe, [*told, "--seeds", "1"]), tmp_path)
    assert [cell.recipe.model.layers for cell in planned] == ["all", None, "all"]


@pytest.mark.slow
def test_a_sweep_over_blocks_scores_each_of_them(session, tmp_path, monkeypatch, capsys):
    encoder = saved_encoder(tmp_path / "mae" / "encoder")
    launch(monkeypatch, session, tmp_path / "run", "--cores", "ln", "--encoders", encoder,
           "--blocks", "all", "--tuning.mode", "frozen", "--seeds", "1")  # fmt: skip
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    rows = [f"mae/encoder block {block}" for block in (0, 1)]
    assert {result["row"] for result in found["results"]} == {"ln", *rows}
    assert all(row in capsys.readouterr().out for row in rows[:1])
    for block, place in enumerate(("mae_encoder_block_0", "mae_encoder_block_1")):
        model = load_neural_model(tmp_path / "run" / f"{place}_share1_seed0").model
        assert (None if model.block_reader is None else model.block_reader.blocks[0]) == (0, None)[
            block
        ]
        weights = load_encoder(encoder).state_dict()
        assert all(
            torch.equal(model.encoder.state_dict()[n], w)
            for n, w in weights.items()
            if "blocks" in n
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--core_from", "runs/m"], "--core_from runs/m: give cores to compare by --cores_from"),
        (["--rows", '{"a": {"tuning.mod": "frozen"}}'], "rows, a: unknown setting tuning.mod; did you mean"),
        (["--rows", '{"a": {"tuning.mode": "ice"}}'], "rows, a: tuning.mode: expected one of"),
        (["--rows", '{"a": {"tuning.mode.x": 1}}'], "rows, a: unknown setting tuning.mode.x"),
        (["--rows", '{"a": {"encoder.path": "./no"}}'], "rows, a: encoder.path: no is no exported"),
        (["--rows", '{"a": {"core_from": "./no"}}'], "rows, a: core_from: no is no model of neurons"),
        (["--rows", '{"ln": {}}'], "several rows have equal names: vivit, ln, ln_separable, resnet, ln"),
        (["--cores_from", "runs/ln"], "several rows have equal names"),
        (["--trials", "4", "--shares", "0.5"], "--trials and --shares both set"),
        (["--data.train_share", "0.5"], "data.train_share and data.train_trials are set"),
        (["--encoder.path", "e"], "--encoder e: give encoders to compare by --encoders"),
        (["--learning_rates", '{"lm": 0.1}'], "learning_rates has unknown rows lm; choose from vivit, ln"),
        (["--seeds", "0"], "nothing to compare"),
        (["--cores", "transformer"], "cores"),
        (["--blocks", "all"], "--blocks all makes a row for each block of --encoders; give encoders by"),
        (["--blocks", "0", "--encoders", "e", "--model.layers", "1"], "omit --model.layers"),
        (["--blocks", "0", "--encoders", "./nowhere"], "--encoders: nowhere"),
        (["--encoders", "./nowhere"], "--encoders: nowhere is no exported encoder: there is no such"),
        (["--cores_from", "./nowhere"], "--cores_from: nowhere is no model of neurons: there is no"),
        (["--trials", "2", "9"], "data.train_trials is 9, but session a has 8 training trials"),
        (["--blocks", "last", "--encoders", "e"], "blocks: expected one of "),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line(session, tmp_path, monkeypatch, capsys, more, message):
    with pytest.raises(SystemExit):
        launch(monkeypatch, session, tmp_path / "run", *more)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
