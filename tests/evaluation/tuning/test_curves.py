"""Tuning curves of simulated neurons, which replace a perfect model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.population import Filters, draw_population
from ssl_vivit.evaluation.tuning.curves import measure_curves
from ssl_vivit.evaluation.tuning.gratings import Grating, Protocol
from ssl_vivit.evaluation.tuning.indices import suppression_index
from ssl_vivit.evaluation.tuning.stimuli import default_stimuli
from ssl_vivit.evaluation.tuning.truth import angular_difference
from ssl_vivit.evaluation.tuning.units import measure_units

SIZE, UNITS = (24, 40), 10
PROTOCOL = Protocol(SIZE, 30.0, lead=0.5, seconds=1.2, transient=0.2)
STIMULI = default_stimuli(
    SIZE, 30.0, directions=12, spatial_frequencies=[0.08, 0.12, 0.18], temporal_frequencies=[2, 4],
    contrasts=[0.1, 1.0], sizes=[4, 12, 60], contrast=0.5,
)  # fmt: skip


class Neurons:
    """A population that counts the stimuli that it was shown."""

    def __init__(self) -> None:
        drawn = draw_population(UNITS, SIZE, 30.0, seed=5)
        # The scales of a calibration to textures, about.
        scales = dict.fromkeys(("drive_scale", "output_scale"), torch.full((UNITS,), 0.3))
        self.population = replace(drawn, **scales, surround_scale=torch.full((UNITS,), 0.2))
        self.filters = Filters(self.population)
        self.shown: list[bytes] = []

    def __call__(self, videos):
        self.shown += [video.numpy().tobytes() for video in videos]
        return torch.stack([self.filters.rates(video) for video in videos])


@pytest.fixture(scope="module")
def measured():
    neurons = Neurons()
    centres = neurons.population.center.numpy()
    curves = measure_curves(neurons, PROTOCOL, STIMULI, list(range(UNITS)), centres, batch_size=5)
    return neurons, curves


def response(neurons, grating, unit):
    window = PROTOCOL.window(grating.temporal_frequency)
    rates, grey = (
        neurons.filters.rates(video)[window, unit].double() for video in (PROTOCOL.render(grating), PROTOCOL.blank())
    )  # fmt: skip
    return float(rates.mean() - grey.mean())


def test_responses_equal_those_to_single_gratings(measured):
    neurons, curves = measured
    centres = neurons.population.center.tolist()
    for unit in (0, 7):
        d, s, t = curves.best[unit]
        best = Grating(
            STIMULI.degrees[d], STIMULI.spatial_frequencies[s], STIMULI.temporal_frequencies[t], 0.5
        )
        assert curves.grid[unit, d, s, t] == curves.grid[unit].max()
        for name, place, other in [
            ("direction", 5, replace(best, direction=150.0)),
            ("spatial_frequency", 2, replace(best, spatial_frequency=0.18)),
            ("temporal_frequency", 0, replace(best, temporal_frequency=2)),
            ("contrast", 0, replace(best, contrast=0.1)),
            ("size", 1, replace(best, diameter=12, centre=tuple(centres[unit]))),
        ]:
            found = curves.responses[name][unit, place]
            assert found == pytest.approx(response(neurons, other, unit), rel=1e-4, abs=1e-6), name
        pair = [curves.responses["direction"][unit, place] for place in (2, 8)]
        assert curves.responses["orientation"][unit, 2] == pytest.approx(np.mean(pair))


def test_every_grating_is_shown_once(measured):
    neurons, curves = measured
    best = len({tuple(each) for each in curves.best.tolist()})
    # Grey, the grid, contrasts of each best grating, sizes of each unit.
    assert len(neurons.shown) == 1 + 12 * 3 * 2 + 2 * best + 3 * UNITS
    assert len(set(neurons.shown)) == len(neurons.shown)


def test_a_perfect_model_has_the_true_preferences(measured):
    neurons, curves = measured
    table = measure_units(curves, range(100, 100 + UNITS))
    true = np.degrees(neurons.population.direction.numpy())
    error = angular_difference(np.array(table["vector_orientation"]), true % 180, period=180)
    assert np.median(error) < 4
    best = np.array(STIMULI.degrees)[curves.best[:, 0]]
    selective = neurons.population.selectivity.numpy() > 0.4
    assert selective.sum() > 3
    assert (angular_difference(best, true, period=360)[selective] <= 20).all()
    # Complex units do not follow the grating's phase; simple ones do (Skottun et al. 1991).
    modulation, complex_ = np.array(table["modulation"]), neurons.population.complex.numpy() > 0
    assert modulation[complex_].max() < 0.1
    assert modulation[~complex_].min() > 1
    suppressed = suppression_index(curves.responses["size"])
    np.testing.assert_allclose(table["suppression_index"], suppressed)
    assert (suppressed > 0).any()
    assert table["unit"] == list(range(100, 100 + UNITS))


def test_chosen_units_are_measured_as_among_all(measured):
    neurons, curves = measured
    few = replace(STIMULI, sizes=(12,), contrasts=(1.0,))
    centres = neurons.population.center.numpy()[[7, 2]]
    found = measure_curves(neurons, PROTOCOL, few, [7, 2], centres, batch_size=64)
    assert found.grid == pytest.approx(curves.grid[[7, 2]], rel=1e-4, abs=1e-6)
    assert found.responses["size"] == pytest.approx(
        curves.responses["size"][[7, 2], 1:2], rel=1e-4, abs=1e-6
    )
    assert found.modulation == pytest.approx(curves.modulation[[7, 2]], rel=1e-3, abs=1e-5)
    assert found.grey == pytest.approx(curves.grey[[7, 2]])


def test_units_without_a_response_have_no_preferences():
    def silent(videos):
        rates = torch.zeros(*videos.shape[:2], 2)
        rates[..., 1] = (videos - 127.5).abs().mean((2, 3))  # responds to all gratings alike
        rates[..., 0] = 1 - rates[..., 1] / 255
        return rates

    few = replace(STIMULI, sizes=(), contrasts=())
    table = measure_units(measure_curves(silent, PROTOCOL, few, [0, 1]), [0, 1])
    for name in ("dsi", "osi", "vector_direction", "modulation", "best_spatial_frequency"):
        assert np.isnan(table[name][0]), name
        assert np.isfinite(table[name][1]), name
    assert "suppression_index" not in table
    with pytest.raises(ValueError, match="give centres"):
        measure_curves(silent, PROTOCOL, STIMULI, [0, 1])
