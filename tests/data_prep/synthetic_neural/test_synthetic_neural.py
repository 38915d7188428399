"""Simulated sessions: files, Poisson spikes, ceiling, errors in one line."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_prep.samples import SAMPLE, neural_sample
from data_prep.synthetic_neural.__main__ import main
from data_prep.synthetic_neural.recording import calcium_signal, expected_calcium
from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from data_prep.synthetic_neural.truth import Ceiling
from ssl_vivit.errors import DataError

SMALL = {
    "neurons": 12,
    "train_trials": 10,
    "held_out_movies": 2,
    "repeats": 3,
    "seconds": 2.0,
    "size": (18, 32),
    "stimuli": "textures",
}
ARGV = ["--neurons", "12", "--train-trials", "10", "--held-out-movies", "2", "--repeats", "3"]
ARGV += ["--seconds", "2", "--size", "18x32", "--stimuli", "textures"]


def make(out, **changes):
    return simulate(out, SimulationConfig(**{**SMALL, **changes}), progress=False)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sessions") / "sim")


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def arrays(session, kind):
    trials = len(list((session / "data" / kind).iterdir()))
    return [np.load(session / f"data/{kind}/{n}.npy") for n in range(trials)]


def tiers(session):
    return np.load(session / "meta/trials/tiers.npy")


def test_layout(session):
    assert sorted(set(tiers(session))) == ["live_test_main", "oracle", "train"]
    assert [(tiers(session) == t).sum() for t in ("train", "oracle", "live_test_main")] == [
        10,
        6,
        6,
    ]
    shapes = {
        "videos": (18, 32, 60),
        "responses": (12, 60),
        "true_rates": (12, 60),
        "behavior": (2, 60),
        "pupil_center": (2, 60),
    }
    for kind, shape in shapes.items():
        assert {array.shape for array in arrays(session, kind)} == {shape}
    assert json.loads((session / "meta/session.json").read_text())["responses"] == "spikes"
    truth = load_file(session / "meta/ground_truth.safetensors")
    assert truth["center"].shape == (12, 2)
    assert truth["receptive_field"].shape == (12, 18, 32)
    coordinates = np.load(session / "meta/neurons/cell_motor_coordinates.npy")
    assert np.corrcoef(coordinates[:, 0], truth["center"][:, 0])[0, 1] > 0.9
    assert np.corrcoef(coordinates[:, 1], truth["center"][:, 1])[0, 1] < -0.9


def test_held_out_movies_repeat_and_are_never_trained_on(session):
    hashes = np.array([hashlib.sha256(v.tobytes()).hexdigest() for v in arrays(session, "videos")])
    shown = {tier: hashes[tiers(session) == tier] for tier in set(tiers(session))}
    assert len(set(shown["train"])) == 10
    for tier in ("oracle", "live_test_main"):
        movies, repeats = np.unique(shown[tier], return_counts=True)
        assert len(movies) == 2
        assert (repeats == 3).all()
    assert len(set(hashes)) == 14
    facts = json.loads((session / "meta/ground_truth.json").read_text())
    by_movie = {}
    for movie, name in zip(facts["movies"], hashes, strict=True):
        assert by_movie.setdefault(movie, name) == name


def test_repeats_differ_in_behaviour_and_spikes(session):
    behaviour = [b.tobytes() for b in arrays(session, "behavior")]
    assert len(set(behaviour)) == len(behaviour)


def test_spikes_are_poisson_counts_of_the_true_rates(tmp_path):
    session = make(tmp_path / "a", train_trials=20, mean_rate=(10, 20))
    rates = np.concatenate(arrays(session, "true_rates"), 1).astype(float)
    spikes = np.concatenate(arrays(session, "responses"), 1).astype(float)
    assert (spikes == np.rint(spikes)).all()
    deviation = (spikes.sum(1) - rates.sum(1)) / np.sqrt(rates.sum(1))
    assert np.abs(deviation).max() < 4
    fano = ((spikes - rates) ** 2).sum() / rates.sum()
    assert abs(fano - 1) < 4 * math.sqrt((2 + 1 / rates.mean()) / rates.size)
    hertz = rates.mean(1) * 30
    assert (hertz > 6).all()
    assert (hertz < 35).all()


def test_the_same_settings_give_the_same_bytes(session, tmp_path):
    assert contents(make(tmp_path / "again")) == contents(session)
    other = contents(make(tmp_path / "other", seed=1))
    assert other["data/responses/0.npy"] != contents(session)["data/responses/0.npy"]


def test_an_existing_session_is_kept_or_refused(session):
    before = {p: p.stat().st_mtime_ns for p in session.rglob("*")}
    assert make(session) == session
    assert {p: p.stat().st_mtime_ns for p in session.rglob("*")} == before
    with pytest.raises(
        DataError, match=r"made with --neurons 12, but it is now 13; choose another --out"
    ):
        make(session, neurons=13)
    with pytest.raises(DataError, match="exists and is not a simulated session"):
        make(session / "data")


def test_the_ceiling_equals_a_slow_loop(session):
    chosen = np.flatnonzero(tiers(session) == "live_test_main")
    rates, spikes = (
        np.concatenate([arrays(session, kind)[n] for n in chosen], 1).astype(float)
        for kind in ("true_rates", "responses")
    )
    total = 0.0
    for rate, count in zip(rates, spikes, strict=True):
        for r, y in zip(rate, count, strict=True):
            total += y * math.log(r) - r - (y * math.log(count.mean()) - count.mean())
    ceiling = json.loads((session / "meta/ground_truth.json").read_text())["ceiling"]
    assert ceiling["bits_per_spike"] == pytest.approx(total / math.log(2) / spikes.sum(), abs=2e-6)
    neurons = ceiling["neurons"]
    for neuron in range(12):
        slow = np.corrcoef(rates[neuron], spikes[neuron])[0, 1]
        assert neurons["correlation"][neuron] == pytest.approx(slow, abs=2e-6)
        share = rates[neuron].var() / (rates[neuron].var() + rates[neuron].mean())
        assert neurons["signal_share"][neuron] == pytest.approx(share, abs=2e-6)
    assert ceiling["bits_per_spike"] > 0.3
    assert min(neurons["signal_share"]) > 0.02


def test_a_silent_neuron_has_no_score():
    ceiling = Ceiling()
    rates = np.array([[0.1, 0.5], [0.1, 1.0], [0.2, 1.5]])
    ceiling.add(rates, np.array([[0, 1], [0, 1], [0, 2]]))
    values = ceiling.values(counts=True)
    assert values["neurons"]["bits_per_spike"][0] is None
    assert values["neurons"]["correlation"][0] is None
    assert values["correlation"] == values["neurons"]["correlation"][1]


def test_calcium_follows_its_expectation():
    rates, resting = np.tile([[0.3], [0.1]], (50, 1)), np.array([0.2])
    expected = expected_calcium(rates, resting, 30.0)
    keep = math.exp(-1 / (0.4 * 30))
    level = 0.2 / (1 - keep)
    for t, rate in enumerate(rates[:, 0]):
        level = keep * level + rate
        assert expected[t, 0] == pytest.approx(level)
    draw = np.random.default_rng(0)
    drawn = calcium_signal(draw, np.tile(rates, (1, 3000)), np.tile(resting, 3000), 30.0)
    error = drawn.std(1) / math.sqrt(3000)
    assert (np.abs(drawn.mean(1) - expected[:, 0]) < 5 * error).all()
    assert drawn.min() >= 0


def test_a_calcium_session_states_its_kind(tmp_path):
    session = make(tmp_path / "calcium", calcium=True)
    assert json.loads((session / "meta/session.json").read_text())["responses"] == "calcium"
    ceiling = json.loads((session / "meta/ground_truth.json").read_text())["ceiling"]
    assert "bits_per_spike" not in ceiling
    assert 0.3 < ceiling["correlation"] < 1


def test_command_line(session, tmp_path, capsys):
    out = tmp_path / "sim"
    assert main(["--out", str(out), *ARGV]) == 0
    assert contents(out) == contents(session)
    told = capsys.readouterr().out
    assert "12 neurons, 22 trials of 2 s at 30 Hz" in told
    assert "bits per spike" in told


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stimuli", "mix"], "--stimuli mix needs --videos SHARDS"),
        (["--stimuli", "noise"], "argument --stimuli: invalid choice"),
        (["--size", "36"], "argument --size: '36' must be height and width, such as 36x64"),
        (["--size", "4x64"], "--size 4x64 must be at least 8x8"),
        (["--neurons", "0"], "--neurons 0 must be at least 1"),
        (["--seconds", "0.03"], "--seconds 0.03 at --fps 30 is fewer than two frames"),
        (["--seconds", "nan"], "--seconds nan must be above 0"),
        (
            ["--mean-rate", "5", "2"],
            "--mean-rate 5 2 must be a lowest and a highest rate, both above 0",
        ),
        (["--fps", "-1"], "--fps -1 must be above 0"),
        (["--seed", "-1"], "--seed -1 must not be negative"),
        (["--videos", "nowhere-*.tar", "--stimuli", "videos"], "nowhere-*.tar"),
    ],
)
def test_a_mistake_is_one_line(argv, message, tmp_path, capsys):
    try:
        status = main(["--out", str(tmp_path / "sim"), *ARGV, *argv])
    except SystemExit as end:
        status = end.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status != 0
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_the_sample_is_made_once(tmp_path):
    config = SimulationConfig(**SMALL)
    folder = neural_sample(tmp_path / "samples/neural", videos="unused", config=config)
    before = Path(folder, "meta/session.json").stat().st_mtime_ns
    assert neural_sample(tmp_path / "samples/neural", videos="unused") == folder
    assert Path(folder, "meta/session.json").stat().st_mtime_ns == before
    assert SAMPLE.size == (36, 64)
