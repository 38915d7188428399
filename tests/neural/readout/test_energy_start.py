"""Where readouts start: against true receptive fields, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.population import Filters, calibrated, draw_population
from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.evaluation.neurons.receptive_fields import found_centres, position_correlation
from ssl_vivit.neural.cores.vivit_core import screen_span
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.energy_start import (
    _best_ridges,
    _explained,
    _past,
    _Sums,
    energy_centres,
    local_energy,
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
    """Complex and simple units that watch noise whose contrast comes and goes in places."""

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


@pytest.mark.parametrize("tubelets", [{}, {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 4, 4)}])
def test_readouts_start_at_the_true_receptive_fields(recording, tubelets):
    torch.manual_seed(0)
    model = NeuralModel(encoder_with(**tubelets), None, None, {"sim": GaussianReadout(20, 8)})
    recording.read.clear()
    notes = start_at_energy(model, [recording], [facts_of(recording)])
    (note,) = notes
    assert int(note.split()[1]) >= 18
    assert recording.read == list(range(32))
    found, true = found_centres(model, "sim", SIZE), recording.population.center.numpy()
    assert min(position_correlation(found, true)) > 0.9
    # On the screen, not on the map: overlapping tubelets see less than all of it.
    pixels = np.abs(found - true) * np.array(SIZE[::-1]) / 2
    assert (np.median(pixels, axis=0) < 2).all()


def test_positions_from_the_cortex_are_left_alone(recording):
    cortical = GaussianReadout(20, 8, coordinates=torch.rand(20, 3))
    before = cortical.mean.detach().clone()
    model = NeuralModel(encoder_with(), None, None, {"sim": cortical})
    assert start_at_energy(model, [recording], [facts_of(recording)]) == []
    assert torch.equal(cortical.mean, before)


def test_without_a_place_nothing_is_found():
    """Noise, and neurons that follow the flicker of the whole screen."""
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(20):
        level = rng.integers(0, 255, (60, 1, 1))
        video = np.broadcast_to(level, (60, 18, 32)).astype(np.uint8)
        change = np.abs(np.diff(level[:, 0, 0], prepend=level[0, 0, 0]))
        whole = rng.poisson(0.01 * change[:, None], (60, 5))
        trials.append((video, np.concatenate([whole, rng.poisson(0.5, (60, 20))], 1)))
    found = energy_centres(trials, frames_per_second=30.0)
    assert not found.known[:5].any()
    assert found.known.sum() <= 8
    assert found.centres[~found.known].isnan().all()

    one = energy_centres(trials[:1], frames_per_second=30.0)
    assert not one.known.any()
    assert one.centres.shape == (25, 2)


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
    assert found.centres[0].tolist() == pytest.approx([2 * 10 / 64 - 1, 2 * 6 / 36 - 1], abs=0.06)


def test_regression_and_its_gain_are_those_of_a_slow_computation():
    torch.manual_seed(0)
    parts = [(torch.rand(40, 3).double(), torch.rand(40, 2).double()) for _ in range(4)]
    parts[1][1][5:9, 0] = torch.nan
    halves = [_Sums(), _Sums()]
    for number, part in enumerate(parts):
        halves[number % 2].add(*part)
    x = torch.cat([parts[0][0], parts[2][0]])
    y = torch.cat([parts[0][1], parts[2][1]])
    z = (x - x.mean(0)) / x.std(0, correction=0)
    weights = torch.linalg.inv(z.T @ z / 80 + 0.3 * torch.eye(3)) @ z.T @ (y - y.mean(0)) / 80
    assert torch.allclose(halves[0].regression(0.3), weights)

    x, y = torch.cat([parts[1][0], parts[3][0]]), torch.cat([parts[1][1], parts[3][1]])
    for unit in range(2):
        known = ~y[:, unit].isnan()
        # Features have the mean and covariance of all frames; with all known it is plain R².
        if known.all():
            predicted = (x - x.mean(0)) @ (weights[:, unit] / parts_std(parts))
            left = (y[:, unit] - y[:, unit].mean() - predicted).square().mean()
            expected = 1 - left / y[:, unit].var(correction=0)
            assert float(_explained(halves, 0.3)[0, unit]) == pytest.approx(float(expected))
    together = _Sums.sum(halves)
    assert together.count == 160
    assert torch.equal(together.known, torch.tensor([156, 160]))
    best, known = _best_ridges(halves)
    assert best.shape == known.shape == (2,)


def parts_std(parts):
    return torch.cat([parts[0][0], parts[2][0]]).std(0, correction=0)


def test_the_past_is_the_sum_over_its_lags():
    energy = torch.rand(10, 3)
    for first, last in ((1, 4), (0, 2), (3, 3)):
        slow = torch.stack([
            sum((energy[t - lag] for lag in range(first, last + 1) if t >= lag), torch.zeros(3))
            for t in range(10)
        ])  # fmt: skip
        assert torch.allclose(_past(energy, first, last), slow, atol=1e-6)


def test_energy_is_change_and_contrast_of_cells():
    video = torch.randint(0, 256, (5, 36, 64), dtype=torch.uint8)
    energy = local_energy(video)
    assert energy.shape == (5, 2, 9, 16)
    grey = video.double() / 255
    cell = grey[:, 8:12, 4:8]
    assert torch.allclose(energy[:, 1, 2, 1].double(), cell.std((1, 2), correction=0), atol=1e-5)
    change = (cell[1:] - cell[:-1]).abs().mean((1, 2))
    assert torch.allclose(energy[1:, 0, 2, 1].double(), change, atol=1e-6)
    assert (energy[0, 0] == 0).all()


def test_peaks_are_centred_and_other_bumps_do_not_draw_them():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(16.0), indexing="ij")
    blob = torch.exp(-((x - 5.5) ** 2 + (y - 3.0) ** 2) / 2)
    far = 0.8 * torch.exp(-((x - 14) ** 2 + (y - 7) ** 2) / 2)
    maps = torch.stack([blob, blob + far, -blob])
    centres = peak_centres(maps)
    expected = [2 * 6 / 16 - 1, 2 * 3.5 / 9 - 1]
    assert centres[0].tolist() == pytest.approx(expected, abs=0.04)
    assert centres[1].tolist() == pytest.approx(expected, abs=0.04)
    assert centres[2].isnan().all()


@pytest.mark.parametrize(
    ("size", "stride"), [((4, 4, 4), None), ((4, 8, 12), (2, 4, 4)), ((4, 6, 6), (2, 3, 2))]
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_map_lies_on_the_screen_where_its_tubelets_do(size, stride, align_corners):
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
