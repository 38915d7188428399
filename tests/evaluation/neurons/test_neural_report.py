"""Report on a model of neurons: all tiers of test trials are reported separately."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.evaluation.neurons import figures as neural_figures
from ssl_vivit.evaluation.neurons.report import (
    NeuralReport,
    PositionsFound,
    TierScores,
    report,
    summary,
)
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.training.processes import Host

TIERS = ("train",) * 3 + ("oracle",) + ("live_test_main",) * 2 + ("final_test_bonus",) * 2


@pytest.fixture
def session(tmp_path: Path) -> Session:
    generator = np.random.default_rng(0)
    path = tmp_path / "mouse"
    for name in ("data/videos", "data/responses", "meta/trials", "meta/neurons"):
        (path / name).mkdir(parents=True)
    for trial in range(len(TIERS)):
        video = generator.integers(0, 256, (12, 20, 15), dtype=np.uint8)
        np.save(path / f"data/videos/{trial}.npy", video)
        np.save(path / f"data/responses/{trial}.npy", generator.gamma(2.0, 1.0, (3, 15)))
    np.save(path / "meta/trials/tiers.npy", np.array(TIERS))
    np.save(path / "meta/neurons/unit_ids.npy", np.arange(3))
    return Session(path)


def correlation(predictor: NeuralPredictor, session: Session, tier: str) -> float:
    trials = np.flatnonzero(session.tier_names == tier)
    rates = np.concatenate([predictor.predict(session.video(t)[None])[0].numpy() for t in trials])
    responses = np.concatenate([session.responses(t) for t in trials])
    return np.mean([np.corrcoef(p, r)[0, 1] for p, r in zip(rates.T, responses.T, strict=True)])


def test_every_tier_is_scored_printed_and_drawn_on_its_own(session, tmp_path, monkeypatch):
    panels = []
    draw = neural_figures.histogram

    def histogram(scores, path, **how):
        panels.append([*scores])
        draw(scores, path, **how)

    monkeypatch.setattr(neural_figures, "histogram", histogram)
    sessions = build_sessions(NeuralDataConfig(str(session.path), window=8))
    model = linear_nonlinear({"mouse": 3}, (12, 20), behaviour_channels=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    predictor = NeuralPredictor(model, sessions.facts)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    made = report(predictor, sessions, run_dir, Host(), fields=0)
    stored = json.loads((run_dir / "scores.json").read_text())["tiers"]
    printed = summary(run_dir, made, sessions)
    assert "which selected the step" not in printed
    tiers = ("live_test_main", "final_test_bonus")
    assert [*stored] == [*tiers]
    for tier in tiers:
        expected = correlation(predictor, session, tier)
        assert stored[tier]["scores"]["correlation_mouse"] == pytest.approx(expected, abs=1e-5)
        (line,) = [line for line in printed.splitlines() if line.startswith(f"mouse, {tier}: ")]
        assert "single-trial correlation" in line
        assert f" {expected:.3f}" in line
        assert (run_dir / "figures" / f"traces_mouse_{tier}.png").is_file()
    assert panels == [[f"mouse, {tier}" for tier in tiers]]


def test_the_summary_marks_the_tier_that_chose_the_step_and_numbers_that_may_be_negative(
    session, tmp_path
):
    sessions = build_sessions(NeuralDataConfig(str(session.path), window=8))
    scores = {"correlation_mouse": -0.25, "feve_mouse": -0.5, "explainable_mouse": 2.0}
    own = TierScores(scores, {}, {"correlation_mouse": 0.5})
    made = NeuralReport({"validation": own, "final_test_bonus": own}, {}, {})
    (tmp_path / "best").mkdir()
    score = {"step": 40, "name": "val/correlation_mean", "score": 0.3}
    (tmp_path / "best" / "score.json").write_text(json.dumps(score))
    logged = [(0, None), (0, 0.35), (40, 0.3), (80, 0.2)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, score["name"]: value}) + "\n" for s, value in logged)
    )
    lines = [" ".join(line.split()) for line in summary(tmp_path, made, sessions).splitlines()]
    told = "best on validation step 40, val/correlation_mean 0.300 (0.350 before training)"
    assert told in lines
    assert any(line.startswith("warning no score is above the score before") for line in lines)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, score["name"]: 0.2}) + "\n")
    assert "warning" not in summary(tmp_path, made, sessions)
    for tier in ("validation, which selected the step", "final_test_bonus"):
        told = "single-trial correlation -0.250; 0.500 with the true rates (ratio -0.50)"
        assert f"mouse, {tier}: {told}" in lines
        told = "fraction of explainable variance explained (FEVE) -0.500 over 2 of 3 neurons"
        assert f"mouse, {tier}: {told}" in lines


def test_positions_before_and_after_training_are_stored_and_printed(tmp_path, session):
    tier = TierScores({}, {}, {})
    started = {"mouse": PositionsFound(0.5, 0.25, 0.125)}
    made = NeuralReport(
        {"live_test_main": tier}, {"mouse": PositionsFound(0.9, 0.8, 0.75)}, started
    )
    stored = made.to_json()
    assert stored["positions"] == {"mouse": {"x": 0.9, "y": 0.8, "near": 0.75}}
    assert stored["started"] == {"mouse": {"x": 0.5, "y": 0.25, "near": 0.125}}
    sessions = build_sessions(NeuralDataConfig(str(session.path), window=8))
    (line,) = [each for each in summary(tmp_path, made, sessions).splitlines() if "fields" in each]
    assert line.split("receptive fields")[1].strip() == (
        "r = 0.900 in x, 0.800 in y, 75% within 4 pixels (0.500, 0.250, 12% before training)"
    )
