"""Rates of simulated neurons: slow loop, exact causality, tuning, measured receptive fields."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.population import (
    Filters,
    calibrated,
    draw_population,
    pixel_centres,
    temporal_kernels,
)

RATE = 30.0


def noise(frames, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, *size), dtype=np.uint8)


@pytest.fixture(scope="module")
def population():
    """Return forty neurons for frames of 24×32 pixels, calibrated on noise."""
    drawn = draw_population(40, (24, 32), RATE, seed=3)
    return calibrated(drawn, [noise(60, (24, 32), seed) for seed in range(3)])


def slow_rates(population, neuron, movie, behaviour):
    """Compute one neuron's rates by loops over frames, pixels and lags, from the documented formulas."""
    p = {name: value.double().numpy()[neuron] for name, value in population.tensors().items()}
    height, width = population.size
    frames = len(movie)
    contrast = (movie.astype(float) - 127.5) / 127.5
    centre_x, centre_y = (p["center"] + 1) / 2 * [width, height]
    cosine, sine = math.cos(p["direction"]), math.sin(p["direction"])
    envelope, gabors, around = np.zeros((height, width)), np.zeros((2, height, width)), None
    around = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - centre_x, row + 0.5 - centre_y
            along, across = x * cosine + y * sine, y * cosine - x * sine
            weight = math.exp(-(along**2 / p["sigma"][0] ** 2 + across**2 / p["sigma"][1] ** 2) / 2)
            angle = 2 * math.pi * p["spatial_frequency"] * along + p["phase"]
            envelope[row, column] = weight
            gabors[:, row, column] = math.cos(angle), math.sin(angle)
            spread = 3 * p["sigma"].mean()
            around[row, column] = math.exp(-(x**2 + y**2) / 2 / spread**2) * (1 - weight)
    around /= around.sum()
    for wave in gabors:
        wave -= (wave * envelope).sum() / envelope.sum()
        wave *= envelope
        wave /= np.sqrt((wave**2).sum())

    kernels = []
    for order in (3, 7):
        kernel = []
        for j in range(15):
            time = p["speed"] * (j + 0.5) / RATE
            rebound = p["transience"] * time**2 / math.factorial(order + 2)
            kernel.append(time**order * math.exp(-time) * (1 / math.factorial(order) - rebound))
        kernels.append(np.array(kernel) / np.sqrt(np.sum(np.square(kernel))))
    decay = np.exp(-np.arange(15) / RATE / 0.1)
    decay /= decay.sum()

    seen = [[(frame * gabor).sum() for gabor in gabors] for frame in contrast]
    blur = np.exp(-0.5 * (np.arange(-6, 7) / 3) ** 2)
    blur /= blur.sum()
    around_seen = []
    for frame in contrast:
        padded = np.pad(frame, 6, mode="edge")
        mean = np.zeros_like(frame)
        for i in range(13):
            for j in range(13):
                mean += blur[i] * blur[j] * padded[i : i + height, j : j + width]
        around_seen.append((around * (frame - mean) ** 2).sum())

    rates = []
    for t in range(frames):
        lags = [j for j in range(15) if j <= t]
        (even_fast, odd_fast), (even_slow, odd_slow) = (
            [sum(kernel[j] * seen[t - j][k] for j in lags) for k in range(2)] for kernel in kernels
        )
        other = 1 - p["selectivity"]
        if p["complex"]:
            drive = math.sqrt(
                (even_slow + odd_fast) ** 2
                + (odd_slow - even_fast) ** 2
                + other * ((even_slow - odd_fast) ** 2 + (odd_slow + even_fast) ** 2)
            )
        else:
            drive = max(0.0, even_slow + odd_fast + other * (even_slow - odd_fast))
        surround = math.sqrt(sum(decay[j] * around_seen[t - j] for j in lags))
        power = (drive / p["drive_scale"]) ** 2
        pool = (p["surround"] * surround / p["surround_scale"]) ** 2
        output = (power / (1 + power + pool)) ** p["exponent"] / p["output_scale"]
        output *= math.exp((behaviour[t] * p["behaviour"]).sum())
        rates.append(p["mean_rate"] * (p["baseline"] + (1 - p["baseline"]) * output))
    return np.array(rates)


def test_rates_equal_a_slow_loop():
    size, movie = (10, 14), noise(20, (10, 14))
    behaviour = np.random.default_rng(1).normal(size=(20, 2))
    population = calibrated(draw_population(6, size, RATE), [noise(30, size, 2)])
    assert 0 < population.complex.sum() < 6
    found = Filters(population).rates(movie, behaviour)
    for neuron in range(6):
        slow = slow_rates(population, neuron, movie, behaviour)
        np.testing.assert_allclose(found[:, neuron], slow, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("t", [0, 7, 29])
def test_no_rate_depends_on_a_later_frame(population, t):
    movie, behaviour = noise(30, (24, 32), 9), np.random.default_rng(1).normal(size=(30, 2))
    shift = np.random.default_rng(2).normal(size=(30, 2))
    filters = Filters(population)
    before = filters.rates(movie, behaviour, shift)
    for changed in (movie, behaviour, shift):
        given = [movie, behaviour, shift]
        other = changed.copy()
        other[t] = changed[t] // 2 if changed.dtype == np.uint8 else changed[t] + 1
        given = [other if array is changed else array for array in given]
        after = filters.rates(*given)
        assert torch.equal(after[:t], before[:t])
        assert not torch.equal(after[t], before[t])


def test_calibration_gives_the_mean_rates_that_were_drawn(population):
    movies = [noise(60, (24, 32), seed) for seed in range(3)]
    rates = torch.cat([Filters(population).rates(movie) for movie in movies])
    torch.testing.assert_close(rates.mean(0), population.mean_rate, rtol=1e-4, atol=0)
    hertz = population.mean_rate * RATE
    assert (hertz >= 2).all()
    assert (hertz <= 10).all()


@pytest.mark.parametrize("level", [0, 100, 255])
def test_empty_frames_leave_the_baseline(population, level):
    rates = Filters(population).rates(np.full((20, 24, 32), level, np.uint8))
    expected = (population.mean_rate * population.baseline).expand(20, -1)
    torch.testing.assert_close(rates, expected, rtol=1e-4, atol=1e-6)


def test_behaviour_multiplies_what_the_stimulus_evokes(population):
    movie, filters = noise(30, (24, 32), 4), Filters(population)
    state = np.tile([0.5, -1.5], (30, 1))
    evoked = filters.rates(movie) - population.mean_rate * population.baseline
    modulated = filters.rates(movie, state) - population.mean_rate * population.baseline
    gain = torch.exp(population.behaviour @ torch.tensor([0.5, -1.5]))
    torch.testing.assert_close(modulated, evoked * gain, rtol=1e-3, atol=1e-6)


def grating(population, neuron, sign, frames=60, cycles_per_second=3.5):
    """Return a grating that drifts in the preferred direction (sign 1) or in the opposite direction."""
    height, width = population.size
    x, y = (torch.arange(width) + 0.5)[None, :], (torch.arange(height) + 0.5)[:, None]
    direction = population.direction[neuron]
    along = x * torch.cos(direction) + y * torch.sin(direction)
    time = torch.arange(frames)[:, None, None] / population.frames_per_second
    angle = population.spatial_frequency[neuron] * along - sign * cycles_per_second * time
    wave = 127.5 + 100 * torch.cos(2 * math.pi * angle)
    return wave.round().to(torch.uint8).numpy()


def responses_to_gratings(population, neuron):
    """Return the steady drive of the preferred and of the opposite motion."""
    filters = Filters(population)
    return [
        filters.parts(filters.contrast(grating(population, neuron, sign)))[0][20:, neuron]
        for sign in (1, -1)
    ]


@pytest.fixture(scope="module")
def central():
    """Return neurons in the middle of the frame, whose envelopes are not cut off."""
    drawn = draw_population(16, (36, 64), RATE, seed=5)
    return replace(drawn, center=drawn.center * 0.2, transience=torch.ones(16))


def test_selective_neurons_prefer_the_direction_that_is_noted(central):
    selective = replace(central, selectivity=torch.ones(16))
    for neuron in range(16):
        preferred, opposite = responses_to_gratings(selective, neuron)
        assert opposite.max() < 0.25 * preferred.max()


def test_neurons_without_selectivity_answer_both_directions_alike(central):
    plain = replace(central, selectivity=torch.zeros(16))
    for neuron in range(16):
        preferred, opposite = responses_to_gratings(plain, neuron)
        torch.testing.assert_close(preferred.max(), opposite.max(), rtol=0.05, atol=0)


def test_complex_neurons_ignore_phase_and_simple_ones_follow_it(central):
    for neuron in range(16):
        drive, _ = responses_to_gratings(central, neuron)
        depth = (drive.max() - drive.min()) / drive.max()
        if central.complex[neuron]:
            assert depth < 0.5
        else:
            assert depth == 1


def test_slow_kernels_lag_by_about_a_quarter_of_a_cycle(central):
    fast, slow = (torch.fft.rfft(kernel, 512) for kernel in temporal_kernels(central))
    best = (fast.abs() * slow.abs()).argmax(1, keepdim=True)
    lag = -torch.angle(slow.gather(1, best) / fast.gather(1, best))
    assert ((lag - math.pi / 2).abs() < math.pi / 8).all()


def test_receptive_fields_agree_with_reverse_correlation():
    """Patches of 4×4 pixels show noise or grey for four frames; rates two frames later are used."""
    draw = np.random.default_rng(0)
    on = (draw.random((300, 9, 16)) < 0.1).repeat(4, 0)
    texture = draw.normal(0, 80, (600, 18, 32)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    movie = 127.5 + texture * on.repeat(4, 1).repeat(4, 2)
    movie = movie.clip(0, 255).astype(np.uint8)
    population = draw_population(40, (36, 64), RATE, seed=1)
    population = calibrated(population, [movie])
    rates = Filters(population).rates(movie).double().numpy()[2:]
    patches = on[:-2] - on.mean(0)
    weights = np.einsum("tn,thw->nhw", rates - rates.mean(0), patches)
    padded = np.pad(weights, ((0, 0), (1, 1), (1, 1)))
    weights = sum(padded[:, i : i + 9, j : j + 16] for i in range(3) for j in range(3))
    weights = (weights - 0.6 * weights.max((1, 2), keepdims=True)).clip(min=0)
    weights /= weights.sum((1, 2), keepdims=True)
    x = (weights.sum(1) * pixel_centres(16).numpy()).sum(1)
    y = (weights.sum(2) * pixel_centres(9).numpy()).sum(1)
    truth = population.center.numpy()
    assert np.corrcoef(x, truth[:, 0])[0, 1] > 0.98
    assert np.corrcoef(y, truth[:, 1])[0, 1] > 0.98
    assert np.abs(x - truth[:, 0]).mean() < 0.05
    assert np.abs(y - truth[:, 1]).mean() < 0.06


def test_receptive_fields_have_their_mass_around_the_noted_centre():
    population = draw_population(30, (36, 64), RATE, seed=2)
    population = replace(population, center=population.center * 0.4)
    filters = Filters(population)
    power = filters.even**2 + filters.odd**2
    power = power / power.sum((1, 2), keepdim=True)
    x = (power.sum(1) * pixel_centres(64)).sum(1)
    y = (power.sum(2) * pixel_centres(36)).sum(1)
    found = torch.stack([x, y], 1)
    torch.testing.assert_close(found, population.center, rtol=0, atol=0.02)


def test_gaze_carries_receptive_fields_along(population):
    """A gaze of two pixels right and one down shifts the movie two pixels left and one up."""
    movie = noise(20, (24, 32), 5)
    moved = np.pad(movie, ((0, 0), (0, 1), (0, 2)), mode="edge")[:, 1:, 2:]
    filters = Filters(population)
    shifted = filters.rates(movie, shift=np.tile([2.0, 1.0], (20, 1)))
    torch.testing.assert_close(shifted, filters.rates(moved), rtol=1e-3, atol=1e-5)


def test_more_neurons_and_another_seed_are_other_neurons_and_the_same_seed_the_same():
    first, again, other = (draw_population(10, (36, 64), RATE, seed=s) for s in (0, 0, 1))
    for name, value in first.tensors().items():
        assert torch.equal(value, getattr(again, name))
    assert not torch.equal(first.center, other.center)
