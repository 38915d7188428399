"""A fitted core with readouts of other sessions: bit-identical features, and errors."""

from __future__ import annotations

import re

import pytest
import torch
from small_models import encoder
from test_checkpoint import facts, linear, resnet

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.checkpoint import load_neural_model, save_neural_model
from ssl_vivit.neural.config import NeuralModelConfig
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.fitted_core import build_on_core, check_encoder, core_inputs, open_core
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU
from ssl_vivit.neural.readout.gaussian import GaussianReadout

# Two frame rates, so that the frame stream is longer than the slower session alone would make it.
DONORS = [facts("fast", (1, 2), frames_per_second=60.0), facts("slow", (7, 3, 9))]
RATES = {"fast": FrameRates(60.0, 25.0), "slow": FrameRates(30.0, 25.0)}
NEW = [facts("new", (4, 5, 6, 8)), facts("other", (1,), frames_per_second=29.97)]


def donor(**parts) -> NeuralModel:
    torch.manual_seed(0)
    built = NeuralModel(
        encoder(),
        readouts={fact.name: GaussianReadout(len(fact.unit_ids), 24) for fact in DONORS},
        **{"frame_rates": RATES, "stream_filters": 6, "nonlinearity": "elu"} | parts,
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built.eval()


def inputs(frames: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(2, 1, frames, 8, 12, generator=generator)
    return video, torch.randn(2, frames, 2, generator=generator)


@torch.no_grad()
def test_the_features_are_those_of_the_donor_bit_for_bit(tmp_path):
    model = donor(adapter=StimulusAdapter("affine"), modulator=ConvGRU(24, 2, 4, hidden=5))
    save_neural_model(model, tmp_path / "run" / "model", DONORS)
    fitted = open_core(str(tmp_path / "run"))
    built, notes = build_on_core(fitted, NeuralModelConfig(), NEW)
    built.eval()
    assert built.sessions == ("new", "other")
    video, behaviour = inputs()
    expected = model.core(video, behaviour, "slow")
    for name in built.sessions:
        assert torch.equal(built.core(video, behaviour, name), expected)
    assert not torch.equal(built.core(video, None, "new"), expected)
    assert built.frame_rates == dict.fromkeys(built.sessions, RATES["slow"])
    # Readouts are fresh, at the mean rates, and of the new run's settings.
    assert [r.neurons for r in built.readouts.values()] == [4, 1]
    assert built.nonlinearity == "softplus"
    rates = torch.nn.functional.softplus(built.readouts["new"].bias)
    torch.testing.assert_close(rates, torch.full((4,), 0.1))
    (note,) = notes
    assert note.startswith(
        "core_from: ViViT, adapter, modulator, frame stream as fitted to fast, slow; the settings encoder"
    )
    # Stored and opened, it is the same, although its sessions alone make a shorter frame stream.
    save_neural_model(built, tmp_path / "again", NEW)
    again = load_neural_model(tmp_path / "again").model
    assert torch.equal(again.core(video, behaviour, "new"), expected)
    assert torch.equal(again(video, behaviour, "new"), built(video, behaviour, "new"))


@torch.no_grad()
@pytest.mark.parametrize("behaviour_channels", [(0, 2), ()])
def test_a_convolutional_core_and_one_without_behaviour_are_taken_too(tmp_path, behaviour_channels):
    known = [facts(), facts("mouse/2", (1, 2))]
    model = resnet().eval()
    if not behaviour_channels:
        model.modulator = None
    save_neural_model(model, tmp_path / "model", known)
    fitted = open_core(str(tmp_path / "model"))
    assert core_inputs(fitted).behaviour_channels == behaviour_channels
    built, _ = build_on_core(fitted, NeuralModelConfig(), NEW)
    video, behaviour = inputs()
    expected = model.core(video, behaviour, "mouse.1")
    assert torch.equal(built.eval().core(video, behaviour, "new"), expected)


def test_what_has_no_core_to_take_is_refused(tmp_path):
    save_neural_model(linear(), tmp_path / "linear", [facts(), facts("mouse/2", (1, 2))])
    encoder().save_pretrained(tmp_path / "encoder")
    for path, told in (
        ("linear", "is a linear model, whose neurons read pixels and share no core"),
        ("encoder", "holds an encoder and no model of neurons"),
        ("nothing", "nothing"),
    ):
        with pytest.raises(NeuralModelError, match=f"^--core_from.*{told}"):
            open_core(str(tmp_path / path))


def test_a_session_at_another_frame_rate_is_refused(tmp_path):
    save_neural_model(donor(), tmp_path / "model", DONORS)
    told = (
        "session new has 20 frames per second, but the core of --core_from was fitted at 30 and 60"
    )
    with pytest.raises(NeuralModelError, match=re.escape(told)):
        build_on_core(
            open_core(str(tmp_path / "model")),
            NeuralModelConfig(),
            [facts("new", frames_per_second=20.0)],
        )


def test_a_model_of_neurons_in_place_of_an_encoder_names_the_options_that_take_it(tmp_path):
    save_neural_model(donor(), tmp_path / "run" / "model", DONORS)
    save_neural_model(linear(), tmp_path / "linear", [facts(), facts("mouse/2", (1, 2))])
    encoder().save_pretrained(tmp_path / "encoder")
    check_encoder(str(tmp_path / "encoder"))
    alone = tmp_path / "run" / "model" / "encoder"
    check_encoder(str(alone))
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        with pytest.raises(NeuralModelError) as error:
            check_encoder(str(path), "--encoders", "--cores_from")
        assert str(error.value) == (
            f"--encoders {path} is a model of neurons, not an encoder; give --cores_from {path} to "
            "use its core (all "
            f"parts except readouts), or --encoders {alone} to use only its encoder"
        )
    with pytest.raises(NeuralModelError, match=r"use its core \(all parts except readouts\)$"):
        check_encoder(str(tmp_path / "linear"))
    with pytest.raises(
        NeuralModelError, match=r"^--encoder: .*none is no exported encoder: there is"
    ):
        check_encoder(str(tmp_path / "none"))
