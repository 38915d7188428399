"""Comparing models of neurons: every run once, numbers of the table, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from recipes.compare_neural import Cell, ComparisonRecipe, cells, finished, main, scores_of
from recipes.finetune_neural import NeuralRecipe
from ssl_vivit import create_encoder, load_encoder
from ssl_vivit.errors import RunError
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.training import parse, run, to_plain
from ssl_vivit.training.run_directory import without_names

TINY = {
    "embed_dim": 8, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1,
    "tubelet_size": [4, 4, 4],
}  # fmt: skip
SETTINGS = {
    "encoder.overrides": TINY,
    "data.window": 12,
    "model.modulator.kind": "film",
    "model.stream_filters": 4,
    "training.steps": 2,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 8,
    "training.optimizer.warmup_steps": 1,
    "training.tracker": "none",
    "evaluation.every": 2,
    "evaluation.fields": 0,
    "seeds": 2,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> str:
    config = SimulationConfig(
        neurons=4, train_trials=8, held_out_movies=2, repeats=2, seconds=1.0, size=(12, 20),
        stimuli="textures", mean_rate=(8.0, 12.0),
    )  # fmt: skip
    return str(simulate(tmp_path_factory.mktemp("sessions") / "a", config, progress=False))


def launch(monkeypatch, session: str, run_dir: Path, *more: str) -> None:
    settings = SETTINGS | {"training.run_dir": str(run_dir)}
    told = ["--sessions", session]
    for name, value in settings.items():
        told += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    monkeypatch.setattr(sys, "argv", ["compare_neural.py", *told, *more])
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
    assert "was run with other settings of data" in capsys.readouterr().err


def test_scores_of_earlier_versions_are_those_of_all_test_trials(tmp_path):
    cell = Cell("ln", 1.0, NeuralRecipe())
    cell.recipe.training.run_dir = str(tmp_path)
    pooled = {"scores": {"bps_mean": 0.3}, "held_out": {}, "ceiling": {}, "tier": "test"}
    (tmp_path / "scores.json").write_text(json.dumps(pooled))
    assert scores_of(cell)["test"]["scores"] == {"bps_mean": 0.3}
    (tmp_path / "scores.json").write_text(json.dumps({"tiers": {"final_test_main": pooled}}))
    assert scores_of(cell) == {"final_test_main": pooled}


def test_runs_differ_in_what_is_compared_alone(tmp_path):
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
        assert cell.recipe.data == replace(config.data, train_share=cell.share)
        assert cell.recipe.training.steps == config.training.steps
        assert cell.recipe.objective == config.objective


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


def test_blocks_that_are_read_are_those_of_encoders_alone(tmp_path):
    told = ["--cores", '["vivit", "ln"]', "--encoders", "runs/a/encoder", "--model.layers", "all"]
    planned = cells(parse(ComparisonRecipe, [*told, "--seeds", "1"]), tmp_path)
    assert [cell.recipe.model.layers for cell in planned] == ["all", None, "all"]


def test_runs_of_earlier_versions_are_not_repeated(tmp_path):
    config = parse(ComparisonRecipe, ["--cores", "ln", "--seeds", "1"])
    (cell,) = cells(config, tmp_path)
    stored = without_names(to_plain(cell.recipe))
    del stored["model"]["layers"]
    cell.run_dir.mkdir()
    (cell.run_dir / "scores.json").write_text("{}")
    (cell.run_dir / "config.yaml").write_text(yaml.safe_dump(stored))
    assert finished(cell)
    stored["model"]["layers"] = 0
    (cell.run_dir / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(RunError, match="other settings of model;"):
        finished(cell)


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
        (["--encoder.path", "e"], "--encoder e: name encoders to compare by --encoders"),
        (["--learning_rates", '{"lm": 0.1}'], "learning_rates names lm; rows are vivit, ln"),
        (["--seeds", "0"], "nothing to compare"),
        (["--cores", "transformer"], "cores"),
        (["--blocks", "all"], "--blocks all makes a row of each block of --encoders; name some by"),
        (["--blocks", "0", "--encoders", "e", "--model.layers", "1"], "leave out --model.layers"),
        (["--blocks", "0", "--encoders", "./nowhere"], "--encoders: nowhere"),
        (["--blocks", "last", "--encoders", "e"], "blocks: expected one of int, list[int], 'all', null"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(session, tmp_path, monkeypatch, capsys, more, message):
    with pytest.raises(SystemExit):
        launch(monkeypatch, session, tmp_path / "run", *more)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
