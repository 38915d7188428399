"""Initial positions of readouts, compared with true receptive fields and computed by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.population import Filters, calibrated, draw_population
from data_prep.synthetic_neural.recording import calcium_signal
from data_prep.synthetic_neural.stimuli import Screen
from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.evaluation.neurons.receptive_fields import (
    found_centres,
    position_correlation,
    share_near,
)
from ssl_vivit.neural.cores.vivit_core import screen_span
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.energy_start import (
    FoundPlaces,
    _Course,
    _past,
    _place,
    energy_centres,
    peak_centres,
    start_at_energy,
)
from ssl_vivit.neural.readout.gaussian import GaussianReadout

SIZE = (36, 64)


def encoder_with(**changes):
    settings = {"image_size": SIZE, "num_frames": 8, "embed_dim": 8, "num_heads": 2,
                "spatial_depth": 1, "temporal_depth": 1} | changes  # fmt: skip
    return create_encoder("vivit_neural_small", **settings)


class Recording:
    """Complex and simple units that see noise whose local contrast changes over time."""

    def __init__(self, neurons: int, trials: int, frames: int = 120) -> None:
        draw = np.random.default_rng(0)
        self.movies = []
        for _ in range(trials):
            noise = torch.tensor(draw.standard_normal((1, 1, frames // 3, 18, 32)))
            contrast = torch.tensor(draw.random((1, 1, frames // 12, 5, 8))) ** 2
            noise, contrast = (
                torch.nn.functional.interpolate(part, (frames, *SIZE), mode="trilinear")[0, 0]
                for part in (noise, contrast)
            )
            pixels = 127.5 + 90 * noise * contrast
            self.movies.append(pixels.clamp(0, 255).to(torch.uint8).numpy())
        population = draw_population(neurons, SIZE, 30.0, mean_rate=(15.0, 20.0))
        self.population = calibrated(population, self.movies)
        filters = Filters(self.population)
        self.spikes = [draw.poisson(filters.rates(movie)).astype("f4") for movie in self.movies]
        self.read: list[int] = []

    def video(self, trial):
        return self.movies[trial]

    def responses(self, trial):
        self.read.append(trial)
        return self.spikes[trial]


@pytest.fixture(scope="module")
def recording():
    return Recording(20, 34)


def facts_of(recording):
    neurons = len(recording.population)
    return SessionFacts(
        name="sim", unit_ids=tuple(range(neurons)), frames_per_second=30.0, kind="spikes",
        frame_size=SIZE, video_mean=0.4, video_std=0.2, behaviour_channels=(), behaviour_mean=(),
        behaviour_std=(), pupil_mean=None, pupil_std=None, mean_response=(0.5,) * neurons,
        coordinates=None, split={"train": tuple(range(32)), "validation": (32,), "test": (33,)},
    )  # fmt: skip


def test_the_search_receives_the_held_out_neurons(monkeypatch):
    told = []

    def search(trials, *, frames_per_second, pooled):
        told.append(pooled.tolist())
        return FoundPlaces(torch.zeros(4, 2), torch.zeros(4, dtype=torch.bool))

    monkeypatch.setattr("ssl_vivit.neural.readout.energy_start.energy_centres", search)
    facts = replace(facts_of(SimpleNamespace(population=range(4))), held_out_units=(1, 2))
    model = NeuralModel(encoder_with(), None, None, {"sim": GaussianReadout(4, 8)})
    start_at_energy(model, [None], [facts])
    assert told == [[True, False, False, True]]


def test_readouts_start_where_the_map_shows_the_places_of_the_screen():
    """Positions refer to the screen; the map is larger than the screen if tubelets are padded."""
    readout = GaussianReadout(4, 2)
    before = readout.mean.detach().clone()
    centres = torch.tensor([[0.1, -0.5], [torch.nan, torch.nan], [-0.7, 0.9], [1.0, -1.0]])
    found = FoundPlaces(centres, torch.tensor([True, False, True, True]))
    low, high = (-1.0, -1.2), (1.4, 1.0)
    _place(readout, found, torch.tensor([low, high]))
    for n in (0, 2, 3):
        for axis in range(2):
            share = (float(centres[n, axis]) - low[axis]) / (high[axis] - low[axis])
            assert readout.mean[n, axis].item() == pytest.approx(2 * share - 1, abs=1e-6)
    assert torch.equal(readout.mean[1], before[1])


@pytest.mark.parametrize("tubelets", [{}, {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 4, 4)}])
def test_readouts_start_at_the_true_receptive_fields(recording, tubelets):
    torch.manual_seed(0)
    model = NeuralModel(encoder_with(**tubelets), None, None, {"sim": GaussianReadout(20, 8)})
    recording.read.clear()
    notes = start_at_energy(model, [recording], [facts_of(recording)])
    (note,) = notes
    assert int(note.split()[3]) >= 18
    assert recording.read == list(range(32))
    found, true = found_centres(model, "sim", SIZE), recording.population.center.numpy()
    assert min(position_correlation(found, true)) > 0.9
    # On the screen, not on the map: overlapping tubelets see less than all of it.
    pixels = np.abs(found - true) * np.array(SIZE[::-1]) / 2
    assert (np.median(pixels, axis=0) < 2).all()


def test_positions_from_the_cortex_are_unchanged(recording):
    cortical = GaussianReadout(20, 8, coordinates=torch.rand(20, 3))
    before = cortical.mean.detach().clone()
    model = NeuralModel(encoder_with(), None, None, {"sim": cortical})
    assert start_at_energy(model, [recording], [facts_of(recording)]) == []
    assert torch.equal(cortical.mean, before)


def test_sixteen_trials_of_a_calcium_signal_place_most_neurons():
    """For 80 neurons and 16 trials of 4 s, a regression on all places at once finds 42 neurons."""
    population, trials = calcium_session(80, 16)
    found = energy_centres(trials, frames_per_second=30.0)
    assert share_near(found.centres.numpy(), population.center.numpy(), SIZE) > 0.8
    # Each neuron's signal of another trial has no place.
    moved = [(video, trials[i - 1][1]) for i, (video, _) in enumerate(trials)]
    assert energy_centres(moved, frames_per_second=30.0).known.float().mean() < 0.2


def calcium_session(neurons, count):
    movies = textures(count)
    population = draw_population(neurons, SIZE, 30.0, mean_rate=(5.0, 15.0), seed=1)
    population = calibrated(population, movies)
    filters, draw = Filters(population), np.random.default_rng(0)
    resting = (population.baseline * population.mean_rate).numpy()
    return population, [
        (movie, calcium_signal(draw, filters.rates(movie).numpy(), resting, 30.0).astype("f4"))
        for movie in movies
    ]


def textures(count):
    screen = Screen(SIZE, 120, 30.0, seed=1)
    return [screen.show(movie) for movie in screen.plan("textures", count, 0)[0]]


def test_held_out_neurons_have_no_part_in_the_places_of_others():
    _, trials = calcium_session(12, 6)
    pooled = torch.arange(12) < 8
    wild = [(v, np.concatenate([r[:, :8], r[::-1, 8:] ** 3], 1)) for v, r in trials]
    before, after = (
        energy_centres(each, frames_per_second=30.0, pooled=pooled) for each in (trials, wild)
    )
    assert torch.equal(before.known[:8], after.known[:8])
    torch.testing.assert_close(before.centres[:8], after.centres[:8], equal_nan=True)
    assert before.known[:8].any()


def test_without_a_place_nothing_is_found():
    """The neurons are noise, or follow the flicker or the contrast of the whole screen."""
    rng = np.random.default_rng(0)
    trials = []
    for movie in textures(20):
        level = rng.integers(0, 255, (120, 1, 1))
        video = np.broadcast_to(level, (120, *SIZE)).astype(np.uint8)
        change = np.abs(np.diff(level[:, 0, 0], prepend=level[0, 0, 0]))
        flicker = rng.poisson(0.01 * change[:, None], (120, 5))
        trials.append((video, np.concatenate([flicker, rng.poisson(0.5, (120, 20))], 1)))
        contrast = np.abs(np.gradient(movie.astype(float), axis=2)).mean((1, 2))
        follow = rng.poisson(0.2 * np.roll(contrast, 1)[:, None], (120, 5))
        trials.append((movie, np.concatenate([follow, rng.poisson(0.5, (120, 20))], 1)))
    for part in (trials[::2], trials[1::2], trials):
        found = energy_centres(part, frames_per_second=30.0)
        assert found.known.sum() <= 1
        assert found.centres.shape == (25, 2)
        assert found.centres[~found.known].isnan().all()
    one = energy_centres(trials[1:2], frames_per_second=30.0)
    assert not one.known[5:].any()


def test_degenerate_recordings_have_no_places():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (40, 18, 32)).astype(np.uint8) for _ in range(4)]
    counts = [rng.poisson(0.5, (40, 3)).astype("f4") for _ in range(4)]
    constant = [np.full((40, 18, 32), 7, np.uint8)] * 4
    for videos, responses in (
        (constant, counts),
        (noise, [np.zeros((40, 3), "f4")] * 4),
        (noise, [np.full((40, 3), 0.1, "f4")] * 4),
        (noise, [np.full((40, 3), np.nan, "f4")] * 4),
        ([v[:1] for v in noise], [r[:1] for r in counts]),
        ([v[:, :1, :1] for v in noise], counts),
    ):
        found = energy_centres(zip(videos, responses, strict=True), frames_per_second=30.0)
        assert not found.known.any()
        assert found.centres.isnan().all()
    # A single trial of noise gives a place by chance alone.
    alone = [
        energy_centres(
            [(rng.integers(0, 255, (40, 18, 32)), rng.poisson(0.5, (40, 3)))],
            frames_per_second=30.0,
        ).known.sum()
        for _ in range(20)
    ]
    assert sum(alone) <= 6
    # A neuron without responses leaves the others their places.
    trials = calcium_session(6, 6)[1]
    alone = energy_centres(trials, frames_per_second=30.0)
    assert alone.known.sum() >= 4
    for strange in (np.nan, 0.0, 1e4):
        beside = [(v, np.concatenate([r, np.full((120, 1), strange, "f4")], 1)) for v, r in trials]
        found = energy_centres(beside, frames_per_second=30.0)
        assert not found.known[6]
        torch.testing.assert_close(
            found.centres[:6], alone.centres, equal_nan=True, atol=1e-4, rtol=0
        )


def test_a_neuron_that_follows_one_corner_is_found_there_though_responses_lack():
    rng = np.random.default_rng(1)
    trials = []
    for _ in range(12):
        video = rng.integers(0, 255, (90, 36, 64)).astype(np.uint8)
        still = rng.random((90, 9, 16)).repeat(4, 1).repeat(4, 2) < 0.5
        video = np.where(still, 128, video).astype(np.uint8)
        corner = video[:, 4:8, 8:12].astype(float).std((1, 2))
        responses = rng.poisson(0.02 * np.roll(corner, 2))[:, None].astype(np.float32)
        responses[rng.random(90) < 0.2] = np.nan
        trials.append((video, responses))
    found = energy_centres(trials, frames_per_second=30.0)
    assert found.known.all()
    assert found.centres[0].tolist() == pytest.approx([2 * 10 / 64 - 1, 2 * 6 / 36 - 1], abs=0.08)


def test_the_course_of_responses_is_that_of_a_slow_computation():
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(3):
        level, trial = np.zeros(4), []
        for _ in range(400):
            level = 0.8 * level + rng.standard_normal(4)
            trial.append(level)
        trials.append(torch.tensor(np.array(trial)) * 3 + 1000)
    trials[1][5:9, 0] = torch.nan
    course = _Course.of(trials, torch.tensor([True, True, True, False]), 5)
    together = torch.cat(trials)
    mean = together.nanmean(0)
    assert torch.allclose(course.mean, mean)
    standard = [(trial - mean) / course.deviation for trial in trials]
    pairs = [
        float(one[t, n] * one[t - 1, n])
        for one in standard
        for t in range(1, 400)
        for n in range(3)
        if not (one[t, n].isnan() or one[t - 1, n].isnan())
    ]
    assert course.persistence == pytest.approx(np.mean(pairs), abs=1e-9)
    assert course.persistence == pytest.approx(0.8, abs=0.03)
    # What is left is white noise.
    assert course.inflation == pytest.approx(1, abs=0.15)
    changes = course.changes(trials[1])
    assert changes[0].equal(standard[1][0])
    expected = standard[1][20] - course.persistence * standard[1][19]
    assert torch.allclose(changes[20], expected)
    assert changes[5:10, 0].isnan().all()
    assert not changes[10, 0].isnan()
    # Behind noise of its own the course persists for longer than one frame tells.
    noisy = [trial + 10 * torch.randn(trial.shape, generator=torch.Generator()) for trial in trials]
    assert _Course.of(noisy, torch.ones(4, dtype=torch.bool), 5).inflation > 1.3


def test_the_past_is_the_mean_over_its_lags():
    energy = torch.rand(10, 3)
    for first, last in ((1, 4), (0, 2), (3, 3)):
        slow = torch.stack([
            sum((energy[t - lag] for lag in range(first, last + 1) if t >= lag), torch.zeros(3))
            for t in range(10)
        ])  # fmt: skip
        mean = slow.double() / (last + 1 - first)
        assert torch.allclose(_past(energy, first, last), mean, atol=1e-6)


def test_peaks_are_where_most_mass_is_together():
    maps = torch.zeros(3, 9, 16)
    maps[0, 3, 5], maps[0, 3, 6], maps[0, 7, 14] = 0.3, 0.3, 0.4
    maps[1, 0, 0] = 1e-30
    centres = peak_centres(maps)
    assert centres[0].tolist() == pytest.approx([2 * 6 / 16 - 1, 2 * 3.5 / 9 - 1], abs=1e-6)
    assert centres[1].tolist() == pytest.approx([1 / 16 - 1, 1 / 9 - 1], abs=1e-6)
    assert centres[2].isnan().all()


@pytest.mark.parametrize(
    ("size", "stride"), [((4, 4, 4), None), ((4, 8, 12), (2, 4, 4)), ((4, 6, 6), (2, 3, 2))]
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_map_has_the_place_of_its_tubelets_on_the_screen(size, stride, align_corners):
    encoder = encoder_with(tubelet_size=size, tubelet_stride=stride)
    low, high = screen_span(encoder, SIZE, align_corners=align_corners)
    config = encoder.config
    grid = config.grid_of(8, *SIZE)
    for axis, (length, count, kernel, step) in enumerate(
        ((64, grid.w, size[2], config.kernel_stride[2]),
         (36, grid.h, size[1], config.kernel_stride[1]))
    ):  # fmt: skip
        number = torch.arange(count)
        on_map = 2 * number / (count - 1) - 1 if align_corners else (2 * number + 1) / count - 1
        on_screen = 2 * (number * step + kernel / 2) / length - 1
        placed = low[axis] + (on_map + 1) / 2 * (high[axis] - low[axis])
        assert torch.allclose(placed, on_screen, atol=1e-6)
