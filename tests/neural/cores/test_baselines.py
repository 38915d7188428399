"""Baselines: exactly causal, linear where documented, with the sizes of their papers."""

import json

import pytest
import torch

from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.cores.causal_x3d import CausalX3D, CausalX3DConfig
from ssl_vivit.neural.cores.motion_energy import MotionEnergy
from ssl_vivit.neural.cores.pooled_pixels import AppendedBehaviour, PooledPixels
from ssl_vivit.neural.cores.vivit_core import Core
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.model_settings import build_part
from ssl_vivit.neural.nonlinearity import drive_of
from ssl_vivit.neural.readout.linear import LinearNonlinearConfig, LinearReadout

FRAMES = 6


def resnet(**settings):
    small = {"widths": (4, 6), "depths": (1, 2), "strides": (1, 2), "stem_kernel": (3, 5, 5)}
    return CausalResNet(CausalResNetConfig(**{**small, **settings}))


def x3d(**settings):
    small = {"widths": (4, 6), "depths": (1, 2), "strides": (1, 2)}
    return CausalX3D(CausalX3DConfig(**{**small, **settings}))


def linear(filters):
    config = LinearNonlinearConfig(filters=filters, lags=3, pool=2, rank=2)
    return linear_nonlinear({"s": 3, "t": 2}, (8, 12), behaviour_channels=2, config=config)


def scrambled(module, seed=0):
    """Set random weights, so that all branches have an effect."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + 0.05)
    return module.double()


def clip(channels=1, count=2):
    torch.manual_seed(1)
    return torch.randn(count, channels, FRAMES, 8, 12, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [resnet, x3d])
@pytest.mark.parametrize("frame", range(FRAMES))
def test_no_frame_of_a_core_depends_on_later_frames(build, frame, training):
    core = scrambled(build(drop_path=0.2)).train(training)
    video = clip().requires_grad_()
    torch.manual_seed(2)
    mapped = core.dense(video)
    # Squared, so that a norm over channels does not cancel the sum.
    (gradient,) = torch.autograd.grad(mapped[:, :, frame].square().sum(), video)
    assert not gradient[:, :, frame + 1 :].any()
    assert gradient[:, :, frame].any()
    assert frame == 0 or gradient[:, :, frame - 1].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [resnet, x3d])
def test_features_of_a_shorter_clip_equal_the_first_features(build, training):
    core = scrambled(build()).train(training)
    whole, start = core.dense(clip()), core.dense(clip()[:, :, :4])
    torch.testing.assert_close(start, whole[:, :, :4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("filters", ["full", "separable"])
def test_no_rate_of_a_linear_model_depends_on_later_frames_or_behaviour(filters, training):
    model = scrambled(linear(filters)).train(training)
    video = clip().requires_grad_()
    behaviour = torch.randn(2, FRAMES, 2, dtype=torch.float64, requires_grad=True)
    for frame in range(FRAMES):
        rates = model(video, behaviour, "s")[:, frame].sum()
        seen, moved = torch.autograd.grad(rates, (video, behaviour))
        assert not seen[:, :, frame + 1 :].any()
        assert not moved[:, frame + 1 :].any()
        assert seen[:, :, frame].any()
        assert moved[:, frame].any()
        # Three lags: the frame itself and two before it.
        assert not seen[:, :, : max(0, frame - 2)].any()


@pytest.mark.parametrize("filters", ["full", "separable"])
def test_a_linear_model_is_the_slow_sum_over_pixels_and_lags(filters):
    model = scrambled(linear(filters))
    video, behaviour = clip(count=1), torch.randn(1, FRAMES, 2, dtype=torch.float64)
    rates = model(video, behaviour, "t")[0]
    readout = model.readout("t")
    for frame in range(FRAMES):
        for neuron in range(2):
            drive = readout.bias[neuron].item()
            for lag in range(3):
                if frame < lag:
                    continue
                for row in range(4):
                    for column in range(6):
                        block = video[0, 0, frame - lag, 2 * row :, 2 * column :][:2, :2]
                        if filters == "full":
                            weight = readout.filters[neuron, lag, 0, row, column]
                        else:
                            images = readout.images[neuron, :, 0, row, column]
                            weight = (images * readout.courses[neuron, :, lag]).sum()
                        drive += (weight * block.mean()).item()
                drive += (behaviour[0, frame - lag] @ readout.behaviour[neuron, lag]).item()
            expected = torch.nn.functional.softplus(torch.tensor(drive, dtype=torch.float64))
            assert rates[frame, neuron].item() == pytest.approx(expected.item(), abs=1e-7)


@pytest.mark.parametrize("filters", ["full", "separable"])
def test_a_filter_is_the_response_to_a_flash(filters):
    model = scrambled(linear(filters))
    readout = model.readout("s")
    flash = torch.zeros(1, 1, FRAMES, 8, 12, dtype=torch.float64)
    flash[0, 0, 1, 4:6, 2:4] = 1
    still = torch.zeros_like(flash)
    difference = readout(model.core(flash)) - readout(model.core(still))
    expected = torch.zeros(FRAMES, 3, dtype=torch.float64)
    expected[1:4] = readout.spacetime()[:, :, 0, 2, 1].T
    torch.testing.assert_close(difference[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nonlinearity", ["softplus", "elu"])
@pytest.mark.parametrize("filters", ["full", "separable"])
def test_a_fresh_linear_model_fires_at_the_mean_rates(filters, nonlinearity):
    config = LinearNonlinearConfig(filters=filters, pool=4)
    model = linear_nonlinear({"s": 3}, (8, 12), config=config, nonlinearity=nonlinearity).double()
    means = torch.tensor([0.01, 0.7, 3.0])
    model.readout("s").bias.data.copy_(drive_of(means, nonlinearity))
    rates = model(clip())
    expected = means.double().expand(2, FRAMES, 3)
    torch.testing.assert_close(rates, expected, rtol=1e-5, atol=1e-7)
    rates.square().sum().backward()
    # Images learn from the second step on: the courses that they are multiplied with start at zero.
    silent = {name for name, parameter in model.named_parameters() if not parameter.grad.any()}
    assert {name.split(".")[-1] for name in silent} <= {"images"}


def slow_roughness(values, axis, *, edges):
    """Sum squared second differences along one axis (lags or images) by a loop."""
    total, length = 0.0, values.shape[axis]
    moved = values.movedim(axis, 0)
    for middle in range(length):
        neighbours = [middle - 1, middle + 1]
        outside = [index for index in neighbours if not 0 <= index < length]
        if outside and not edges:
            continue
        around = sum(moved[index] for index in neighbours if index not in outside)
        total += ((around - 2 * moved[middle]) ** 2).sum().item()
    return total


def test_penalties_are_the_slow_sums():
    full = scrambled(LinearReadout(2, (1, 4, 5), 2, LinearNonlinearConfig(filters="full", lags=4)))
    terms = full.regularisation()
    weights = [
        (full.filters[n] ** 2).sum().item() + (full.behaviour[n] ** 2).sum().item()
        for n in range(2)
    ]
    rough = [
        slow_roughness(full.filters[n], 0, edges=False)
        + slow_roughness(full.filters[n], 2, edges=True)
        + slow_roughness(full.filters[n], 3, edges=True)
        for n in range(2)
    ]
    assert terms["filter_l2"].item() == pytest.approx(sum(weights) / 2)
    assert terms["smoothness"].item() == pytest.approx(sum(rough) / 2)
    config = LinearNonlinearConfig(filters="separable", lags=4, rank=2)
    separable = scrambled(LinearReadout(2, (1, 4, 5), 0, config))
    rough = [
        slow_roughness(separable.images[n], 2, edges=True)
        + slow_roughness(separable.images[n], 3, edges=True)
        + slow_roughness(separable.courses[n], 1, edges=False)
        for n in range(2)
    ]
    assert separable.regularisation()["smoothness"].item() == pytest.approx(sum(rough) / 2)


def conv(inputs, outputs, *kernel, groups=1):
    size = inputs // groups * outputs
    for side in kernel:
        size *= side
    return size


def test_parameter_counts_are_those_of_the_layers():
    count = sum(parameter.numel() for parameter in resnet().parameters())
    stem = conv(1, 4, 3, 5, 5)
    first = conv(4, 4, 3, 3, 3) * 2 + 2 * 4 * 2
    second = conv(4, 6, 3, 3, 3) + conv(6, 6, 3, 3, 3) + conv(4, 6) + 2 * 4 + 2 * 6
    third = conv(6, 6, 3, 3, 3) * 2 + 2 * 6 * 2
    assert count == stem + first + second + third + 2 * 6

    count = sum(parameter.numel() for parameter in x3d().parameters())
    stem = conv(1, 4, 1, 3, 3) + conv(4, 4, 5, groups=4) + 2 * 4

    def block(width, out, inner, squeezed):
        size = conv(width, inner) + conv(inner, inner, 3, 3, 3, groups=inner) + conv(inner, out)
        size += 2 * inner + 2 * inner + 2 * out
        if squeezed:
            size += conv(inner, squeezed) + squeezed + conv(squeezed, inner) + inner
        return size + (conv(width, out) if width != out else 0)

    blocks = block(4, 4, 9, 8) + block(4, 6, 14, 8) + block(6, 6, 14, 0)
    assert count == stem + blocks + conv(6, 14) + 2 * 14


def test_the_defaults_have_the_documented_sizes():
    counts = [sum(p.numel() for p in core.parameters()) for core in (CausalResNet(), CausalX3D())]
    assert counts == [2_065_888, 678_562]


@pytest.mark.parametrize(
    "core",
    [
        resnet(),
        x3d(kernel=(5, 3, 3)),
        MotionEnergy(frames_per_second=24.0),
        PooledPixels((8, 12), pool=4),
    ],
    ids=["resnet", "x3d", "energy", "pixels"],
)
def test_a_core_is_rebuilt_from_its_config(core):
    assert isinstance(core, Core)
    config = json.loads(json.dumps(core.to_config()))
    again = build_part("core", config)
    assert again.to_config() == core.to_config()
    again.load_state_dict(core.state_dict())
    video = clip().float()
    mapped = core.eval().dense(video)
    assert torch.equal(again.eval().dense(video), mapped)
    assert mapped.shape[:3] == (2, core.channels, FRAMES)


@pytest.mark.parametrize("filters", ["full", "separable"])
def test_a_linear_readout_is_rebuilt_from_its_config(filters):
    readout = scrambled(linear(filters)).readout("s")
    again = build_part("readout", json.loads(json.dumps(readout.to_config()))).double()
    again.load_state_dict(readout.state_dict())
    map = torch.randn(2, 26, FRAMES, 1, 1, dtype=torch.float64)
    assert torch.equal(again(map), readout(map))
    appended = AppendedBehaviour(2)
    assert build_part("modulator", appended.to_config()).behaviour_channels == 2


def test_behaviour_that_is_not_given_is_its_mean():
    model = scrambled(linear("full"))
    zeros = torch.zeros(2, FRAMES, 2, dtype=torch.float64)
    assert torch.equal(model(clip(), None, "s"), model(clip(), zeros, "s"))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: CausalResNetConfig(widths=(4,)), "one entry for each stage"),
        (lambda: CausalResNetConfig(kernel=(3, 2, 3)), "kernel .* odd height and width"),
        (lambda: CausalX3DConfig(depths=(0, 1, 1)), "at least 1"),
        (lambda: CausalX3DConfig(squeeze=0.0), "squeeze 0.0"),
        (
            lambda: LinearNonlinearConfig(filters="none"),
            "filters 'none' is unknown; choose one of full, separable",
        ),
        (lambda: LinearNonlinearConfig(lags=0), "baseline.ln.lags is 0; it must be at least 1"),
        (lambda: PooledPixels((9, 12), pool=2), "pool 2 must divide the frame size 9×12"),
        (lambda: PooledPixels((4, 6)).dense(clip()), "1 channels of 8×12 pixels; the model needs"),
        (
            lambda: build_part("core", {"kind": "vgg"}),
            "'vgg' is unknown; known kinds: resnet, x3d, energy",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, said):
    with pytest.raises(ValueError, match=said) as refusal:
        build()
    assert "\n" not in str(refusal.value)
