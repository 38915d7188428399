"""The recipe for models of neurons: presets, files of a run, errors."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import NEURAL, TINY, options, small_session

from recipes.finetune_neural import (
    SAMPLE_PRESET,
    NeuralRecipe,
    cache_notes,
    main,
    trained_parameters,
)
from ssl_vivit import create_encoder
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.errors import RunError
from ssl_vivit.evaluation.monitors import neural as monitor
from ssl_vivit.evaluation.monitors.config import NeuralEvaluationConfig
from ssl_vivit.evaluation.monitors.neural import NeuralEvaluation
from ssl_vivit.evaluation.neurons.best_model import BestModel, best_score
from ssl_vivit.evaluation.neurons.figures import session_curves
from ssl_vivit.neural.building import build_neural_model, own_penalties
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.neural.config import BaselineConfig, NeuralEncoderChoice, NeuralModelConfig
from ssl_vivit.objectives.config import TuningConfig
from ssl_vivit.objectives.tuning import TunedNeuralPrediction
from ssl_vivit.training import parse, run, to_plain
from ssl_vivit.training.processes import Host
from ssl_vivit.training.run_directory import without_names

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "recipes" / "configs").glob("neural_*.yaml"))
SMALL = NEURAL | {
    "training.steps": 6,
    "training.total_batch_size": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.optimizer.warmup_steps": 2,
    "training.optimizer.scaling": "none",
    "evaluation.fields": 2,
}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sessions")
    settings = {"train_trials": 6, "repeats": 2, "mean_rate": (8.0, 12.0)}
    return [
        small_session(folder / name, neurons=neurons, seed=neurons, **settings)
        for name, neurons in (("a", 5), ("b", 3))
    ]


def words(sessions: list[str], run_dir: Path, **changes) -> list[str]:
    settings = SMALL | {"training.run_dir": str(run_dir)}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["--sessions", *sessions, *options(settings)]


def launch(monkeypatch, told: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune_neural.py", *told])
    main()


def facts(frame_size: tuple[int, int] = (36, 64), neurons: int = 4) -> SessionFacts:
    return SessionFacts(
        name="s", unit_ids=tuple(range(neurons)), frames_per_second=30.0, kind="spikes",
        frame_size=frame_size, video_mean=0.4, video_std=0.2, behaviour_channels=(0, 1),
        behaviour_mean=(0.0, 0.0), behaviour_std=(1.0, 1.0), pupil_mean=(0.0, 0.0),
        pupil_std=(1.0, 1.0), mean_response=(0.2,) * neurons,
        coordinates=tuple((float(i), 0.5 * i, 1.0) for i in range(neurons)),
        split={"train": (0,), "validation": (1,), "test": (2,)},
    )  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_builds_a_model_that_sees_each_frame_and_no_later_one(preset):
    config = parse(NeuralRecipe, ["--config", str(preset)])
    config.training.check()
    config.data.check()
    config.tuning.check(config.training.steps)
    model, notes = build_neural_model(
        config.core, config.encoder, config.model, config.baseline, [facts()], longest=300
    )
    assert not notes
    penalties = own_penalties(model, config.objective.regularisation)
    assert penalties
    loss = replace(config.objective, regularisation=penalties)
    objective = TunedNeuralPrediction(model, loss, config.tuning, facts=[facts()])
    assert any(p.requires_grad for p in objective.encoder.parameters()) == (
        config.tuning.mode != "frozen"
    )
    video = torch.randn(1, 1, 8, *facts().frame_size, requires_grad=True)
    rates = model.eval()(video, None, facts().name)
    for t in range(8):
        (seen,) = torch.autograd.grad(rates[:, t].sum(), video, retain_graph=True)
        by_frame = seen.abs().amax((0, 1, 3, 4))
        assert by_frame[t] > 0
        assert not by_frame[t + 1 :].any()


def test_short_forms_and_the_sample_preset():
    bare = parse(NeuralRecipe, [], preset=SAMPLE_PRESET)
    assert bare == parse(NeuralRecipe, ["--config", str(SAMPLE_PRESET)])
    told = ["--sessions", "x/a", "x/b", "--encoder", "runs/e", "--encoder.name=vivit_tiny"]
    config = parse(NeuralRecipe, told)
    assert config.data.sessions == ["x/a", "x/b"]
    assert (config.encoder.path, config.encoder.name) == ("runs/e", "vivit_tiny")
    # Everything but the encoder is the preset's.
    exported = parse(NeuralRecipe, ["--encoder=e"], preset=SAMPLE_PRESET)
    assert exported.encoder == replace(bare.encoder, path="e")
    assert replace(exported, encoder=bare.encoder) == bare


def test_a_run_leaves_a_model_scores_and_figures(sessions, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(monitor, "LEAST_WAIT", 1e6)
    monkeypatch.setattr(
        monitor, "session_curves",
        lambda metrics, *given, **named: (
            drawn.append(metrics), session_curves(metrics, *given, **named)
        ),
    )  # fmt: skip
    launch(monkeypatch, words(sessions, tmp_path / "run"))
    table, said = capsys.readouterr()
    made = tmp_path / "run"
    total = sum(weight.numel() for weight in load_neural_model(made).model.parameters())
    assert f"trained  {total:,} of {total:,} parameters; frozen: none\n" in said
    assert (made / "config.yaml").read_text().startswith("# written by finetune_neural.py\n")
    assert "a, live_test_main: bits per spike" in table
    assert "with the true rates" in table
    assert "found and true receptive fields" in table
    assert "before training)" in table
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line for line in lines if "val/bps_mean" in line}
    assert list(measured) == [0, 2, 4, 6]
    # Curves are drawn at the first evaluation and, with all that was logged, at the end.
    assert [len(metrics) for metrics in drawn] == [1, len(lines)]
    assert drawn[-1] == lines
    assert {"val/bps_a", "val/bps_b", "val/correlation_mean"} <= measured[6].keys()
    kinds = ("positions_{}", "traces_{}_live_test_main", "receptive_fields_{}")
    expected = {f"{kind.format(name)}.png" for kind in kinds for name in "ab"}
    expected |= {"curves.png", "bits_per_spike.png", "single_trial_correlation.png"}
    assert {path.name for path in (made / "figures").iterdir()} == expected

    # The model is the best of the measured ones, and the scores are those of what was exported.
    best = max((line["val/bps_mean"], -step) for step, line in measured.items() if step)
    assert best_score(made) == {"step": -best[1], "name": "val/bps_mean", "score": best[0]}
    predictor = load_neural_model(made / "model")
    assert predictor.sessions == ("a", "b")
    scores = json.loads((made / "scores.json").read_text())["tiers"]["live_test_main"]
    assert scores["scores"]["bps_a"] == pytest.approx(by_hand(predictor, sessions[0]), abs=1e-6)
    assert not scores["held_out"]
    assert scores["ceiling"]["bps_a"] > 0
    assert (made / "model" / "encoder" / "model.safetensors").is_file()


def without_progress(curve: dict[int, float], patience: int, start: int = 0) -> tuple[int, int]:
    """Return the best step and the last step of a run with patience, from its evaluations."""
    best, waited = (0, float("-inf")), 0
    for step, score in curve.items():
        if step and score > best[1]:
            best, waited = (step, score), 0
        elif step > start:
            waited += 1
        if waited == patience:
            return best[0], step
    raise AssertionError("the run goes on to its end")


def val(run_dir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["val/bps_mean"] for line in lines if "val/bps_mean" in line}


@pytest.mark.slow
def test_a_run_without_progress_ends_with_the_best_model(sessions, tmp_path, monkeypatch, capsys):
    # At this learning rate scores turn worse soon.
    fast = {"training__steps": 16, "training__optimizer__learning_rate": 0.05,
            "training__keep_checkpoints": 0, "evaluation__fields": 0}  # fmt: skip
    sessions = sessions[:1]
    whole, made = tmp_path / "whole", tmp_path / "run"
    launch(monkeypatch, words(sessions, whole, **fast))
    best, last = without_progress(val(whole), 2)
    assert last < 16
    capsys.readouterr()
    told = words(sessions, made, tuning__patience=2, **fast)
    launch(monkeypatch, told)
    printed, said = capsys.readouterr()
    assert (
        f"ended    after step {last} of 16: val/bps_mean did not improve in the last 2 evaluations "
        "(tuning.patience 2); the best was" in said
    )
    assert "a, live_test_main: bits per spike" in printed
    assert val(made) == {step: score for step, score in val(whole).items() if step <= last}
    assert best_score(made)["step"] == best

    def same(one: Path, two: Path) -> bool:
        files = ("model.safetensors", "encoder/model.safetensors")
        return all((one / file).read_bytes() == (two / file).read_bytes() for file in files)

    at_best, at_last = (f"checkpoints/step_{step:08d}" for step in (best, last))
    assert same(made / "model", whole / at_best / "model")
    assert not (made / f"checkpoints/step_{last + 2:08d}").exists()
    file = "optimizer.safetensors"
    assert (made / at_last / file).read_bytes() == (whole / at_last / file).read_bytes()

    # Killed after its last evaluation and before its last checkpoint; and killed after that.
    for lost in (True, False):
        if lost:
            shutil.rmtree(made / at_last)
        shutil.rmtree(made / "model")
        (made / "scores.json").unlink()
        launch(monkeypatch, [*told, "--resume", "auto"])
        assert f"ended    after step {last} of 16" in capsys.readouterr().err
        assert (made / at_last / file).read_bytes() == (whole / at_last / file).read_bytes()
        assert same(made / "model", whole / at_best / "model")
        assert (made / "scores.json").is_file()


@pytest.mark.parametrize(
    ("step", "best", "start", "every", "ends"),
    [
        (8, 4, 0, 2, True), (6, 4, 0, 2, False), (8, None, 0, 4, True), (4, None, 0, 4, False),
        (8, 2, 6, 2, False), (10, 2, 6, 2, True), (12, 5, 0, 4, True), (4, 8, 0, 2, False),
    ],
)  # fmt: skip
def test_patience_counts_evaluations_since_the_best_one(tmp_path, step, best, start, every, ends):
    """Patience is counted from the files on disk, also if the best step is the last or a later step."""
    if best is not None:
        (tmp_path / "best").mkdir()
        (tmp_path / "best" / "score.json").write_text(json.dumps({"step": best, "score": 0.5}))
    tuning = TuningConfig("readout_first" if start else "full", start, patience=2)
    found = SimpleNamespace(validation=object(), facts=[facts()])
    evaluation = NeuralEvaluation.__new__(NeuralEvaluation)
    evaluation.config, evaluation.tuning = NeuralEvaluationConfig(every=every), tuning
    evaluation.best, evaluation._host = BestModel(found), Host()
    reasons = []
    moment = SimpleNamespace(step=step, run_dir=tmp_path, end=reasons.append)
    evaluation._end_without_progress(moment, 2)
    assert bool(reasons) == ends
    if ends:
        waited = step // every - max(best or 0, start) // every
        assert reasons[0].startswith(
            f"val/bps_mean did not improve in the last {waited} evaluations (tuning.patience 2); "
        )


def by_hand(predictor, path: str) -> float:
    """Compute bits per spike of the test trials from files and predictions from raw recordings."""
    session = Session(path)
    rates, spikes = [], []
    for trial in session.tiers["test"].tolist():
        video = session.video(trial)[None].astype(np.float32)
        centre = session.pupil_centre(trial)[None] if session.has_pupil else None
        behaviour = session.behaviour(trial)[None]
        rates.append(predictor.predict(video, behaviour, session.name, centre)[0].double().numpy())
        spikes.append(session.responses(trial).astype(np.float64))
    rates, spikes = np.concatenate(rates), np.concatenate(spikes)
    null = spikes.mean(0, keepdims=True).clip(1e-9)
    gain = (spikes * np.log(rates / null) - rates + null).sum()
    return gain / spikes.sum() / np.log(2)


@pytest.mark.parametrize(
    "core",
    [
        "ln",
        *(
            pytest.param(c, marks=pytest.mark.slow)
            for c in ("ln_separable", "energy", "resnet", "x3d")
        ),
    ],
)
def test_baselines_run_in_the_same_harness(sessions, tmp_path, monkeypatch, capsys, core):
    narrow = {"widths": [4, 4], "depths": [1, 1], "strides": [1, 2]}
    told = words(
        sessions[:1], tmp_path / "run", core=core, training__steps=2,
        baseline__resnet=narrow, baseline__x3d=narrow, baseline__ln__lags=3,
        training__optimizer__layer_decay=0.5, objective__regularisation={"feature_l1": 1e-3,
                                                                        "smoothness": 1e-3},
    )  # fmt: skip
    launch(monkeypatch, told)
    assert "a, live_test_main: bits per spike" in capsys.readouterr().out
    assert load_neural_model(tmp_path / "run").sessions == ("a",)


def test_weights_of_blocks_are_learned_with_a_frozen_encoder_of_another_geometry_and_rate(
    sessions, tmp_path, monkeypatch, capsys
):
    stored = create_encoder(
        "vivit_tiny", num_frames=8, image_size=(32, 48), temporal_positions="learned",
        embed_dim=24, num_heads=2, spatial_depth=2, temporal_depth=1,
    )  # fmt: skip
    stored.save_pretrained(tmp_path / "encoder", preprocessing={"fps": 25.0})
    told = words(sessions, tmp_path / "run", encoder__path=str(tmp_path / "encoder"),
                 encoder__overrides={}, tuning__mode="frozen", model__layers=[0, 1, -1],
                 evaluation__keep_best=False)  # fmt: skip
    launch(monkeypatch, told)
    extent = "the encoder has blocks 0 to 1 (spatial), 2 (temporal)"
    terms = "block 0 (0.333), block 1 (0.333), block 2 (0.333)"
    assert f"blocks   sum of {terms}; {extent}" in capsys.readouterr().err
    first, last = (
        load_file(tmp_path / f"run/{place}model.safetensors")["block_reader.logits"]
        for place in ("checkpoints/step_00000002/model/", "model/")
    )
    assert last.any()
    assert not torch.equal(first, last)
    weights = enumerate(last.softmax(0).tolist())
    terms = ", ".join(f"block {block} ({weight:.3f})" for block, weight in weights)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"| blocks read | sum of {terms}; {extent} |" in card
    predictor = load_neural_model(tmp_path / "run")
    assert torch.equal(predictor.model.block_reader.logits, last)


def test_a_feature_cache_changes_no_score(sessions, tmp_path, monkeypatch):
    found = []
    for name, gigabytes in (("plain", 0.0), ("cached", 1.0)):
        told = words(
            sessions[:1], tmp_path / name, tuning__mode="frozen", data__window=30,
            tuning__feature_cache=gigabytes, model__layers="all", evaluation__keep_best=False,
        )  # fmt: skip
        launch(monkeypatch, told)
        found.append(json.loads((tmp_path / name / "scores.json").read_text())["tiers"])
    for tier, scores in found[0].items():
        assert scores["scores"] == pytest.approx(found[1][tier]["scores"], abs=1e-4)


def test_a_useless_feature_cache_is_reported(sessions, tmp_path):
    def notes(adapter=None, **changes):
        told = words(sessions[:1], tmp_path, tuning__mode="frozen", **changes)
        config = parse(NeuralRecipe, told)
        model = SimpleNamespace(adapter=adapter)
        return cache_notes(config, model, build_sessions(config.data))

    cached = {"tuning__feature_cache": 1.0}
    assert notes() == notes(**cached, data__window=30) == []
    assert notes(**cached) == [
        "tuning.feature_cache: windows of 12 frames start at random in longer trials, so cached "
        "features are rarely reused; --data.window 30 uses whole trials"
    ]
    adapter, unused = (
        object(),
        "tuning.feature_cache: not used, since the adapter before the encoder",
    )
    assert notes(adapter, **cached) == [f"{unused} is trained"]
    assert notes(adapter, **cached, data__window=30, core_from="runs/mice") == []


def test_a_pretrained_encoder_is_fitted_and_a_frozen_one_stays_as_it_is(
    sessions, tmp_path, monkeypatch, capsys
):
    stored = create_encoder(
        "vivit_tiny", num_frames=8, image_size=(32, 48), temporal_positions="rotary",
        embed_dim=24, num_heads=2, spatial_depth=1, temporal_depth=1,
    )  # fmt: skip
    prepared = {"mean": [0.5], "std": [0.1], "fps": 30.0}
    stored.save_pretrained(tmp_path / "encoder", preprocessing=prepared)
    told = words(sessions[:1], tmp_path / "run 1", encoder__path=str(tmp_path / "encoder"),
                 encoder__overrides={}, tuning__mode="frozen", training__optimizer__layer_decay=0.7,
                 evaluation__keep_best=False)  # fmt: skip
    launch(monkeypatch, told)
    table, said = capsys.readouterr()
    assert "in_channels 3 → 1" in said
    weights = load_neural_model(tmp_path / "run 1").model
    total, frozen = (
        sum(p.numel() for p in part.parameters()) for part in (weights, weights.encoder)
    )
    told = (
        f"trained  {total - frozen:,} of {total:,} parameters; frozen: encoder (all {frozen:,})\n"
    )
    assert told in said
    # Of the fresh encoder's settings nobody gave one.
    assert "ignored, since --encoder" not in said
    assert "image_size 32×48 → 12×20" in said
    assert "tubelet_size 4×16×16 → 4×6×6" in said
    assert "pixels: standardised by the encoder's mean 0.5 and std 0.1" in said
    assert load_neural_model(tmp_path / "run 1").facts[0].video_std == 0.1
    # The command that the table names fits the same model from fresh weights.
    command = next(line for line in table.splitlines() if "--encoder.weights fresh" in line)
    again = shlex.split(command.split("finetune_neural.py ")[1])
    launch(monkeypatch, again)
    assert "with random weights" in capsys.readouterr().err
    fresh = load_neural_model(f"{tmp_path / 'run 1'}_fresh").model.encoder
    assert fresh.config == load_neural_model(tmp_path / "run 1").model.encoder.config
    pretrained = load_file(tmp_path / "run 1/model/encoder/model.safetensors")
    matrices = [n for n, value in pretrained.items() if value.ndim > 1 and "blocks" in n]
    assert all(not torch.equal(fresh.get_parameter(n), pretrained[n]) for n in matrices)
    first = load_file(tmp_path / "run 1/checkpoints/step_00000002/model/encoder/model.safetensors")
    last = load_file(tmp_path / "run 1/model/encoder/model.safetensors")
    assert all(torch.equal(first[name], last[name]) for name in first)
    # All but tubelets and positions are the stored weights themselves.
    weights = stored.state_dict()
    same = [name for name in last if name in weights and torch.equal(last[name], weights[name])]
    assert len(same) > 0.8 * len(last)


def test_readouts_of_a_new_animal_are_fitted_to_a_core_that_stays(
    sessions, tmp_path, monkeypatch, capsys
):
    short = {"training__steps": 2, "evaluation__fields": 0}
    launch(monkeypatch, words(sessions[:1], tmp_path / "animals", **short))
    told = words(
        sessions[1:], tmp_path / "new", core_from=str(tmp_path / "animals"), tuning__mode="frozen",
        training__optimizer__learning_rate=0.1, encoder__overrides={"embed_dim": 16}, **short,
    )  # fmt: skip
    capsys.readouterr()
    launch(monkeypatch, told)
    printed, said = capsys.readouterr()
    assert "b, live_test_main: bits per spike" in printed
    assert f"core     of {tmp_path / 'animals'}" in said
    assert "core_from: ViViT, modulator, frame stream as fitted to a; the settings encoder" in said
    donor, made = (load_neural_model(tmp_path / name) for name in ("animals", "new"))
    assert made.sessions == ("b",)
    for name in ("video_mean", "video_std", "behaviour_channels"):
        assert getattr(made.facts[0], name) == getattr(donor.facts[0], name)
    kept = dict(donor.model.named_parameters())
    for name, parameter in made.model.named_parameters():
        if not name.startswith("session_readouts."):
            assert torch.equal(parameter, kept[name]), name
    # The same recorded pixels give the donor's features, bit for bit.
    pixels = torch.from_numpy(Session(sessions[1]).video(0)[None, None])
    one, two = (
        predictor.model.core(predictor.facts[0].standardised_video(pixels))
        for predictor in (donor, made)
    )
    assert torch.equal(one, two)
    # Readouts were fitted, and the checkpoint's optimiser holds nothing else.
    state = load_file(tmp_path / "new/checkpoints/step_00000002/optimizer.safetensors")
    assert {name.split(".")[1] for name in state} == {"session_readouts"}

    # A run whose core is another one by now does not go on.
    shutil.copytree(tmp_path / "animals", tmp_path / "moved")
    (tmp_path / "new" / "scores.json").unlink()
    moved = [
        str(tmp_path / "moved") if word == str(tmp_path / "animals") else word for word in told
    ]
    launch(monkeypatch, [*moved, "--resume", "auto"])
    assert (tmp_path / "new" / "scores.json").is_file()
    config = tmp_path / "moved" / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(RunError, match=r"core_from .*the contents have changed"):
        launch(monkeypatch, [*moved, "--resume", "auto"])


@pytest.mark.slow
def test_neurons_held_out_get_readouts_and_scores_of_their_own(
    sessions, tmp_path, monkeypatch, capsys
):
    told = words(
        sessions, tmp_path / "run", data__held_out_neurons=0.4, tuning__held_out_steps=10,
        training__optimizer__warmup_steps=100, training__log_every=1,
    )  # fmt: skip
    launch(monkeypatch, told)
    assert "held-out neurons" in capsys.readouterr().out
    made = tmp_path / "run"
    lines = (made / "held_out_neurons" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["train/lr"] for line in lines if "train/lr" in line]
    assert len(rates) == 10
    # The schedule of ten steps reaches its peak although the warm-up of the run takes a hundred.
    assert max(rates) > 5 * min(rates)
    assert rates[-1] < max(rates)
    scores = json.loads((made / "scores.json").read_text())["tiers"]["live_test_main"]
    assert "bps_a" in scores["held_out"]
    before = load_neural_model(made / "best" / "model")
    after = load_neural_model(made / "model")
    for one, two in zip(before.facts, after.facts, strict=True):
        held = torch.tensor([unit in one.held_out_units for unit in one.unit_ids])
        assert held.any()
        assert not held.all()
        old, new = (p.model.readouts[two.name] for p in (before, after))
        assert torch.equal(old.features[~held], new.features[~held])
        assert not torch.equal(old.features[held], new.features[held])
    for (name, one), two in zip(
        before.model.encoder.named_parameters(), after.model.encoder.parameters(), strict=True
    ):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning.readout_steps": 3}, "needs tuning.mode readout_first"),
        ({"tuning.mode": "readout_first"}, "must be at least 1 and below training.steps 6"),
        ({"tuning.mode": "readout"}, "tuning.mode"),
        ({"tuning.mode": "last_blocks"}, "give --tuning.last_blocks N"),
        ({"tuning.mode": "last_blocks", "tuning.last_blocks": 3}, "has 2 blocks; give 1 to 2"),
        ({"tuning.mode": "last_blocks", "tuning.last_blocks": 1, "core": "ln"}, "--core ln has none"),
        ({"tuning.feature_cache": 1.0}, "tuning.mode full trains it; set feature_cache to 0, or"),
        ({"tuning.feature_cache": -1.0}, "--tuning.feature_cache is -1.0; it must be at least 0"),
        ({"core_from": "nowhere"}, "--core_from: nowhere is no model of neurons: there is no such directory"),
        ({"core_from": "m", "core": "resnet"}, "and --core resnet both set the core; omit one of them"),
        ({"core_from": "m", "encoder.path": "e"}, "and --encoder e both set the core; omit one of them"),
        ({"data.session_weights": "same"}, "data.session_weights"),
        ({"tuning.patience": 2, "evaluation.keep_best": False}, "evaluation.keep_best is false"),
        ({"data.train_trials": 50}, "train_trials is 50, but session a has 6 training trials"),
        ({"core": "resnet", "encoder.path": "e"}, "--core resnet has no encoder"),
        ({"encoder.path": "nowhere"}, "nowhere"),
        ({"encoder.overrides": {"image_size": [16, 16]}}, "their video is grey, 12×20"),
        ({"evaluation.every": 0}, "evaluation.every"),
        ({"objective.regularisation": {"l7": 1.0}}, "l7"),
        ({"data.sessions": ["nowhere/s"]}, "session nowhere/s is not a folder"),
        ({"model.layers": 2}, "model.layers names block 2; the encoder has blocks 0 (spatial), 1"),
        ({"model.layers": []}, "model.layers is an empty list; name one block or more"),
        ({"model.layers": [0, 0]}, "model.layers [0, 0] names block 0 twice"),
        ({"model.layers": "last"}, "model.layers: expected one of "),
        ({"model.layers": "all", "core": "ln"}, "--core ln has no blocks to choose from"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line(
    sessions, tmp_path, changes, message, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    told = [*words(sessions, tmp_path / "run"), *options(changes)]
    monkeypatch.setattr(sys, "argv", ["finetune_neural.py", *told])
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_directory_takes_the_place_of_the_fresh_encoder(sessions, tmp_path, monkeypatch, capsys):
    create_encoder("vivit_neural_small", num_frames=8, **TINY).save_pretrained(tmp_path / "e")
    told = words(sessions, tmp_path / "run", encoder__path=str(tmp_path / "e"),
                 encoder__name="vivit_tiny", encoder__overrides={"mlp_dropout": 0.1},
                 data__standardize="session", training__steps=1)  # fmt: skip
    launch(monkeypatch, told)
    said = capsys.readouterr().err
    assert (
        "sets the architecture: encoder.name vivit_tiny; mlp_dropout 0.1 of encoder.overrides "
        "applies (to change tubelets, set encoder.geometry)" in said
    )
    assert "standardised by the sessions' statistics (data.standardize session)" in said
    made = load_neural_model(tmp_path / "run").model.encoder.config
    assert (made.embed_dim, made.mlp_dropout) == (8, 0.1)


def test_standardising_by_session_or_encoder_shows_the_encoder_other_pixels(sessions, tmp_path):
    shown = {}
    for statistics in (None, (0.5, 0.1)):
        data = NeuralDataConfig(sessions=sessions[:1], window=12)
        found = build_sessions(data, seed=3, pixel_statistics=statistics)
        stream = found.train.stream(BatchSplit(4), start_step=0, device="cpu")
        (part,) = next(stream)["parts"]
        stream.close()
        shown[statistics], fact = part["video"], found.facts[0]
        if statistics:
            assert (fact.video_mean, fact.video_std) == statistics
        else:
            own = (fact.video_mean, fact.video_std)
    pixels = shown[None] * own[1] + own[0]
    torch.testing.assert_close(shown[(0.5, 0.1)], (pixels - 0.5) / 0.1, rtol=0, atol=1e-4)


def test_a_wrong_path_is_refused_before_the_sample_is_simulated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for option in ("--encoder", "--core_from"):
        monkeypatch.setattr(sys, "argv", ["finetune_neural.py", option, "nowhere"])
        with pytest.raises(SystemExit):
            run(main)
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {option}: nowhere is no ")
        assert ": there is no such directory; give the directory that a run writes as RUN/" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tuning", "told"),
    [
        (TuningConfig("full"), "frozen: none"),
        (TuningConfig("frozen"), "frozen: encoder (all {encoder:,})"),
        (TuningConfig("readout_first", 50),
         "frozen: none; the encoder is frozen until step 50"),
        (TuningConfig("last_blocks", last_blocks=1), "frozen: encoder ({before:,} of {encoder:,})"),
    ],
)  # fmt: skip
def test_the_line_about_trained_parameters(tuning, told):
    choice = NeuralEncoderChoice(name="vivit_neural_small", overrides=TINY)
    model = build_neural_model(
        "vivit", choice, NeuralModelConfig(), BaselineConfig(), [facts()], longest=12
    ).model
    objective = TunedNeuralPrediction(model, tuning=tuning, facts=[facts()])
    weights = {name: weight.numel() for name, weight in model.encoder.named_parameters()}
    count = sum(weights.values())
    before = sum(n for name, n in weights.items() if not name.startswith("trunk.temporal_"))
    total = sum(weight.numel() for weight in model.parameters())
    trained = total - {"frozen": count, "last_blocks": before}.get(tuning.mode, 0)
    expected = told.format(encoder=count, before=before)
    assert trained_parameters(objective) == f"{trained:,} of {total:,} parameters; {expected}"


def test_settings_are_checked_before_the_sample_is_simulated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "of")
    monkeypatch.setattr(sys, "argv", ["finetune_neural.py", "--tracker", "wandb"])
    with pytest.raises(SystemExit):
        run(main)
    assert "error: WANDB_MODE is of; it must be" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_is_not_there_is_named_on_resume(tmp_path, monkeypatch, capsys):
    """The message names the missing encoder, and not a changed setting."""
    (tmp_path / "run").mkdir()
    saved = to_plain(parse(NeuralRecipe, ["--encoder", "before"], preset=SAMPLE_PRESET))
    saved["data"]["sessions"] = [str(tmp_path / "before")]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(without_names(saved)))
    monkeypatch.chdir(tmp_path)
    given = [
        "--encoder",
        "nowhere",
        "--sessions",
        "nowhere",
        "--run_dir",
        "run",
        "--resume",
        "auto",
    ]
    monkeypatch.setattr(sys, "argv", ["finetune_neural.py", *given])
    with pytest.raises(SystemExit):
        run(main)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --encoder: nowhere is no exported encoder")
