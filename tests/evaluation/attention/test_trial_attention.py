"""Attention of a model of neurons in a trial, compared with closed forms and the model's windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from readable_figures import faults

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.attention import trial_figure
from ssl_vivit.evaluation.attention.command import main
from ssl_vivit.evaluation.attention.trial import trial_attention
from ssl_vivit.evaluation.attention.trial_video import video_of_file
from ssl_vivit.evaluation.chosen_units import chosen_of
from ssl_vivit.neural.checkpoint import save_neural_model
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.vivit_core import core_of
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.neural.readout.gaussian import GaussianReadout

SIZE = (8, 12)
PLACES = torch.tensor([[-0.6, -0.5], [0.65, 0.4], [0.1, 0.0]])
VIDEO = Path(__file__).parents[2] / "assets" / "collision_clips" / "example_0_new.mp4"
PLAIN = {"class_token": False, "register_tokens": 0, "pooling": "mean"}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> str:
    config = SimulationConfig(
        neurons=3, train_trials=3, held_out_movies=1, repeats=1, seconds=1.0, size=SIZE,
        stimuli="textures", mean_rate=(8.0, 12.0),
    )  # fmt: skip
    return str(simulate(tmp_path_factory.mktemp("s") / "sim", config, progress=False))


@pytest.fixture
def facts(session):
    return build_sessions(NeuralDataConfig([session], window=8)).facts


def predictor(facts, *, layers=None, sampling="point", rates=None, **settings) -> NeuralPredictor:
    torch.manual_seed(0)
    settings = {
        "num_frames": 16,
        "spatial_depth": 1,
        "temporal_depth": 1,
        "num_heads": 2,
    } | settings
    encoder = create_encoder(
        "vivit_neural_small",
        image_size=SIZE,
        embed_dim=8,
        tubelet_size=(2, 4, 4),
        **settings,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    readout = GaussianReadout(3, 8, sampling=sampling, spread=0.2)
    with torch.no_grad():
        readout.mean.copy_(PLACES)
    model = NeuralModel(
        encoder, None, None, {"sim": readout}, layers=layers,
        frame_rates=None if rates is None else {"sim": rates},
    )  # fmt: skip
    return NeuralPredictor(model, facts).eval()


def even(model: NeuralPredictor) -> NeuralPredictor:
    """Return a model with uniform attention over all tokens that may be attended to."""
    for name, parameter in model.model.encoder.named_parameters():
        if "fused_in" in name:  # queries, keys, values and the MLP's input
            torch.nn.init.zeros_(parameter)
    return model


def movie(frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, *SIZE), dtype=np.uint8)


def read_by_points(places: torch.Tensor) -> np.ndarray:
    """Return bilinear weights on the (2, 3) map, by sampling maps that are 1 at one place."""
    maps = torch.eye(6).reshape(6, 1, 2, 3)
    grid = places[None, :, None].expand(6, -1, -1, -1)
    seen = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
    weights = seen[:, 0, :, 0].mean(1)
    return (weights / weights.sum()).reshape(2, 3).numpy()


@pytest.mark.parametrize("units", [[0], [2, 1]])
def test_even_attention_has_its_closed_form(facts, units):
    chosen = chosen_of(even(predictor(facts, **PLAIN)), None, units)
    found = trial_attention(chosen, movie(13))
    assert found.when.shape == (6, 6)
    for step in range(6):
        expected = np.zeros(6)
        expected[: step + 1] = 0.5 / (step + 1)
        expected[step] += 0.5
        assert found.when[step] == pytest.approx(expected, abs=1e-6)
    assert found.read.tolist() == [-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    # Half of each place's own, half of all places alike.
    expected = 0.5 * read_by_points(PLACES[units]) + 0.5 / 6
    for where in found.where:
        assert where == pytest.approx(expected, abs=1e-6)


def test_masks_are_read_as_the_readout_reads_them(facts):
    model = even(predictor(facts, sampling="mask", **PLAIN))
    found = trial_attention(chosen_of(model, None, [1]), movie(4))
    readout = model.model.readouts["sim"]
    # What a map that is 1 at one place adds to the drive of a unit with features of 1.
    with torch.no_grad():
        readout.features.fill_(1.0)
        readout.bias.zero_()
        maps = torch.eye(6).reshape(6, 1, 2, 3).expand(-1, 8, -1, -1) / 8
        weights = readout.eval()(maps)[:, 1].reshape(2, 3).numpy()
    assert found.where[1] == pytest.approx(0.5 * weights + 0.5 / 6, abs=1e-6)


def test_attention_to_later_frames_is_zero_and_does_not_depend_on_them(facts):
    model = predictor(facts, **PLAIN)
    found = trial_attention(chosen_of(model, None, None), movie(16))
    assert not np.triu(found.when, 1).any()
    assert found.when.sum(1) == pytest.approx(np.ones(8), abs=1e-6)
    assert found.where.sum((1, 2)) == pytest.approx(np.ones(8), abs=1e-6)
    assert np.ptp(found.when[7, :8]) > 0.01
    part = trial_attention(chosen_of(model, None, None), movie(16)[:9])
    assert part.when == pytest.approx(found.when[:4, :4], abs=1e-6)
    assert part.where == pytest.approx(found.where[:4], abs=1e-6)


def test_long_trials_have_the_windows_that_the_model_encodes(facts):
    """Learned positions cover 8 steps; a step is taken from the window with its longest past."""
    model = predictor(facts, **PLAIN, temporal_positions="learned")
    chosen = chosen_of(model, None, None)
    assert core_of(model.model.encoder).context == 8
    frames = movie(45)
    found = trial_attention(chosen, frames)
    assert found.when.shape == (22, 22)
    for start, first, last in ((0, 0, 8), (4, 8, 12), (8, 12, 16), (12, 16, 20), (16, 20, 22)):
        window = trial_attention(chosen, frames[2 * start : 2 * last])
        rows = window.when[first - start :]
        assert found.when[first:last, start:last] == pytest.approx(rows, abs=1e-6)
        assert not found.when[first:last, :start].any()
        assert found.where[first:last] == pytest.approx(window.where[first - start :], abs=1e-6)


def test_blocks_are_followed_as_far_as_they_are_read(facts):
    settings = PLAIN | {"spatial_depth": 2, "num_frames": 16}
    first = even(predictor(facts, layers=0, **settings))
    found = trial_attention(chosen_of(first, None, [0]), movie(8))
    own = read_by_points(PLACES[[0]])
    assert found.when == pytest.approx(np.eye(4), abs=1e-6)
    assert found.where[2] == pytest.approx(0.5 * own + 0.5 / 6, abs=1e-6)
    registers = even(predictor(facts, layers=0, **settings | {"register_tokens": 1}))
    found = trial_attention(chosen_of(registers, None, [0]), movie(8))
    # A seventh of what is attended to is the register.
    assert found.when == pytest.approx(np.eye(4) * (1 - 0.5 / 7), abs=1e-6)
    both = even(predictor(facts, layers=[1, 2], **settings))
    with torch.no_grad():
        both.model.block_reader.logits.copy_(torch.log(torch.tensor([0.3, 0.7])))
    found = trial_attention(chosen_of(both, None, [0]), movie(8))
    assert found.where[2] == pytest.approx(0.25 * own + 0.75 / 6, abs=1e-6)
    # Block 1 is the last one over space, block 2 the one over time.
    assert found.when[3] == pytest.approx([0.7 / 8] * 3 + [0.3 + 0.7 * (0.5 + 1 / 8)], abs=1e-6)


@pytest.mark.parametrize(
    "variant", ["joint", "factorized_self_attention", "factorized_dot_product"]
)
def test_other_models_have_attention_too(facts, variant):
    tokens = {} if variant != "joint" else {"class_token": True, "register_tokens": 1}
    depths = {"depth": 2, "spatial_depth": None, "temporal_depth": None, "num_heads": 4}
    depths |= {"spatial_positions": "sinusoidal", "temporal_positions": "sinusoidal"}
    model = predictor(facts, variant=variant, **depths, **tokens)
    found = trial_attention(chosen_of(model, None, None), movie(12))
    assert not np.triu(found.when, 1).any()
    assert (found.when.sum(1) <= 1 + 1e-6).all()
    assert (found.when.sum(1) > 0.2).all()
    assert found.where.sum((1, 2)) == pytest.approx(found.when.sum(1), abs=1e-6)


def test_resampled_trials_read_the_steps_that_have_ended(facts):
    rates = FrameRates(30.0, 15.0)
    found = trial_attention(
        chosen_of(predictor(facts, rates=rates, **PLAIN), None, None), movie(12)
    )
    # Frames 0, 2, 4 … are shown; a token takes two of them.
    assert found.when.shape == (3, 3)
    assert found.read.tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_models_and_trials_without_attention_are_refused(facts):
    chosen = chosen_of(predictor(facts, **PLAIN), None, None)
    with pytest.raises(NeuralModelError, match="a trial of 1 frames is too short for one token"):
        trial_attention(chosen, movie(1))
    linear = NeuralPredictor(linear_nonlinear({"sim": 3}, SIZE, behaviour_channels=0), facts)
    with pytest.raises(
        NeuralModelError, match="has no attention; give a model whose core is a ViViT"
    ):
        trial_attention(chosen_of(linear, None, None), movie(8))


def test_video_files_are_shown_at_the_rate_of_the_session(facts):
    # 125 frames at 25 a second; the session has 30.
    video = video_of_file(VIDEO, facts[0])
    assert video.shape == (150, *SIZE)
    assert video.min() >= 0
    assert 10 < video.mean() < 245
    repeated = [t for t in range(1, 150) if (video[t] == video[t - 1]).all()]
    assert len(repeated) >= 25


def test_the_command_draws_trials(session, facts, tmp_path, monkeypatch):
    figures = []
    keep = trial_figure.save
    monkeypatch.setattr(
        trial_figure, "save", lambda made, path: (figures.append(made), keep(made, path))
    )
    model = predictor(facts, **PLAIN)
    save_neural_model(model.model, tmp_path / "run" / "model", facts)
    png, gif = tmp_path / "new" / "a.png", tmp_path / "new" / "a.gif"
    assert main([str(tmp_path / "run"), session, str(png), str(gif), "--units", "2"]) == 0
    assert Image.open(png).format == "PNG"
    assert [fault for made in figures for fault in faults(made)] == []
    with Image.open(gif) as moving:
        assert moving.n_frames == 30
        assert moving.info["duration"] == 30
        # Black and white pixels stay dark and bright below the map.
        trials = Session(session).tiers
        first = Session(session).video(min(*trials["validation"], *trials["test"]))[0]
        moving.seek(0)
        shown = np.asarray(moving.convert("L"), float)[: SIZE[0] * 40 : 40, : SIZE[1] * 40 : 40]
        assert shown.shape == SIZE
        assert np.abs(shown - first).max() < 30  # no token has ended by then
    assert main([str(tmp_path / "run" / "model"), str(VIDEO), str(gif)]) == 0
    with Image.open(gif) as moving:
        assert moving.n_frames == 150


def test_mistakes_are_reported_in_one_line(session, facts, tmp_path, capsys):
    model = predictor(facts, **PLAIN)
    save_neural_model(model.model, tmp_path / "model", facts)
    model.model.encoder.save_pretrained(tmp_path / "encoder")
    own, out = str(tmp_path / "model"), str(tmp_path / "a.png")
    for wrong, message in (
        ([own, session, out, "--trial", "99"], "--trial 99: session sim has no such trial"),
        ([own, session, out, "--units", "7"], "--units 7: session sim has no such unit"),
        ([own, session, out, "--session", "b"], "--session b: the model has no such session; it has sim"),
        ([own, session, out, "--heads"], "--heads is for an encoder"),
        ([own, str(VIDEO), out, "--trial", "0"], "--trial 0 needs the folder of a session"),
        ([own, str(tmp_path / "none"), out], "none"),
        ([own, session, out, out], "2 output files; give one PNG file, one GIF file, or both"),
        ([str(tmp_path / "encoder"), str(VIDEO), out, "--units", "1"], "--units is for a model of neurons"),
        ([str(tmp_path / "encoder"), str(VIDEO), str(tmp_path / "a.gif")], "only be drawn as PNG"),
    ):  # fmt: skip
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        main([own, session, out, "--unit", "x"])
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder", "model"]
