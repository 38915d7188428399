"""Motion energy: tuning of its channels, phase invariance, causality, equal to a slow convolution."""

import cmath
import math
import re
from dataclasses import replace

import pytest
import torch

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural.building import build_neural_model
from ssl_vivit.neural.config import BaselineConfig, NeuralEncoderChoice, NeuralModelConfig
from ssl_vivit.neural.cores.motion_energy import MotionEnergy, MotionEnergyConfig
from ssl_vivit.neural.modulators import ModulatorConfig

RATE = 30.0
SMALL = MotionEnergyConfig(
    spatial_frequencies=(0.2,), temporal_frequencies=(0.0, 6.0), orientations=2
)

TUNED = MotionEnergyConfig()


def bank(config=SMALL, rate=RATE):
    return MotionEnergy(config, frames_per_second=rate).double()


def grating(frequency, angle, hertz, frames=30, size=48):
    """Return a grating of contrast 1 that drifts along an angle, after a grey screen."""
    x = torch.arange(size, dtype=torch.float64)
    along = x * math.cos(angle) + x[:, None] * math.sin(angle)
    time = torch.arange(frames, dtype=torch.float64)[:, None, None] / RATE
    return torch.cos(2 * math.pi * (frequency * along - hertz * time))[None, None]


def channel(config, spatial, orientation, temporal, back=False):
    """Return the index of a channel in the documented order of ``energies``."""
    moving = [f for f in config.temporal_frequencies if f]
    each = len(config.temporal_frequencies) + len(moving)
    pair = config.spatial_frequencies.index(spatial) * config.orientations + orientation
    if back:
        return pair * each + len(config.temporal_frequencies) + moving.index(temporal)
    return pair * each + config.temporal_frequencies.index(temporal)


def middle(energies):
    """Return energies after the onset, (gratings, channels, frames)."""
    return energies[:, :, 20:, energies.shape[3] // 2, energies.shape[4] // 2]


# The gain at the preferred frequencies is 1. The gain of a gamma envelope at twice the frequency is
# that of the opposite direction: 0.29 and 0.07 at 3 and 6 Hz.
@pytest.mark.parametrize(("hertz", "ratio"), [(3.0, 3.0), (6.0, 12.0)])
@pytest.mark.parametrize("spatial", [0.0625, 0.125, 0.25])
def test_a_grating_has_most_energy_where_its_direction_and_frequencies_are_preferred(
    spatial, hertz, ratio
):
    shown = torch.cat([grating(spatial, math.pi * number / 4, hertz) for number in range(8)])
    energies = middle(bank(TUNED).energies(shown))
    for number in range(8):
        back, orientation = divmod(number, 4)
        own = energies[number]
        preferred = own[channel(TUNED, spatial, orientation, hertz, bool(back))]
        opposite = own[channel(TUNED, spatial, orientation, hertz, not back)]
        assert own.mean(1).max() == preferred.mean()
        assert preferred.mean().item() == pytest.approx(1, abs=0.02)
        assert (preferred / opposite).min() > ratio
        # The phase of the grating, which changes from frame to frame, does not show.
        assert preferred.max() / preferred.min() < 1.02


def test_a_static_grating_has_most_energy_at_zero_hertz():
    (energies,) = middle(bank(TUNED).energies(grating(0.125, math.pi / 4, 0.0)))
    still = channel(TUNED, 0.125, 1, 0.0)
    assert energies.mean(1).argmax() == still
    torch.testing.assert_close(energies[still], torch.ones(10).double(), rtol=0, atol=0.02)


def test_grey_of_any_level_has_no_energy():
    shown = torch.full((1, 1, 30, 48, 48), 3.0, dtype=torch.float64)
    assert (
        middle(bank(MotionEnergyConfig(spatial_frequencies=(0.125,))).energies(shown)).max() < 2e-3
    )


def test_scenes_with_amplitudes_of_one_over_frequency_have_equal_energies_at_all_frequencies():
    config = replace(TUNED, temporal_frequencies=(0.0,))
    noise = torch.randn(12, 96, 96, dtype=torch.float64, generator=torch.manual_seed(0))
    down, across = torch.fft.fftfreq(96), torch.fft.rfftfreq(96)
    frequency = (down[:, None] ** 2 + across**2).sqrt()
    amplitude = torch.where(frequency > 0, 1 / frequency, 0)
    scenes = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude)
    energies = bank(config).energies(scenes[:, None, None].expand(-1, -1, 9, -1, -1))
    power = energies[:, :, -1, 8:-8, 8:-8].square().mean((0, 2, 3)).unflatten(0, (3, 4)).mean(1)
    torch.testing.assert_close(power / power.mean(), torch.ones(3).double(), rtol=0, atol=0.2)


def slow_energy(video, config, spatial, angle, hertz, time, row, column):
    """Return the modulus of an explicit sum over frames and pixels at one place of the map."""
    sigma, latency = 0.56 / spatial, config.latency
    y, x = ((place + 0.5) * config.stride - 0.5 for place in (row, column))
    side = math.ceil(2.5 * sigma - config.stride / 2) + config.stride / 2
    pixels = [
        (i, j, j - x, i - y)
        for i in range(-40, 60) for j in range(-40, 60)
        if abs(j - x) < side and abs(i - y) < side
    ]  # fmt: skip
    envelope = [math.exp(-(a * a + b * b) / (2 * sigma**2)) for _, _, a, b in pixels]
    waves = [
        cmath.exp(2j * math.pi * spatial * (a * math.cos(angle) + b * math.sin(angle)))
        for _, _, a, b in pixels
    ]
    grey = sum(e * w for e, w in zip(envelope, waves, strict=True)).real / sum(envelope)
    lags = range(math.ceil(5 * latency * RATE))
    past = [(lag + 0.5) / RATE / latency for lag in lags]
    gamma = [t**2 * math.exp(-2 * t) for t in past]
    total = 0j
    for lag in lags:
        if lag > time:
            continue
        turn = cmath.exp(2j * math.pi * hertz * lag / RATE) * gamma[lag] / sum(gamma)
        for (i, j, _, _), e, wave in zip(pixels, envelope, waves, strict=True):
            if 0 <= i < video.shape[-2] and 0 <= j < video.shape[-1]:
                filtered = 2 * e / sum(envelope) * (wave - grey) * turn
                total += filtered * video[0, 0, time - lag, i, j].item()
    return math.sqrt(abs(total) ** 2 + 1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_energies_are_the_slow_sum_over_frames_and_pixels(stride):
    config = replace(SMALL, stride=stride)
    video = clip()
    energies = bank(config).energies(video)
    assert energies.shape[3:] == (-(-8 // stride), -(-13 // stride))
    for orientation in range(2):
        for hertz, back in ((0.0, False), (6.0, False), (6.0, True)):
            number = channel(config, 0.2, orientation, hertz, back)
            signed = -hertz if back else hertz
            angle = math.pi * orientation / 2
            for place in ((3, 0, 0), (7, 1, 2), (7, 2, 4)):
                expected = slow_energy(video, config, 0.2, angle, signed, *place)
                assert energies[0, number][place].item() == pytest.approx(expected, rel=1e-5)


def clip(frames=8):
    torch.manual_seed(1)
    return torch.randn(1, 1, frames, 8, 13, dtype=torch.float64)


def test_channels_are_compressed_energies_and_then_their_running_means():
    core = bank(replace(SMALL, memory=0.1))
    energies, means = core.dense(clip(30)).chunk(2, dim=1)
    expected = ((1 + 10 * core.energies(clip(30))).log() - 0.55) / 0.4
    torch.testing.assert_close(energies, expected)
    # Five time constants of three frames.
    weights = [math.exp(-lag / 3) for lag in range(15)]
    for frame in range(30):
        past = range(max(frame - 14, 0), frame + 1)
        mean = sum(weights[frame - t] * energies[:, :, t] for t in past) / sum(weights)
        torch.testing.assert_close(means[:, :, frame], mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("frame", range(8))
def test_no_frame_depends_on_later_frames(frame):
    core = bank()
    video = clip().requires_grad_()
    mapped = core.dense(video)
    (gradient,) = torch.autograd.grad(mapped[:, :, frame].sum(), video)
    assert not gradient[:, :, frame + 1 :].any()
    assert gradient[:, :, : frame + 1].abs().sum((0, 1, 3, 4)).all()
    start = core.dense(video[:, :, : frame + 1])
    torch.testing.assert_close(start, mapped[:, :, : frame + 1], rtol=0, atol=1e-12)


def test_channels_of_the_video_are_averaged():
    colour = torch.cat((clip(), clip().flip(-1), clip() * 0.5), dim=1)
    expected = bank().dense(colour.mean(1, keepdim=True))
    torch.testing.assert_close(bank().dense(colour), expected, rtol=0, atol=1e-12)


def test_nothing_of_the_bank_is_trained():
    core = MotionEnergy(frames_per_second=RATE)
    assert not [*core.parameters()]
    assert core.channels == core.dense(torch.zeros(1, 1, 2, 36, 64)).shape[1] == 120


def fact(name, rate):
    return SessionFacts(
        name=name, unit_ids=(1, 2), frames_per_second=rate, kind="spikes", frame_size=(8, 13),
        video_mean=0.5, video_std=0.2, behaviour_channels=(), behaviour_mean=(), behaviour_std=(),
        pupil_mean=None, pupil_std=None, mean_response=(0.1, 0.2), coordinates=None,
        split={"train": (0,)},
    )  # fmt: skip


def built(*rates):
    config = NeuralModelConfig(modulator=ModulatorConfig(kind="none"))
    facts = [fact(f"s{number}", rate) for number, rate in enumerate(rates)]
    choice, baseline = NeuralEncoderChoice(), BaselineConfig(energy=SMALL)
    return build_neural_model("energy", choice, config, baseline, facts, longest=10).model


def test_a_model_has_filters_for_the_frame_rate_of_its_sessions():
    model = built(24.0, 24.01)
    alone = MotionEnergy(SMALL, frames_per_second=24.0).dense(clip().float())
    assert torch.equal(model.core(clip().float()), alone)
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"session_readouts"}


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: MotionEnergyConfig(spatial_frequencies=(0.5,)),
            "--baseline.energy.spatial_frequencies is [0.5]; give one or more frequencies between 0 and 0.5 "
            "cycles per pixel",
        ),
        (
            lambda: MotionEnergyConfig(spatial_frequencies=()),
            "--baseline.energy.spatial_frequencies is []; give one or more frequencies between 0 and 0.5 "
            "cycles per pixel",
        ),
        (
            lambda: MotionEnergyConfig(temporal_frequencies=(-2.0,)),
            "--baseline.energy.temporal_frequencies is [-2.0]; give one or more frequencies of at least 0 Hz",
        ),
        (
            lambda: MotionEnergyConfig(orientations=0),
            "--baseline.energy.orientations is 0; it must be at least 1",
        ),
        (
            lambda: MotionEnergyConfig(latency=0.0),
            "--baseline.energy.latency is 0.0; it must be above 0",
        ),
        (
            lambda: bank(rate=12.0),
            "--baseline.energy.temporal_frequencies has 6 Hz, but the videos have 12 frames per "
            "second; give frequencies below 6 Hz",
        ),
        (
            lambda: built(30.0, 24.0),
            "--core energy needs one frame rate for all sessions, but s0 has 30 frames per second "
            "and s1 has 24; fit one model for each session, or resample the sessions to one rate",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        build()
