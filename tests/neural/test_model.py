"""NeuralModel: the token that a frame reads, the sum of its parts, and errors."""

import pytest
import torch
from small_models import WholeMapReadout, clip, encoder, model, walk

from ssl_vivit import create_encoder
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.nonlinearity import drive_of, rate_of
from ssl_vivit.neural.readout.gaussian import GaussianReadout


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_frame_reads_the_last_token_that_ended_and_the_stream(stride):
    whole = model(encoder(tubelet_size=(4, 4, 4), tubelet_stride=(stride, 4, 4)))
    video = clip(batch=2, frames=11)
    tokens = whole.encoder(video[:, :, : 11 // stride * stride]).map
    stream = whole.frame_stream(video)
    features = whole.core(video)
    for t in range(11):
        token = (t + 1) // stride - 1
        expected = stream[:, :, t] + (tokens[:, :, token] if token >= 0 else 0)
        torch.testing.assert_close(features[:, :, t], expected, rtol=0, atol=0)
    assert features.shape == (2, 24, 11, 2, 3)


@torch.no_grad()
@pytest.mark.parametrize("overlap", [False, True])
def test_the_frame_stream_is_a_slow_loop_over_frames_and_places(overlap):
    stride = (2, 2, 2) if overlap else (4, 4, 4)
    whole = model(
        encoder(tubelet_stride=stride), readouts={"a": WholeMapReadout(2, 24, 15)}
    ).frame_stream
    video = clip(frames=6)
    padded = torch.cat([torch.zeros(1, 1, 3, 8, 12), video], 2)[:, :, 4 - whole.kernel[0] :]
    found = whole(video)
    for t in range(6):
        for y in range(found.shape[3]):
            for x in range(found.shape[4]):
                rows = slice(y * stride[1], y * stride[1] + 4)
                columns = slice(x * stride[2], x * stride[2] + 4)
                seen = padded[:, :, t : t + whole.kernel[0], rows, columns]
                hidden = torch.nn.functional.gelu(whole.filters(seen.reshape(1, -1)))
                expected = whole.project(hidden)
                torch.testing.assert_close(found[:, :, t, y, x], expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_clips_shorter_than_a_tubelet_get_rates():
    whole = model()
    video = clip(frames=7)
    rates = whole(video)
    for frames in (1, 3, 5):
        torch.testing.assert_close(whole(video[:, :, :frames]), rates[:, :frames])


@torch.no_grad()
def test_rates_of_only_the_last_frame_equal_the_last_rates():
    whole, video = model(), clip(batch=2)
    features = whole.core(video)
    torch.testing.assert_close(whole.read(features[:, :, -1]), whole(video)[:, -1])


@pytest.mark.parametrize("nonlinearity", ["softplus", "elu"])
def test_rates_are_positive_and_equal_the_named_nonlinearity(nonlinearity):
    drive = torch.linspace(-200, 50, 501, requires_grad=True)
    rates = rate_of(drive, nonlinearity)
    assert (rates > 0).all()
    exact = torch.nn.functional.softplus if nonlinearity == "softplus" else (
        lambda x: torch.nn.functional.elu(x) + 1
    )  # fmt: skip
    torch.testing.assert_close(rates, exact(drive), rtol=1e-5, atol=1e-6)
    likely = torch.tensor([0.001, 0.02, 0.7, 30.0], dtype=torch.float64)
    torch.testing.assert_close(
        rate_of(drive_of(likely, nonlinearity), nonlinearity), likely, rtol=0, atol=2e-8
    )
    (gradient,) = torch.autograd.grad(rates.sum(), drive)
    assert gradient.isfinite().all()
    assert (gradient[drive > -50] > 0).all()


def test_sessions_have_names_of_any_kind_and_readouts_of_their_own():
    readouts = {"mouse.1/a": WholeMapReadout(3, 24), "mouse.1/b": WholeMapReadout(4, 24)}
    whole, video = model(readouts=readouts), clip()
    assert whole.sessions == ("mouse.1/a", "mouse.1/b")
    assert whole(video, session="mouse.1/a").shape == (1, 10, 3)
    assert whole(video, session="mouse.1/b").shape == (1, 10, 4)
    with pytest.raises(
        NeuralModelError, match="session is None; give one of the model's sessions: mouse"
    ):
        whole(video)
    with pytest.raises(NeuralModelError, match="session 'c' is unknown"):
        whole(video, session="c")


def test_encoders_that_are_not_causal_are_refused_with_what_would_make_them_so():
    readouts = {"a": WholeMapReadout(3, 24)}
    with pytest.raises(
        NeuralModelError, match=r"call load_encoder or create_encoder with temp.*=True$"
    ):
        NeuralModel(encoder(temporal_causal=False), readouts=readouts)
    overlapping = encoder(tubelet_stride=(2, 4, 4), temporal_padding="none")
    with pytest.raises(NeuralModelError, match="temporal_padding='causal'"):
        NeuralModel(overlapping, readouts=readouts)
    uniform = encoder(
        temporal_causal=False, temporal_padding="none", tubelet_embedding="uniform_frames"
    )
    with pytest.raises(NeuralModelError, match="tubelet_embedding='tubelet', temporal_causal=True"):
        NeuralModel(uniform, readouts=readouts)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(NeuralModelError, match="readouts is empty"):
        NeuralModel(encoder())
    with pytest.raises(ValueError, match="nonlinearity 'relu' is unknown"):
        NeuralModel(encoder(), readouts={"a": WholeMapReadout(3, 24)}, nonlinearity="relu")
    with pytest.raises(NeuralModelError, match="Linear is not a core"):
        NeuralModel(torch.nn.Linear(2, 2), readouts={"a": WholeMapReadout(3, 24)})


@pytest.mark.slow
@torch.no_grad()
def test_the_baseline_at_its_full_size():
    """The shapes are the published ones: 300 frames of 36×64, 42 behaviour channels, 75×9×16 tokens of
    width 384."""
    whole = NeuralModel(
        create_encoder("vivit_neural_baseline"),
        modulator=ConvGRU(384, 42, 4),
        readouts={"a": GaussianReadout(7, 384)},
    ).eval()
    video, behaviour = torch.randn(1, 1, 300, 36, 64), torch.randn(1, 300, 42)
    assert whole.tokens(video, behaviour)[0].shape == (1, 384, 75, 9, 16)
    features = whole.core(video, behaviour)
    assert features.shape == (1, 384, 300, 9, 16)
    last = whole.read(features[:, :, -1])
    assert last.shape == (1, 7)
    rates = whole(video, behaviour)
    assert rates.shape == (1, 300, 7)
    torch.testing.assert_close(rates[:, -1], last)


@pytest.mark.slow
def test_it_compiles_with_the_recurrence_left_out():
    whole = model(modulator=ConvGRU(24, 2, 4, hidden=5))
    video, behaviour = clip(frames=9), walk(frames=9)
    expected = whole(video, behaviour)
    compiled = torch.compile(whole, backend="aot_eager")
    found = compiled(video, behaviour)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.sum().backward()


def test_half_precision_gives_rates_in_full():
    whole = model(modulator=ConvGRU(24, 2, 4, hidden=5)).float()
    video, behaviour = clip(frames=9).float(), walk(frames=9).float()
    with torch.autocast("cpu", torch.bfloat16):
        rates = whole(video, behaviour)
    assert rates.dtype == torch.float32
    assert not torch.equal(rates, rates.bfloat16().float())
    exact = whole(video, behaviour)
    assert (rates - exact).norm() < 0.015 * (exact - exact.mean((0, 1))).norm()


def test_every_parameter_takes_part_without_behaviour_too():
    whole = model(modulator=FiLM(24, 2, 4), adapter=StimulusAdapter("affine"))
    whole(clip()).sum().backward()
    without = [name for name, parameter in whole.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("batch", [1, 3])
def test_behaviour_of_another_number_of_clips_is_refused(batch):
    whole = model(modulator=FiLM(24, 2, 4))
    with pytest.raises(NeuralModelError, match=rf"behaviour has shape \({batch}, 10, 2\); it"):
        whole(clip(2), walk(batch))
