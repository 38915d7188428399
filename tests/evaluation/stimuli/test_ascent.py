"""Gradient ascent on models whose most exciting stimuli are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.stimuli.ascent import Ascent, AscentConfig, ascend, shifted
from ssl_vivit.evaluation.stimuli.constraints import Constraints
from ssl_vivit.evaluation.stimuli.presentation import Presentation
from ssl_vivit.evaluation.stimuli.references import measure_references

GREY, SIZE, FRAMES = 127.5, (12, 16), 6


def gabors(phase: float = 0.0, frequency: float = 0.9) -> torch.Tensor:
    """Return filters (3, T, H, W) of three units at three places, which drift to the right."""
    y, x = torch.arange(12)[:, None] - 5.5, torch.arange(16)[None] - 7.5
    time = torch.arange(FRAMES)[:, None, None]
    made = []
    for place in (-3.0, 0.0, 3.0):
        wave = torch.cos(frequency * (x - place) - 0.8 * time + phase)
        made.append(torch.exp(-0.5 * (((x - place) / 2.5) ** 2 + (y / 2.5) ** 2)) * wave)
    filters = torch.stack(made) * torch.exp(-0.5 * ((time - 3.5) / 1.2) ** 2)
    return filters - filters.mean((1, 2, 3), keepdim=True)


def drives(video: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Return drives (b, T, n) by a loop over lags; frames before the first are grey."""
    contrast = (video - GREY) / 50
    frames = video.shape[1]
    padded = torch.cat([torch.zeros_like(contrast[:, : FRAMES - 1]), contrast], 1)
    return sum(
        torch.einsum("bthw,nhw->btn", padded[:, lag : lag + frames], filters[:, lag])
        for lag in range(FRAMES)
    )


def linear(video: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(drives(video, gabors()) - 2)


def energy(video: torch.Tensor) -> torch.Tensor:
    return sum(drives(video, gabors(phase)).square() for phase in (0.0, np.pi / 2))


def climb(
    rates, kind: str = "video", units=(0, 1, 2), blur=0.0, batch_size=8, response=None, **settings
) -> tuple[Ascent, Constraints]:
    response = response or (FRAMES if kind == "image" else 1)
    presentation = Presentation(kind, SIZE, GREY, 4, FRAMES, response)
    constraints = Constraints(presentation.shape, GREY, 8.0, blur=blur)
    references = measure_references(rates, presentation, constraints, units, count=20)
    config = AscentConfig(**{"jitter": 0, **settings})
    return (
        ascend(
            rates, presentation, constraints, references.best, units, config, batch_size=batch_size
        ),
        constraints,
    )


def correlations(found: torch.Tensor, filters: torch.Tensor) -> list[float]:
    return [
        float(np.corrcoef(one.flatten(), two.flatten())[0, 1])
        for one, two in zip(found.numpy(), filters.numpy(), strict=True)
    ]


def test_the_optimum_of_a_linear_unit_is_its_filter():
    found, constraints = climb(linear, steps=40)
    assert min(correlations(found.deviations, gabors())) > 0.999
    assert found.deviations.flatten(1).square().mean(1).sqrt().numpy() == pytest.approx([8.0] * 3)
    assert found.raised.all()
    # The response itself, of the projected filter.
    exact = constraints.projected(gabors()) + GREY
    clips = torch.cat([torch.full((3, 4, *SIZE), GREY), exact], 1)
    best = linear(clips)[range(3), -1, range(3)]
    assert found.responses[:, -1].numpy() == pytest.approx(best.numpy(), rel=1e-3)


def test_steps_are_shares_of_the_norm_that_become_shorter():
    """The steps are computed by hand for a unit whose gradient is its filter."""
    found, constraints = climb(lambda video: drives(video, gabors()), steps=4, step_size=0.4)
    presentation = Presentation("video", SIZE, GREY, 4, FRAMES, 1)
    references = measure_references(
        lambda video: drives(video, gabors()), presentation, constraints, (0, 1, 2), count=20
    )
    now = references.best.double().numpy()
    filters = gabors().double().numpy()
    for share in (0.4, 0.3, 0.2, 0.1):
        norm = np.linalg.norm(now[0])
        for unit in range(3):
            moved = now[unit] + share * norm * filters[unit] / np.linalg.norm(filters[unit])
            now[unit] = moved * norm / np.linalg.norm(moved)
    assert found.deviations.numpy() == pytest.approx(now, abs=1e-3)


def test_smoothing_and_jitter_leave_the_filter():
    # Waves of ten pixels; shorter ones become longer by it.
    filters = gabors(frequency=0.6)
    found, _ = climb(lambda video: drives(video, filters), blur=0.7, jitter=1)
    assert 0.95 < min(correlations(found.deviations, filters)) < 0.999


def test_pixels_stay_in_range_where_the_filter_would_leave_it():
    # The energy of a small filter is so concentrated that its peaks are cut off.
    found, _ = climb(linear)
    presentation = Presentation("video", SIZE, GREY, 4, FRAMES, 1)
    strong = Constraints(presentation.shape, GREY, 60.0)
    again = ascend(
        linear, presentation, strong, found.deviations, (0, 1, 2), AscentConfig(jitter=0)
    ).deviations
    assert again.flatten(1).square().mean(1).sqrt().numpy() == pytest.approx([60.0] * 3, rel=1e-6)
    assert again.abs().max() <= 127.5
    assert (again.abs() == 127.5).flatten(1).any(1).all()
    assert min(correlations(again, gabors())) > 0.6


@pytest.mark.parametrize("rates", [linear, energy])
def test_responses_rise_all_the_way(rates):
    found, _ = climb(rates)
    assert (found.responses.diff(dim=1) > -1e-3 * found.responses[:, -1:]).all()
    assert (found.responses[:, -1] > 2 * found.responses[:, 0]).all()


def test_an_energy_unit_is_found_at_one_of_its_phases():
    found, _ = climb(energy)
    pair = torch.stack([gabors(), gabors(np.pi / 2)], 1).flatten(2)
    basis, _ = torch.linalg.qr(pair.mT)
    flat = found.deviations.flatten(1)
    inside = torch.einsum("npk,np->nk", basis, flat).norm(dim=1) / flat.norm(dim=1)
    assert inside.min() > 0.99


def test_the_image_of_a_linear_unit_is_the_mean_over_time():
    """For a constant image, the drive is the sum of the filter over the frames of the window."""

    def filters_summed(video: torch.Tensor) -> torch.Tensor:
        return drives(video, gabors())

    found, _ = climb(filters_summed, kind="image")
    assert found.deviations.shape == (3, 1, *SIZE)
    weights = gabors().flip(1).cumsum(1).sum(1)
    assert min(correlations(found.deviations[:, 0], weights)) > 0.99


def test_a_batch_of_units_equals_one_at_a_time():
    together, _ = climb(linear, blur=1.0, jitter=2)
    for batch_size in (1, 2):
        apart, _ = climb(linear, blur=1.0, jitter=2, batch_size=batch_size)
        assert apart.deviations.numpy() == pytest.approx(together.deviations.numpy(), abs=1e-2)
        assert apart.responses.numpy() == pytest.approx(together.responses.numpy(), rel=1e-4)
    alone, _ = climb(linear, blur=1.0, jitter=2, units=(2,))
    assert alone.deviations[0].numpy() == pytest.approx(together.deviations[2].numpy(), abs=1e-2)


def test_a_seed_repeats_the_result():
    one, two, other = (climb(energy, jitter=2, steps=10, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one.deviations, two.deviations)
    assert torch.equal(one.responses, two.responses)
    assert not torch.equal(one.deviations, other.deviations)


def test_a_unit_without_a_gradient_stays_at_its_start():
    def dead(video: torch.Tensor) -> torch.Tensor:
        return torch.relu(drives(video, gabors()) - torch.tensor([0.0, 1e6, 0.0]))

    found, _ = climb(dead)
    assert found.raised.tolist() == [True, False, True]
    presentation = Presentation("video", SIZE, GREY, 4, FRAMES, 1)
    constraints = Constraints(presentation.shape, GREY, 8.0)
    start = measure_references(dead, presentation, constraints, [1], count=20).best[0]
    assert found.deviations[1].numpy() == pytest.approx(start.numpy(), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_stimulus_is_worse_than_its_start(seed):
    """A checkerboard of single pixels, shifted by one pixel, is its own negative."""
    y, x = torch.arange(12)[:, None], torch.arange(16)
    checks = torch.zeros(3, FRAMES, *SIZE)
    checks[:, -1] = 1.0 - 2 * ((x + y) % 2)
    found, _ = climb(lambda video: drives(video, checks), jitter=1, steps=1, seed=seed)
    presentation = Presentation("video", SIZE, GREY, 4, FRAMES, 1)
    constraints = Constraints(presentation.shape, GREY, 8.0)
    references = measure_references(
        lambda video: drives(video, checks), presentation, constraints, (0, 1, 2), count=20
    )
    assert (found.responses[:, -1].numpy() >= references.random.max(0) - 1e-6).all()
    shown = drives(presentation.clips(found.deviations), checks)[range(3), -1, range(3)]
    assert found.responses[:, -1].numpy() == pytest.approx(shown.numpy(), rel=1e-5)


def test_references_are_the_models_responses():
    presentation = Presentation("video", SIZE, GREY, 4, FRAMES, 2)
    constraints = Constraints(presentation.shape, GREY, 8.0)
    found = measure_references(linear, presentation, constraints, [2, 0], count=5, batch_size=2)
    grey = linear(torch.full((1, 4 + FRAMES, *SIZE), GREY))[0, -2:].mean(0)
    assert found.grey == pytest.approx(grey[[2, 0]].numpy())
    assert found.random.shape == (5, 2)
    again = presentation.responses(linear(presentation.clips(found.best)))
    assert again[[0, 1], [2, 0]].numpy() == pytest.approx(found.random.max(0))


def test_stimuli_move_over_grey():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert shifted(image, (1, -2))[0, 0].tolist() == [[0, 0, 0, 0], [2, 3, 0, 0], [6, 7, 0, 0]]
    assert torch.equal(shifted(image, (0, 0)), image)


@pytest.mark.parametrize("response", [0, 7])
def test_a_response_must_fit_the_stimulus(response):
    with pytest.raises(NeuralModelError, match=f"--response of {response} frames"):
        Presentation("video", SIZE, GREY, 4, FRAMES, response)
