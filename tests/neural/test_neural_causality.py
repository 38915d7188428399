"""Rates have zero gradients to later frames and later behaviour, and nonzero ones to their own frame."""

import pytest
import torch
from small_models import VARIANTS, clip, encoder, model, walk

from ssl_vivit import create_encoder
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.readout.gaussian import GaussianReadout

FRAMES = 11
RANDOM = {"patch_dropout": 0.2, "attention_dropout": 0.1, "mlp_dropout": 0.1, "drop_path": 0.2}

# name: (settings of the encoder, behaviour channels, modulator, further parts)
DEEPER = {"spatial_depth": 2, "temporal_depth": 2}
GRU, FILM = ConvGRU, FiLM
CASES = {
    **{
        f"{variant}, stride {stride}": ({"variant": variant, "tubelet_stride": (stride, 4, 4)}, 2, GRU, {})
        for variant in VARIANTS
        for stride in (1, 2, 4)
    },
    "42 channels": ({}, 42, GRU, {}),
    "film, 42 channels": ({}, 42, FILM, {}),
    "film, stride 2": ({"tubelet_stride": (2, 4, 4)}, 2, FILM, {}),
    "convgru without behaviour": ({}, 0, GRU, {}),
    "no modulator": ({}, 0, None, {}),
    "no overlap, no padding": ({"tubelet_size": (2, 4, 4), "temporal_padding": "none"}, 2, GRU, {}),
    "spatial overlap": ({"tubelet_size": (4, 4, 6), "tubelet_stride": (4, 4, 3)}, 2, FILM, {}),
    "registers, class token": ({"register_tokens": 1, "class_token": True}, 2, GRU, {}),
    "temporal class token": ({"class_token": True, "pooling": "temporal_cls"}, 2, GRU, {}),
    "elu": ({}, 2, GRU, {"nonlinearity": "elu"}),
    "adapter": ({}, 2, GRU, {"adapter": "affine"}),
    "adapter, scale": ({}, 2, None, {"adapter": "scale"}),
    "30 → 25": ({}, 2, GRU, {"frame_rates": {"a": FrameRates(30.0, 25.0)}}),
    "30 → 7": ({}, 42, FILM, {"frame_rates": {"a": FrameRates(30.0, 7.0)}}),
    "16 → 30, adapter": ({}, 2, GRU, {"adapter": "affine", "frame_rates": {"a": FrameRates(16.0, 30.0)}}),
    "15.49 → 24, stride 2": ({"tubelet_stride": (2, 4, 4)}, 2, GRU, {"frame_rates": {"a": FrameRates(15.49, 24.0)}}),
    "a spatial block": (DEEPER, 2, GRU, {"layers": 0}),
    "a temporal block, film": (DEEPER, 2, FILM, {"layers": 2}),
    "all blocks": (DEEPER, 2, GRU, {"layers": "all"}),
    "all blocks, stride 2": (DEEPER | {"tubelet_stride": (2, 4, 4)}, 2, GRU, {"layers": "all"}),
    "all blocks, learned positions": (
        DEEPER | {"temporal_positions": "learned", "num_frames": 8}, 2, GRU, {"layers": "all"},
    ),
    "spatial and temporal block, 30 → 25": (
        DEEPER, 2, GRU, {"layers": [1, 2], "frame_rates": {"a": FrameRates(30.0, 25.0)}},
    ),
    **{
        f"{variant}, {layers}": ({"variant": variant, "depth": 3}, 2, GRU, {"layers": layers})
        for variant in VARIANTS
        if variant != "factorized_encoder"
        for layers in (0, "all")
    },
}  # fmt: skip
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def built(case):
    settings, channels, modulator, parts = case
    core = encoder(**(settings | RANDOM))
    parts = dict(parts)
    if "adapter" in parts:
        parts["adapter"] = StimulusAdapter(parts["adapter"])
        with torch.no_grad():
            for parameter in parts["adapter"].parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    if modulator is not None:
        sizes = {"hidden": 6} if modulator is GRU else {}
        stride = core.config.kernel_stride[0]
        parts["modulator"] = modulator(24, channels, stride, embedding=8, **sizes)
    return model(core, neurons=3, **parts)


def sees(whole, *, times=range(FRAMES)):
    """Return for each frame the frames of video, and of behaviour, to which its rates have gradients."""
    video, channels = clip(frames=FRAMES).requires_grad_(), max(whole.behaviour_channels, 2)
    behaviour = walk(frames=FRAMES, channels=channels).requires_grad_()
    torch.manual_seed(3)
    rates = whole(video, behaviour)
    for t in times:
        of_video, of_behaviour = torch.autograd.grad(
            rates[:, t].sum(), (video, behaviour), retain_graph=True, materialize_grads=True
        )
        yield t, of_video.abs().amax((0, 1, 3, 4)), of_behaviour.abs().amax((0, 2))


@pytest.mark.parametrize("training", [False, True])
@by_case
def test_rates_see_their_own_frame_and_behaviour_and_no_later_one(case, training):
    whole = built(case).train(training)
    for t, frames, behaviour in sees(whole):
        assert (frames[t + 1 :] == 0).all()
        assert (behaviour[t + 1 :] == 0).all()
        assert frames[t] > 0
        assert (behaviour[t] > 0) == (whole.behaviour_channels > 0)


@by_case
def test_rates_see_the_past_without_gaps(case):
    """Each rate sees all earlier frames that the encoder and the frame stream can reach."""
    whole = built(case)
    rates = whole.frame_rates["a"]
    shown = set(range(FRAMES)) if rates is None else set(rates.shown(FRAMES).tolist())
    t, frames, behaviour = next(iter(sees(whole, times=[FRAMES - 1])))
    reach = set(range(t - whole.frame_stream.kernel[0] + 1, t + 1))
    ended = (
        whole.tokens(clip(frames=FRAMES), None, rates)[1][t] * whole.encoder.config.kernel_stride[0]
    )
    last = sorted(range(FRAMES) if rates is None else rates.shown(FRAMES).tolist())[: int(ended)]
    expected = [frame in reach or frame in (shown & set(last)) for frame in range(FRAMES)]
    assert [bool(value) for value in frames > 0] == expected
    if isinstance(whole.modulator, ConvGRU) and whole.behaviour_channels:
        assert [bool(value) for value in behaviour > 0] == expected


@torch.no_grad()
@by_case
def test_a_change_of_one_frame_shows_at_once_and_never_earlier(case):
    whole, video = built(case), clip(frames=FRAMES)
    behaviour = walk(frames=FRAMES, channels=max(whole.behaviour_channels, 2))
    before = whole(video, behaviour)
    for t in range(FRAMES):
        other = video.clone()
        other[:, :, t] += 1
        change = (whole(other, behaviour) - before).abs().amax((0, 2))
        assert change[t] > 1e-4
        assert (change[:t] == 0).all()
        other = behaviour.clone()
        other[:, t] += 1
        change = (whole(video, other) - before).abs().amax((0, 2))
        assert change[t] > 1e-4 if whole.behaviour_channels else change[t] == 0
        assert (change[:t] == 0).all()


@pytest.mark.parametrize("sampling", ["point", "mask"])
@pytest.mark.parametrize("training", [False, True])
def test_gaussian_readouts_keep_it_with_pupils_too(sampling, training):
    torch.manual_seed(0)
    readout = GaussianReadout(3, 24, sampling=sampling, shifter=True)
    whole = NeuralModel(encoder(), None, ConvGRU(24, 2, 4, hidden=6), {"a": readout})
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    whole.double().train(training)
    inputs = [clip(frames=9), walk(frames=9), walk(frames=9) / 3]
    video, behaviour, pupil = (value.requires_grad_() for value in inputs)
    rates = whole(video, behaviour, "a", pupil)
    for t in range(9):
        gradients = torch.autograd.grad(
            rates[:, t].sum(), (video, behaviour, pupil), retain_graph=True
        )
        for gradient, axis in zip(gradients, (2, 1, 1), strict=True):
            assert (gradient.movedim(axis, 0)[t + 1 :] == 0).all()
            assert gradient.movedim(axis, 0)[t].abs().max() > 0


@pytest.mark.parametrize("case", ["factorized_encoder, stride 2", "all blocks", "a spatial block"])
def test_gradient_checkpointing_changes_nothing(case):
    whole = built(CASES[case]).train()
    expected = next((frames, behaviour) for _, frames, behaviour in sees(whole, times=[7]))
    whole.encoder.set_grad_checkpointing()
    video = clip(frames=FRAMES).requires_grad_()
    behaviour = walk(frames=FRAMES).requires_grad_()
    torch.manual_seed(3)
    found = torch.autograd.grad(whole(video, behaviour)[:, 7].sum(), (video, behaviour))
    torch.testing.assert_close(found[0].abs().amax((0, 1, 3, 4)), expected[0])
    torch.testing.assert_close(found[1].abs().amax((0, 2)), expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", ["vivit_neural_small", "vivit_neural_baseline"])
def test_named_sizes_at_their_full_width(size, training):
    core = create_encoder(size, drop_path=0.1)
    channels = core.config.embed_dim
    readouts = {"a": GaussianReadout(4, channels)}
    whole = NeuralModel(core, StimulusAdapter("affine"), ConvGRU(channels, 42, 4), readouts)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    whole.train(training)
    video = torch.randn(1, 1, 22, 36, 64, requires_grad=True)
    behaviour = torch.randn(1, 22, 42, requires_grad=True)
    rates = whole(video, behaviour)
    for t in (0, 2, 3, 13, 21):
        of_video, of_behaviour = torch.autograd.grad(
            rates[:, t].sum(), (video, behaviour), retain_graph=True
        )
        assert (of_video[:, :, t + 1 :] == 0).all()
        assert (of_behaviour[:, t + 1 :] == 0).all()
        assert of_video[:, :, t].abs().max() > 0
        assert of_behaviour[:, t].abs().max() > 0
