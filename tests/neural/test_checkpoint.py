"""Models of neurons on disk: equal rates from the directory alone, and errors for damaged files."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from small_models import encoder

from ssl_vivit import load_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders import ViViT
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.checkpoint import load_neural_model, save_neural_model
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.motion_energy import MotionEnergy, MotionEnergyConfig
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.model_settings import settings_of
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.linear import LinearNonlinearConfig

COORDINATES = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0], [5.0, 4.0, 1.0]])


def facts(name="mouse.1", units=(7, 3, 9), **others):
    values = {
        "name": name,
        "unit_ids": units,
        "frames_per_second": 30.0,
        "kind": "spikes",
        "frame_size": (8, 12),
        "video_mean": 0.4,
        "video_std": 0.2,
        "behaviour_channels": (0, 2),
        "behaviour_mean": (1.0, -2.0),
        "behaviour_std": (2.0, 0.5),
        "pupil_mean": (10.0, 20.0),
        "pupil_std": (2.0, 4.0),
        "mean_response": (0.1,) * len(units),
        "coordinates": None,
        "split": {"train": (0, 1), "validation": (2,)},
    }
    return SessionFacts(**(values | others))


FACTS = [facts(), facts("mouse/2", (1, 2))]


def vivit(**parts):
    readouts = {
        "mouse.1": GaussianReadout(3, 24, coordinates=COORDINATES, shifter=True),
        "mouse/2": GaussianReadout(2, 24, sampling="mask"),
    }
    return NeuralModel(encoder(), readouts=readouts, **parts)


def resnet():
    core = CausalResNet(CausalResNetConfig())
    channels = core.channels
    readouts = {f.name: GaussianReadout(len(f.unit_ids), channels) for f in FACTS}
    return NeuralModel(core, None, FiLM(channels, 2, 1), readouts, nonlinearity="elu")


def energy():
    config = MotionEnergyConfig(spatial_frequencies=(0.125,), orientations=2)
    core = MotionEnergy(config, frames_per_second=30.0)
    readouts = {f.name: GaussianReadout(len(f.unit_ids), core.channels) for f in FACTS}
    return NeuralModel(core, None, FiLM(core.channels, 2, 1), readouts)


def linear():
    return linear_nonlinear(
        {f.name: len(f.unit_ids) for f in FACTS}, (8, 12), behaviour_channels=2,
        config=LinearNonlinearConfig(pool=1),
    )  # fmt: skip


MODELS = {
    "plain": vivit,
    "convgru, affine": lambda: vivit(
        modulator=ConvGRU(24, 2, 4, hidden=5), adapter=StimulusAdapter("affine")
    ),
    "film, resampled": lambda: vivit(
        modulator=FiLM(24, 2, 4), frame_rates={"mouse.1": FrameRates(30.0, 25.0)}
    ),
    "without stream": lambda: vivit(frame_stream=False, nonlinearity="elu"),
    "one block": lambda: vivit(layers=0),
    "several blocks": lambda: vivit(layers=[-1, 0], modulator=ConvGRU(24, 2, 4, hidden=5)),
    "resnet": resnet,
    "energy": energy,
    "linear": linear,
}


def randomised(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def recorded(frames=9, batch=2):
    generator = np.random.default_rng(0)
    return {
        "video": generator.integers(0, 256, (batch, frames, 8, 12), dtype=np.uint8),
        "behaviour": generator.normal(size=(batch, frames, 4)).astype(np.float32),
        "pupil_centre": generator.normal(15, 5, size=(batch, frames, 2)),
    }


@torch.no_grad()
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_directory_gives_equal_rates_bit_for_bit(make, tmp_path):
    model = randomised(make)
    save_neural_model(model, tmp_path / "model", FACTS, training={"steps": 10})
    loaded = load_neural_model(tmp_path / "model")
    assert not loaded.training
    assert loaded.facts == FACTS
    data = recorded()
    video = (torch.tensor(data["video"])[:, None].float() - 255 * 0.4) / (255 * 0.2)
    behaviour = (torch.tensor(data["behaviour"])[..., [0, 2]] - torch.tensor([1.0, -2.0])) / (
        torch.tensor([2.0, 0.5])
    )
    pupil = torch.tensor(data["pupil_centre"]).float() - torch.tensor([10.0, 20.0])
    pupil = pupil / torch.tensor([2.0, 4.0])
    for session in ("mouse.1", "mouse/2"):
        expected = model(video, behaviour, session, pupil)
        assert torch.equal(loaded.predict(**data, session=session), expected)
    assert loaded.model.frame_rates == model.frame_rates
    assert settings_of(loaded.model) == settings_of(model)
    card = (tmp_path / "model" / "README.md").read_text()
    assert ("| blocks read |" in card) == isinstance(model.encoder, ViViT)


def test_a_run_directory_and_its_encoder_open_too(tmp_path):
    model = randomised(vivit)
    save_neural_model(model, tmp_path / "run" / "model", FACTS)
    data = recorded()
    found = load_neural_model(tmp_path / "run").predict(**data, session="mouse/2")
    expected = load_neural_model(tmp_path / "run" / "model").predict(**data, session="mouse/2")
    assert torch.equal(found, expected)
    core = load_encoder(tmp_path / "run" / "model" / "encoder")
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(core.state_dict()[name], value)
    assert core.preprocessing["mean"] == [0.4]
    assert core.preprocessing["fps"] == 30.0


def test_nothing_is_left_behind_and_other_directories_stay(tmp_path):
    model, place = randomised(vivit), tmp_path / "model"
    save_neural_model(model, place, FACTS)
    (place / "notes.txt").write_text("mine")
    save_neural_model(randomised(linear), place, FACTS)
    assert sorted(path.name for path in place.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "notes.txt",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("…")
    with pytest.raises(ValueError, match="exists and is no model of neurons"):
        save_neural_model(model, other, FACTS)
    model.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="exists and is no model of neurons"):
        save_neural_model(model, tmp_path / "encoder", FACTS)


def test_the_card_of_a_model_runs(tmp_path):
    model = randomised(MODELS["convgru, affine"])
    save_neural_model(model, tmp_path / "model", FACTS, training={"steps": 10})
    card = (tmp_path / "model" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    names = {}
    exec(code.replace("path/to/this/directory", str(tmp_path / "model")), names)
    assert names["rates"].shape == (1, 120, 3)
    assert "| mouse/2 | 2 | spikes | 30 | 8×12 | 2 |" in card


def test_config_and_card_name_the_blocks_and_their_weights(tmp_path):
    model = vivit(layers="all")
    with torch.no_grad():
        model.block_reader.logits.copy_(torch.tensor([0.8, 0.2]).log())
    save_neural_model(model, tmp_path / "model", FACTS)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["layers"] == [0, 1]
    card = (tmp_path / "model" / "README.md").read_text()
    told = (
        "sum of block 0 (0.800), block 1 (0.200); the encoder has blocks 0 (spatial), 1 (temporal)"
    )
    assert f"| blocks read | {told} |" in card
    saved["layers"] = [0, 5]
    (tmp_path / "model" / "config.json").write_text(json.dumps(saved))
    with pytest.raises(
        NeuralModelError, match=r"layers names block 5; the encoder has blocks 0 .spatial., 1"
    ):
        load_neural_model(tmp_path / "model")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "model"
    model = NeuralModel(encoder(), None, ConvGRU(24, 2, 4, hidden=3), {"a": GaussianReadout(3, 24)})
    told = facts("a", pupil_mean=None, pupil_std=None, recorded_channels=3)
    save_neural_model(model, place, [told])
    return load_neural_model(place)


@pytest.fixture(scope="module")
def with_pupil():
    readouts = {"a": GaussianReadout(3, 24, shifter=True)}
    model = NeuralModel(encoder(), None, ConvGRU(24, 2, 4, hidden=3), readouts)
    return NeuralPredictor(model, [facts("a", recorded_channels=4)]).eval()


def test_a_tail_of_nan_is_padding(with_pupil):
    data = recorded(frames=12)
    names = ("video", "behaviour", "pupil_centre")
    inputs = {name: data[name].astype(np.float32) for name in names}
    rates = with_pupil.predict(**inputs)
    for name in names:
        padded = {key: value.copy() for key, value in inputs.items()}
        padded[name][1, 7:] = np.nan
        found = with_pupil.predict(**padded)
        torch.testing.assert_close(found[0], rates[0])
        torch.testing.assert_close(found[1, :7], rates[1, :7])
        assert found[1, 7:].isnan().all()


@pytest.mark.parametrize("name", ["video", "behaviour", "pupil_centre"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_other_numbers_that_are_not_finite_are_refused(with_pupil, name, number):
    inputs = {key: value.astype(np.float64) for key, value in recorded().items()}
    inputs[name][1, 4, 0] = number
    with pytest.raises(NeuralModelError, match=f"^{name} of trial 1 is not finite at frame 4 of 9"):
        with_pupil.predict(**inputs)
    with pytest.raises(NeuralModelError, match=f"^{name} of trial 1 is not finite at frame 4 of 9"):
        with_pupil.predict(**{key: [*value] for key, value in inputs.items()})
    inputs[name][1] = np.nan
    with pytest.raises(NeuralModelError, match=f"{name} of trial 1 consists only of NaN; leave"):
        with_pupil.predict(**inputs)


def test_trials_of_different_lengths_are_a_list(with_pupil):
    trials = [recorded(frames=frames, batch=1) for frames in (9, 5, 12)]
    found = with_pupil.predict(
        **{name: [trial[name][0] for trial in trials] for name in trials[0]},
        frames_per_second=29.97,
    )
    for rates, trial in zip(found, trials, strict=True):
        assert torch.equal(rates, with_pupil.predict(**trial)[0])
    assert with_pupil.predict([]) == []


def test_no_trials_and_no_frames_give_no_rates(with_pupil):
    for batch, frames in ((0, 9), (2, 0), (0, 0)):
        given = {
            "video": np.zeros((batch, frames, 8, 12), np.uint8),
            "behaviour": np.zeros((batch, frames, 4)),
            "pupil_centre": np.zeros((batch, frames, 2)),
        }
        assert with_pupil.predict(**given).shape == (batch, frames, 3)
        given["video"] = given["video"].astype(np.float32)
        assert with_pupil.predict(given["video"]).shape == (batch, frames, 3)


def test_a_model_in_training_mode_predicts_as_in_evaluation(with_pupil):
    data = recorded()
    rates = with_pupil.predict(**data)
    with_pupil.train()
    with_pupil.model.encoder.eval()
    modes = [module.training for module in with_pupil.modules()]
    assert torch.equal(with_pupil.predict(**data), rates)
    assert [module.training for module in with_pupil.modules()] == modes
    with_pupil.eval()


def test_channels_of_models_that_do_not_know_their_number_are_at_least_those_used(predictor):
    earlier = NeuralPredictor(
        predictor.model, [dataclasses.replace(predictor.facts[0], recorded_channels=None)]
    )
    video = recorded()["video"]
    assert earlier.predict(video, np.zeros((2, 9, 4))).shape == (2, 9, 3)
    with pytest.raises(NeuralModelError, match=r"\(2, 9, at least 3\)"):
        earlier.predict(video, np.zeros((2, 9, 2)))


def test_behaviour_of_a_session_without_any_is_refused(predictor):
    none = dataclasses.replace(
        predictor.facts[0],
        behaviour_channels=(), behaviour_mean=(), behaviour_std=(), recorded_channels=0,
    )  # fmt: skip
    without = NeuralPredictor(predictor.model, [none])
    video = recorded()["video"]
    rates = without.predict(video)
    assert torch.equal(without.predict(video, np.zeros((2, 9, 0))), rates)
    with pytest.raises(NeuralModelError, match="recorded without behaviour; omit the argument"):
        without.predict(video, np.zeros((2, 9, 3)))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, number):
    for name in ("model", "encoder"):
        model = randomised(vivit)
        with torch.no_grad():
            if name == "model":
                model.readouts["mouse.1"].features[0, 0] = number
            else:
                next(model.encoder.parameters()).flatten()[0] = number
        save_neural_model(model, tmp_path / name, FACTS)
        with pytest.raises(NeuralModelError, match="holds weights that are NaN or infinite: "):
            load_neural_model(tmp_path / name)


def test_statistics_that_are_not_finite_are_refused(tmp_path):
    save_neural_model(randomised(resnet), tmp_path / "model", FACTS)
    file = tmp_path / "model" / "config.json"
    saved = json.loads(file.read_text())
    saved["sessions"][0]["behaviour_mean"][1] = float("nan")
    file.write_text(json.dumps(saved))
    with pytest.raises(
        NeuralModelError, match=r"session 'mouse.1': behaviour_mean is \[1.0, nan\]"
    ):
        load_neural_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [("video_std", 0), ("behaviour_std", [0, 0]), ("frames_per_second", -1), ("unit_ids", [7, 3])],
)
def test_facts_that_no_session_has_are_refused(tmp_path, name, value):
    save_neural_model(randomised(resnet), tmp_path / "model", FACTS)
    file = tmp_path / "model" / "config.json"
    saved = json.loads(file.read_text())
    saved["sessions"][0][name] = value
    file.write_text(json.dumps(saved))
    with pytest.raises(NeuralModelError, match=r"facts of session 'mouse.1'"):
        load_neural_model(tmp_path / "model")


def test_pixels_of_any_type_give_the_same_rates(predictor):
    video = torch.tensor(recorded()["video"])
    rates = predictor.predict(video)
    assert torch.equal(predictor.predict(video[:, None]), rates)
    assert torch.equal(predictor.predict(video.double()), rates)
    for kind in (np.int64, np.uint16, ">f4"):
        assert torch.equal(predictor.predict(video.numpy().astype(kind)), rates)
    backwards = video.numpy()[:, ::-1].copy()[:, ::-1]  # negative strides
    assert torch.equal(predictor.predict(backwards), rates)
    assert rates.shape == (2, 9, 3)


def test_absent_behaviour_is_the_mean(predictor):
    video = recorded()["video"]
    behaviour = np.zeros((2, 9, 3))
    behaviour[...] = [1.0, 123.0, -2.0]
    assert torch.equal(predictor.predict(video, behaviour), predictor.predict(video))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"video": np.zeros((1, 5, 9, 12))}, "session 'a' needs .* with H = 8 and W = 12"),
        (
            {"video": np.full((1, 5, 8, 12), 0.5)},
            r"pixels must range from 0 to 255: give video \*",
        ),
        ({"session": "b"}, "session 'b' is unknown; give one of the model's sessions: a"),
        (
            {"behaviour": np.zeros((1, 4, 3))},
            r"behaviour has shape \(1, 4, 3\); session '.*' needs",
        ),
        ({"behaviour": np.zeros((1, 5, 2))}, r"\(1, 5, 3\), with all recorded channels"),
        ({"behaviour": np.zeros((1, 5, 4))}, r"\(1, 5, 3\), with all recorded channels"),
        ({"video": np.zeros((1, 5, 8, 12), bool)}, r"boolean; .* give video \* np\.uint8\(255\)"),
        ({"video": np.full((1, 5, 8, 12), -0.5)}, r"from -0.5 to -0.5; give pixels from 0 to 255"),
        ({"video": np.full((1, 5, 8, 12), 65535, np.uint16)}, "from 65535 to 65535; give pixels"),
        ({"video": np.full((1, 5, 8, 12), 1)}, r"values up to 1; .* give video \* 255"),
        (
            {"video": np.stack([np.full((5, 8, 12), 100.0), np.full((5, 8, 12), 0.5)])},
            "video of trial 1 has values up to 0.5",
        ),
        ({"video": np.full((1, 5, 8, 12), "a")}, "video is not an array of numbers: can't convert"),
        ({"video": np.zeros((1, 5, 8, 12), complex)}, "video is complex"),
        ({"frames_per_second": 30.2}, "is 30.2, but session 'a' has 30 frames per second"),
        ({"frames_per_second": 25}, "is 25, but session 'a' has 30 frames per second.*resample"),
        ({"video": [np.zeros((5, 8, 12))], "behaviour": np.zeros((1, 5, 3))}, "give behaviour as"),
        ({"video": [np.zeros((5, 8, 12))] * 2, "behaviour": [np.zeros((5, 3))]}, "a list of 2 tri"),
        ({"pupil_centre": np.zeros((1, 5, 2))}, "trained without the pupil's centre"),
    ],
)
def test_inputs_that_were_not_recorded_are_refused(predictor, inputs, message):
    with pytest.raises(NeuralModelError, match=message):
        predictor.predict(**({"video": np.zeros((1, 5, 8, 12))} | inputs))


def test_facts_of_other_sessions_are_refused_when_saving(tmp_path):
    model = vivit()
    with pytest.raises(
        NeuralModelError, match=r"has sessions mouse.1, mouse/2, but the SessionFacts are of"
    ):
        save_neural_model(model, tmp_path / "model", FACTS[:1])
    with pytest.raises(NeuralModelError, match=r"'mouse/2' have 3 neurons, but its readout has 2"):
        save_neural_model(model, tmp_path / "model", [FACTS[0], facts("mouse/2")])
    assert list(tmp_path.iterdir()) == []


def test_damaged_directories_are_reported_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no model of neurons: config\.json is missing"):
        load_neural_model(tmp_path)
    place = tmp_path / "model"
    save_neural_model(vivit(), place, FACTS)
    saved = json.loads((place / "config.json").read_text())

    def refused(change, message):
        (place / "config.json").write_text(json.dumps(saved | change))
        with pytest.raises(NeuralModelError, match=message) as error:
            load_neural_model(place)
        assert "\n" not in str(error.value)

    refused({"format": 2}, "does not have model of neurons format 1")
    refused({"modulator": {"kind": "lstm"}}, "modulator kind 'lstm' is unknown")
    refused({"core": {"kind": "cnn"}}, "core kind 'cnn' is unknown")
    refused({"adapter": {}}, "describes no model of neurons")
    refused(
        {"adapter": {"kind": "scale"}}, "does not fit the model of config.json: adapter.log_scale"
    )
    readouts = saved["readouts"] | {"mouse/2": saved["readouts"]["mouse/2"] | {"neurons": 5}}
    refused({"readouts": readouts}, r"1\.mean has shape \(2, 2\) instead of \(5, 2\)")
    (place / "config.json").write_text(json.dumps(saved))
    (place / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(NeuralModelError, match=r"model\.safetensors is damaged"):
        load_neural_model(place)
    save_neural_model(vivit(), tmp_path / "other", FACTS)
    (tmp_path / "other/encoder/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(NeuralModelError, match="the model's encoder cannot be read"):
        load_neural_model(tmp_path / "other")
    encoder().save_pretrained(tmp_path / "encoder")
    with pytest.raises(NeuralModelError, match="holds an encoder and no model of neurons"):
        load_neural_model(tmp_path / "encoder")


def test_facts_are_saved_whole(tmp_path):
    full = [dataclasses.replace(FACTS[0], held_out_units=(3,)), FACTS[1]]
    save_neural_model(vivit(), tmp_path / "model", full)
    assert load_neural_model(tmp_path / "model").facts == full
