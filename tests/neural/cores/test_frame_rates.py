"""Resampling in time: contents of resampled frames, and causality of recorded frames."""

import pytest
import torch
from small_models import clip, encoder, model, walk

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.frame_rates import FrameRates, match_fps
from ssl_vivit.neural.modulators import FiLM
from ssl_vivit.objectives.neural_prediction import predict_parts

RATES = [
    (30.0, 25.0),
    (25.0, 30.0),
    (16.0, 30.0),
    (30.0, 7.5),
    (30000 / 1001, 24.0),
    (15.49, 30.0),
    (1.0, 3.0),
    (60.0, 60.0),
]
by_rates = pytest.mark.parametrize("rates", RATES)


@by_rates
def test_resampled_frames_show_the_last_recorded_frame_that_had_begun(rates):
    rates = FrameRates(*rates)
    shown = rates.shown(40).tolist()
    ratio = rates.recorded_per_resampled
    assert float(ratio) == pytest.approx(rates.recorded / rates.encoder, rel=1e-6)
    expected = []
    while (frame := int(len(expected) * ratio)) < 40:
        expected.append(frame)
    assert shown == expected


@by_rates
def test_a_frame_sees_all_resampled_frames_that_show_no_later_one(rates):
    rates = FrameRates(*rates)
    shown = rates.shown(40)
    seen = rates.seen(40).tolist()
    assert seen == [int((shown <= t).sum()) for t in range(40)]
    assert seen == [rates.resampled(frames) for frames in range(1, 41)]
    assert min(seen) >= 1


@by_rates
def test_a_shorter_recording_is_the_start_of_a_longer_one(rates):
    rates = FrameRates(*rates)
    for frames in range(1, 20):
        shown, seen = rates.shown(frames), rates.seen(frames)
        assert torch.equal(rates.shown(20)[: len(shown)], shown)
        assert torch.equal(rates.seen(20)[:frames], seen)
        assert seen[-1] == len(shown)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("ratio", [(30.0, 25.0), (16.0, 30.0), (30.0, 7.0)])
@pytest.mark.parametrize("layers", [None, 0, "all"])
def test_frames_read_tokens_of_the_resampled_video_at_recorded_times(ratio, stride, layers):
    rates = FrameRates(*ratio)
    whole = model(encoder(tubelet_stride=(stride, 4, 4)), frame_rates={"a": rates}, layers=layers)
    video = clip(frames=15)
    shown = [int(i) for i in rates.shown(15)]
    resampled = torch.stack([video[:, :, frame] for frame in shown], 2)
    whole_strides = len(shown) // stride * stride
    tokens = whole.encoder(resampled[:, :, :whole_strides]).map
    if layers is not None:
        tokens = whole.block_reader(whole.encoder, resampled[:, :, :whole_strides])
    stream, found = whole.frame_stream(video), whole.core(video)
    for t in range(15):
        ended = sum(frame <= t for frame in shown) // stride
        expected = stream[:, :, t] + (tokens[:, :, ended - 1] if ended else 0)
        torch.testing.assert_close(found[:, :, t], expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [(30.0, 25.0), (16.0, 30.0), (30.0, 7.0)])
def test_tokens_meet_the_behaviour_of_the_frames_that_they_show(ratio):
    rates = FrameRates(*ratio)
    core, film = encoder(tubelet_stride=(2, 4, 4)), FiLM(24, 2, 2)
    whole = model(core, modulator=film, frame_stream=False, frame_rates={"a": rates})
    video, behaviour = clip(frames=15), walk(frames=15)
    shown = [int(i) for i in rates.shown(15)]
    shown = shown[: len(shown) // 2 * 2]
    resampled = torch.stack([video[:, :, frame] for frame in shown], 2)
    signals = torch.stack([behaviour[:, frame] for frame in shown], 1)
    tokens, _ = whole.modulator(whole.encoder(resampled).map, signals)
    found = whole.core(video, behaviour)
    for t, ended in enumerate(rates.seen(15).tolist()):
        expected = tokens[:, :, ended // 2 - 1] if ended >= 2 else torch.zeros(1, 24, 2, 3)
        torch.testing.assert_close(found[:, :, t], expected.double(), rtol=0, atol=1e-12)


@by_rates
@pytest.mark.parametrize("stride", [1, 4])
def test_the_frame_stream_is_as_long_as_the_encoder_may_be_silent(rates, stride):
    """The stream covers the frames after the last frame of the token that a frame reads."""
    rates = FrameRates(*rates)
    shown, seen = rates.shown(200), rates.seen(200) // stride * stride
    gaps = [t - int(shown[seen[t] - 1]) for t in range(50, 200)]
    kernel = model(encoder(tubelet_stride=(stride, 4, 4)), frame_rates={"a": rates})
    assert kernel.frame_stream.kernel[0] >= max(gaps)
    assert kernel.frame_stream.kernel[0] <= max(stride, max(gaps) + 1)


def test_match_fps_compares_with_preprocessing():
    prepared = {"fps": 25.0, "frame_stride": 1}
    assert match_fps(prepared, 30.0) == FrameRates(30.0, 25.0)
    assert match_fps(prepared | {"frame_stride": 2}, 30.0) == FrameRates(30.0, 12.5)
    assert match_fps(prepared, 25.0) is None
    assert match_fps({"fps": 30000 / 1001}, 29.97002997) is None
    assert match_fps(None, 30.0) is None
    assert match_fps({}, 30.0) is None
    with pytest.raises(
        NeuralModelError, match=r"recorded frame rate 0\.0 must be a positive number"
    ):
        match_fps(prepared, 0.0)


@torch.no_grad()
def test_sessions_of_different_rates_name_which_one_a_map_is_for():
    from small_models import WholeMapReadout

    readouts = {"a": WholeMapReadout(2, 24), "b": WholeMapReadout(3, 24)}
    whole = model(readouts=readouts, frame_rates={"b": FrameRates(16.0, 30.0)})
    video = clip()
    with pytest.raises(NeuralModelError, match="different frame rates; give the argument session"):
        whole.core(video)
    assert not torch.equal(whole.core(video, None, "a"), whole.core(video, None, "b"))
    for name in ("a", "b"):
        expected = whole.read(whole.core(video, None, name), name)
        assert torch.equal(whole(video, session=name), expected)
    with pytest.raises(
        NeuralModelError, match="frame_rates has unknown sessions c; the readouts are for a, b"
    ):
        model(readouts=readouts, frame_rates={"c": None})


def test_parts_of_other_frame_rates_are_encoded_apart(monkeypatch):
    rates = {"a": FrameRates(30.0, 15.0), "b": None}
    whole = model(readouts={name: torch.nn.Identity() for name in rates}, frame_rates=rates).eval()
    monkeypatch.setattr(whole, "read", lambda map, *more: map)
    video, behaviour = clip(frames=16), walk(frames=16)
    parts = [{"session": name, "video": video, "behaviour": behaviour} for name in ("a", "b")]
    found = predict_parts(whole, parts)
    for part, map in zip(parts, found, strict=True):
        expected = whole.core(video, behaviour, part["session"])
        torch.testing.assert_close(map, expected, rtol=0, atol=1e-12)
    assert not torch.equal(*found)
