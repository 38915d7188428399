"""Tables of models of neurons, and the mean of training repeats as a reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from readable_figures import faults

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.evaluation.neurons import comparison
from ssl_vivit.evaluation.neurons.comparison import (
    NeuralComparison,
    mean_and_error,
    score_training_repeats,
)


def test_mean_and_standard_error():
    values = [0.2, 0.5, 0.3, 0.4]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(0.35)
    assert error == pytest.approx(math.sqrt(sum((v - 0.35) ** 2 for v in values) / 3 / 4))
    assert math.isnan(mean_and_error([0.3])[1])


def test_cells_that_are_missing_stay_empty(tmp_path):
    found = NeuralComparison("correlation_mean")
    for share, score in ((1.0, 0.3), (1.0, 0.4), (0.25, 0.2)):
        found.add("main", "vivit", share, {"correlation_mean": score})
    found.add("main", "ln", 1.0, {"correlation_mean": 0.1})
    found.add("bonus", "ln", 1.0, {"correlation_mean": -0.2})
    found.refer("main", "mean of the training repeats", 1.0, 0.25)
    found.refer("main", "true rates", 1.0, None)
    head, vivit, linear, repeats, bonus, other = found.table().splitlines()
    assert head.split() == ["main:", "single-trial", "correlation", "25%", "100%"]
    assert bonus.split() == ["bonus:", "single-trial", "correlation", "25%", "100%"]
    assert other.split() == ["ln", "-0.200"]
    assert vivit.split()[1:] == ["0.200", "0.350", "±", "0.050"]
    assert linear.split() == ["ln", "0.100"]
    assert linear.index("0.100") == head.index("100%")
    assert repeats.endswith("0.250")
    told = found.to_json()
    assert told["results"][0]["standard_error"] == pytest.approx(0.05)
    assert [(each["tier"], each["row"]) for each in told["results"]] == [
        ("main", "vivit"), ("main", "vivit"), ("main", "ln"), ("bonus", "ln"),
    ]  # fmt: skip
    assert told["references"][0]["tier"] == "main"
    found.write(tmp_path)
    assert (tmp_path / "comparison.png").stat().st_size > 5_000


def test_the_chart_names_zero_and_shows_small_errors(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison, "save", lambda figure, path: drawn.append(figure))
    found = NeuralComparison("bps_mean")
    for seed in range(2):
        for share in (0.1, 0.25, 0.5, 1.0):
            found.add("main", "runs/simclr/encoder", share, {"bps_mean": share - 0.3})
            found.add("main", "ln", share, {"bps_mean": 0.1 + 0.1 * seed})
            found.add("bonus", "ln", share, {"bps_mean": 0.4 + 0.1 * seed})
    found.refer("main", "mean of the training repeats", 1.0, 0.25)
    found.chart(tmp_path / "comparison.png")
    (figure,) = drawn
    assert faults(figure) == []
    main, bonus = figure.axes
    zero = next(line for line in main.lines if line.get_label() == "0: mean rate of each neuron")
    assert zero.get_ydata()[0] == 0
    assert not any(str(line.get_label()).startswith("0:") for line in bonus.lines)
    for bars in main.containers:
        line, caps, _ = bars.lines
        assert min(cap.get_markersize() for cap in caps) > line.get_markersize()


def test_the_mean_of_training_repeats_is_that_of_a_loop(repeated_session):
    sessions = build_sessions(NeuralDataConfig(sessions=[str(repeated_session)], window=4))
    found = score_training_repeats(sessions)
    assert [*found] == ["live_test_main", "live_test_bonus"]
    for tier, scores in found.items():
        by_hand = correlation_by_hand(Session(repeated_session), tier)
        assert scores["correlation_mean"] == pytest.approx(by_hand, abs=1e-6)


def correlation_by_hand(session, tier):
    predicted, recorded = [], []
    for trial in np.flatnonzero(session.tier_names == tier):
        shown = session.video(int(trial))
        same = [
            session.responses(int(other))
            for other in session.tiers["train"]
            if np.array_equal(session.video(int(other)), shown)
        ]
        assert same
        predicted.append(np.mean(same, axis=0))
        recorded.append(session.responses(int(trial)))
    predicted, recorded = np.concatenate(predicted), np.concatenate(recorded)
    neurons = zip(predicted.T, recorded.T, strict=True)
    return np.mean([np.corrcoef(p, r)[0, 1] for p, r in neurons])


def test_a_movie_that_was_not_trained_on_has_no_repeats(repeated_session):
    config = NeuralDataConfig(sessions=[str(repeated_session)], window=4, train_share=0.01)
    assert score_training_repeats(build_sessions(config)) == {}


@pytest.fixture
def repeated_session(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    folder = tmp_path / "repeated"
    movies = generator.integers(0, 255, (2, 6, 8, 5), dtype=np.uint8)
    tiers = ["train"] * 6 + ["oracle"] * 2 + ["live_test_main"] * 4
    tiers += ["live_test_bonus"] * 2
    for name in ("data/videos", "data/responses", "meta/trials", "meta/neurons"):
        (folder / name).mkdir(parents=True)
    for trial in range(len(tiers)):
        np.save(folder / f"data/videos/{trial}.npy", movies[trial % 2])
        responses = generator.gamma(2.0, 1.0, (3, 5)).astype(np.float32)
        np.save(folder / f"data/responses/{trial}.npy", responses)
    np.save(folder / "meta/trials/tiers.npy", np.array(tiers))
    np.save(folder / "meta/neurons/unit_ids.npy", np.arange(3))
    return folder
