"""A stream equals whole-clip predictions, for all presets and cores, contexts, resampling, padding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import clip, encoder, model, walk
from test_neural_causality import CASES, built

from recipes.finetune_neural import NeuralRecipe
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural import NeuralPredictor
from ssl_vivit.neural.building import build_neural_model
from ssl_vivit.neural.cores.feature_cache import FeatureCache
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.past import Past
from ssl_vivit.neural.modulators import ConvGRU
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.training import parse

PRESETS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("neural_*.yaml"))
NARROW = {"embed_dim": 24, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 2}
UNITS = (7, 3, 9, 4)


def facts(frame_size=(36, 64), **others):
    values = {
        "name": "a", "unit_ids": UNITS, "frames_per_second": 30.0, "kind": "spikes",
        "frame_size": frame_size, "video_mean": 0.4, "video_std": 0.2,
        "behaviour_channels": (0, 2), "behaviour_mean": (1.0, -2.0), "behaviour_std": (2.0, 0.5),
        "pupil_mean": (10.0, 20.0), "pupil_std": (2.0, 4.0), "mean_response": (0.2,) * 4,
        "coordinates": ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 2.0)),
        "split": {"train": (0, 1), "validation": (2,)}, "recorded_channels": 4,
    }  # fmt: skip
    return SessionFacts(**(values | others))


def predictor(preset, core="vivit", **overrides):
    """Return a preset's model in which all parts have an effect."""
    config = parse(NeuralRecipe, ["--config", str(preset)])
    choice = replace(config.encoder, overrides=config.encoder.overrides | overrides)
    torch.manual_seed(0)
    made, _ = build_neural_model(
        core, choice, config.model, config.baseline, [facts()], longest=300
    )
    return NeuralPredictor(randomised(made), [facts()])


def randomised(made):
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.endswith(("mean", "log_scale")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
        for readout in made.readouts.values():
            if isinstance(readout, GaussianReadout):
                readout.features.copy_(torch.randn_like(readout.features) / readout.channels**0.5)
    return made.eval()


def recorded(frames, frame_size=(36, 64)):
    draw = np.random.default_rng(0)
    return (
        draw.integers(0, 256, (frames, *frame_size), np.uint8),
        draw.normal(size=(frames, 4)).astype(np.float32),
        draw.normal(15, 5, size=(frames, 2)),
    )


def streamed(stream, *inputs):
    parts = zip(*inputs, strict=True)
    return torch.stack([stream.step(*frame) for frame in parts])


def assert_equal_to_predict(made, frames, context=None, atol=1e-5):
    video, behaviour, pupil = recorded(frames, made.facts[0].frame_size)
    whole = made.predict(video[None], behaviour[None], "a", pupil[None], context=context)[0]
    found = streamed(made.stream("a", context=context), video, behaviour, pupil)
    assert float(whole.std(0).median()) > 0.02
    torch.testing.assert_close(found, whole, rtol=0, atol=atol)
    return whole


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_streams_the_rates_of_the_whole_clip(preset):
    made = predictor(preset, **NARROW)
    whole = assert_equal_to_predict(made, 37)
    bounded = assert_equal_to_predict(made, 37, context=0.3)
    assert (whole - bounded).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("context", [None, 1.0])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_at_its_true_size(preset, context):
    assert_equal_to_predict(predictor(preset), 61, context)


@pytest.mark.parametrize("core", ["ln", "ln_separable", "energy", "resnet", "x3d"])
def test_baselines_stream_too_and_a_context_leaves_them_as_they_are(core):
    made = predictor(PRESETS[0].with_name("neural_sample.yaml"), core)
    assert_equal_to_predict(made, 25)
    assert_equal_to_predict(made, 25, context=0.1)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_model_in_double_precision(name, window):
    """The cases are those of the tests of causality: variants, strides, resampling, adapters, layers."""
    whole = built(CASES[name])
    # Learned positions end after 8 frames.
    frames = 11 if "learned" in name else 30
    video = clip(frames=frames)
    behaviour = walk(frames=frames, channels=max(whole.behaviour_channels, 2))
    with whole.attention_window(window):
        expected = whole(video, behaviour)
    past = Past(window)
    for t in range(frames):
        rates = whole.step(video[:, :, t : t + 1], past, behaviour[:, t : t + 1])
        torch.testing.assert_close(rates, expected[:, t : t + 1], rtol=0, atol=1e-11)


def small(settings=None, rates=None, **parts):
    """Return a float32 model for frames of 8×12 in which attention has an effect."""
    core = encoder(spatial_depth=1, temporal_depth=2, **(settings or {}))
    stride = core.config.kernel_stride[0]
    parts.setdefault("modulator", ConvGRU(24, 2, stride, hidden=6, embedding=8))
    readouts = {"a": GaussianReadout(4, 24, shifter=True)}
    made = model(core, readouts=readouts, frame_rates={"a": rates}, **parts).float()
    with torch.no_grad():
        made.readout().features.mul_(3)
    return NeuralPredictor(made, [facts((8, 12))])


def test_a_context_is_so_many_tokens_at_the_rate_that_the_encoder_sees():
    made = small({"tubelet_stride": (2, 4, 4)}, FrameRates(30.0, 20.0))
    for context, steps in ((0.1, 1), (0.3, 3), (0.34, 3), (0.36, 4), (0.01, 1)):
        assert made.stream(context=context)._past.window == steps
        video, behaviour, pupil = (each[None] for each in recorded(25, (8, 12)))
        with made.model.attention_window(steps):
            expected = made.predict(video, behaviour, pupil_centre=pupil)
        found = made.predict(video, behaviour, pupil_centre=pupil, context=context)
        assert torch.equal(found, expected)
    full = made.predict(video, behaviour, pupil_centre=pupil)
    assert (full - found).abs().max() > 1e-3
    torch.testing.assert_close(
        made.predict(video, behaviour, pupil_centre=pupil, context=60), full, rtol=0, atol=1e-5
    )


def test_a_context_does_not_read_features_that_a_cache_keeps_of_the_whole_past():
    made = small()
    made.model.requires_grad_(False)
    made.model.cache = FeatureCache(1.0)
    video = recorded(25, (8, 12))[0][None]
    whole = made.predict(video)
    assert len(made.model.cache)
    bounded = made.predict(video, context=0.2)
    assert (whole - bounded).abs().max() > 1e-3
    assert torch.equal(made.predict(video), whole)
    made.model.cache = None
    assert torch.equal(made.predict(video, context=0.2), bounded)


@pytest.mark.parametrize("core", ["vivit", "resnet", "ln"])
def test_a_later_frame_changes_no_rates_that_were_returned(core):
    if core == "vivit":
        made = small({"tubelet_stride": (2, 4, 4)})
    else:
        made = predictor(PRESETS[0].with_name("neural_sample.yaml"), core)
    video, behaviour, pupil = recorded(12, made.facts[0].frame_size)
    expected = streamed(made.stream(), video, behaviour, pupil)
    for changed in range(12):
        other = video.copy()
        other[changed:] = 255 - other[changed:]
        stream = made.stream()
        frame, signals, centre = np.empty_like(video[0]), np.empty(4, np.float32), np.empty(2)
        returned, copies = [], []
        for parts in zip(other, behaviour, pupil, strict=True):
            # One buffer for all frames, as cameras have.
            frame[:], signals[:], centre[:] = parts
            returned.append(stream.step(frame, signals, centre))
            copies.append(returned[-1].clone())
            frame[:], signals[:], centre[:] = 0, 0, 0
        assert torch.equal(torch.stack(returned), torch.stack(copies))
        for before, rates in zip(expected[:changed], returned, strict=False):
            assert torch.equal(rates, before)
        assert not torch.equal(returned[changed], expected[changed])


def test_streams_of_one_model_do_not_meet():
    made = small()
    inputs = recorded(10, (8, 12))
    expected = streamed(made.stream(), *inputs)
    one, other = made.stream(), made.stream()
    for t in range(10):
        other.step(255 - inputs[0][t], inputs[1][t])
        assert torch.equal(one.step(*(part[t] for part in inputs)), expected[t])


def held_bytes(past: Past) -> int:
    """Return the memory of all tensors that a stream keeps."""
    total = 0
    for kept in past.kept.values():
        for part in kept if isinstance(kept, tuple) else (kept,):
            if isinstance(part, torch.Tensor):
                total += part.untyped_storage().nbytes()
            elif isinstance(part, KeyValueCache):
                total += part.nbytes
    return total


@pytest.mark.parametrize("variant", ["joint", "factorized_encoder", "factorized_self_attention"])
def test_memory_is_bounded_with_a_context_and_grows_without(variant):
    core = encoder(variant, tubelet_size=(2, 4, 4), register_tokens=1)
    made = model(core, modulator=ConvGRU(24, 0, 2, hidden=6)).float()
    predictor = NeuralPredictor(
        made, [facts((8, 12), unit_ids=(1, 2, 3, 4, 5), mean_response=(0.2,) * 5)]
    )
    sizes = {}
    for context in (None, 1.0):
        stream = predictor.stream(context=context)
        sizes[context] = []
        for frame in recorded(200, (8, 12))[0]:
            stream.step(frame)
            sizes[context].append(held_bytes(stream._past))
    # After so many frames the room for keys and values has doubled twice.
    assert sizes[None][199] > 1.9 * sizes[None][99] > 1.9**2 * sizes[None][49]
    # A context of a second holds 15 tokens, which 30 frames fill.
    assert sizes[1.0][29] > sizes[1.0][3]
    assert set(sizes[1.0][31:]) == {sizes[1.0][31]}


def test_behaviour_and_pupil_may_be_left_out():
    made = small()
    video = recorded(9, (8, 12))[0]
    whole = made.predict(video[None])[0]
    torch.testing.assert_close(streamed(made.stream(), video), whole, rtol=0, atol=1e-5)
    mean = np.array([1.0, 0.0, -2.0, 0.0], np.float32)
    stream = made.stream()
    given = torch.stack(
        [stream.step(frame, mean if t % 2 else None) for t, frame in enumerate(video)]
    )
    torch.testing.assert_close(given, whole, rtol=0, atol=1e-5)


def test_units_are_chosen_by_their_ids():
    made = small()
    inputs = recorded(5, (8, 12))
    whole = streamed(made.stream(), *inputs)
    stream = made.stream(units=[9, 7])
    assert stream.unit_ids == (9, 7)
    assert torch.equal(streamed(stream, *inputs), whole[:, [2, 0]])
    assert made.stream().unit_ids == UNITS


def test_a_model_in_training_mode_streams_as_in_evaluation_and_stays_in_training():
    made = small({"drop_path": 0.5, "patch_dropout": 0.5, "mlp_dropout": 0.5})
    inputs = recorded(9, (8, 12))
    expected = streamed(made.stream(), *inputs)
    made.train()
    made.model.readout().eval()
    assert torch.equal(streamed(made.stream(), *inputs), expected)
    assert made.model.encoder.training
    assert not made.model.readout().training


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_tail_of_nan_is_padding_as_in_predict(part):
    made = small()
    inputs = [each.astype(np.float32) for each in recorded(12, (8, 12))]
    inputs[part][9:] = np.nan
    video, behaviour, pupil = (each[None] for each in inputs)
    whole = made.predict(video, behaviour, pupil_centre=pupil)[0]
    stream = made.stream()
    found = streamed(stream, *inputs)
    assert found[9:].isnan().all()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5, equal_nan=True)
    with pytest.raises(
        NeuralModelError,
        match=r"frame 12 follows a frame with an input of only NaN.*begin a new stream",
    ):
        stream.step(*(each[0] for each in inputs))


def test_what_does_not_fit_is_refused_and_leaves_the_stream_as_it_was():
    made = small()
    video, behaviour, pupil = recorded(9, (8, 12))
    expected = streamed(made.stream(), video, behaviour, pupil)
    spotted = video[0].astype(np.float32)
    spotted[2, 3] = np.inf
    unknown = behaviour[0].copy()
    unknown[1] = np.nan
    floats = np.random.default_rng(0).random((8, 12))
    refused = [
        ((video[0][1:],), r"frame has shape \(7, 12\); session 'a' needs \(H, W\) = \(8, 12\)"),
        ((video,), r"frame has shape \(9, 8, 12\); session"),
        ((video[0] > 3,), "video is boolean"),
        (("no",), "frame is not an array of numbers"),
        ((spotted,), "frame is not finite at frame 4; interpolate"),
        ((video[0] - 300.0,), "frame 4 has values from -300 to"),
        ((video[0], behaviour[0][:3]), r"behaviour has shape \(3,\); .* \(K,\) = \(4\), with all"),
        ((video[0], behaviour), r"behaviour has shape \(9, 4\); session '.*' needs \(K,\)"),
        ((video[0], unknown), "behaviour is not finite at frame 4"),
        ((video[0], None, pupil), r"pupil_centre has shape \(9, 2\); it must be \(2,\)"),
    ]
    stream = made.stream("a")
    for t in range(9):
        for given, told in refused if t == 4 else []:
            with pytest.raises(NeuralModelError, match=told):
                stream.step(*given)
        rates = stream.step(video[t], behaviour[t], pupil[t])
        assert torch.equal(rates, expected[t])
    # Dark floats are refused until a frame was bright enough to say how pixels are scaled.
    stream.step(floats)
    stream = made.stream()
    stream.step(np.zeros((8, 12)))
    with pytest.raises(NeuralModelError, match=r"frame 1 has values up to 0\.9.*give video"):
        stream.step(floats)


def test_streams_that_cannot_be_opened_are_refused_in_one_line():
    made = small()
    for options, told in (
        ({"session": "b"}, "session 'b' is unknown; give one of the model's sessions: a"),
        ({"units": [3, 5, 6]}, "units 5, 6 are not among the 4 neurons of session 'a'"),
        ({"context": 0}, "context is 0; it must be a finite number of seconds above 0, or None"),
        ({"context": float("nan")}, "context is nan"),
        ({"context": float("inf")}, "context is inf"),
    ):
        with pytest.raises(NeuralModelError, match=told):
            made.stream(**options)
    with pytest.raises(NeuralModelError, match="context is -1"):
        made.predict(recorded(4, (8, 12))[0][None], context=-1)
    without = NeuralPredictor(made.model, [facts((8, 12), pupil_mean=None, pupil_std=None)])
    with pytest.raises(NeuralModelError, match="trained without the pupil's centre"):
        without.stream().step(np.zeros((8, 12), np.uint8), None, np.zeros(2))


def test_learned_positions_are_not_streamed_beyond_their_end():
    made = small({"temporal_positions": "learned", "num_frames": 8}, FrameRates(30.0, 15.0))
    video, behaviour, pupil = recorded(30, (8, 12))
    whole = made.predict(video[None], behaviour[None], pupil_centre=pupil[None])[0]
    stream = made.stream()
    # Two tokens of four frames, each shown for two recorded ones; the third would end at frame 22.
    found = streamed(stream, video[:22], behaviour[:22], pupil[:22])
    torch.testing.assert_close(found, whole[:22], rtol=0, atol=1e-5)
    for _ in range(2):
        with pytest.raises(NeuralModelError, match=r"end after 2 time steps \(8 of its frames\)"):
            stream.step(video[22], behaviour[22])
    with pytest.raises(NeuralModelError, match="learned positions in time end after 2 time steps"):
        made.predict(video[None], context=0.5)
    bounded = made.predict(video[None, :20], context=0.1)[0]
    found = streamed(made.stream(context=0.1), video[:20])
    torch.testing.assert_close(found, bounded, rtol=0, atol=1e-5)


def test_a_core_without_steps_is_refused():
    class Grey(torch.nn.Module):
        channels, temporal_stride = 24, 1

        def dense(self, video):
            return video.expand(-1, 24, -1, -1, -1)

        def to_config(self):
            return {"kind": "grey"}

    made = model(Grey(), readouts={"a": GaussianReadout(4, 24)}).float()
    stream = NeuralPredictor(made, [facts((8, 12))]).stream()
    with pytest.raises(
        NeuralModelError, match=r"Grey has no method step\(frame, past\), so it cannot be streamed"
    ):
        stream.step(np.zeros((8, 12), np.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("context", [None, 0.5])
def test_a_stream_on_a_gpu_gives_the_rates_of_the_cpu(context):
    made = small()
    inputs = recorded(30, (8, 12))
    expected = streamed(made.stream(context=context), *inputs)
    found = streamed(made.to("cuda").stream(context=context), *inputs)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
