"""Correlations with true filters, compared with explicit filters and with the simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.population import Filters, draw_population
from ssl_vivit.evaluation.stimuli.agreement import (
    agree,
    drive_correlation,
    nearest_filters,
    space_correlation,
)

SIZE, FRAMES = (18, 26), 15


@pytest.fixture(scope="module")
def filters() -> Filters:
    return Filters(draw_population(8, SIZE, 30.0, seed=5))


@pytest.fixture(scope="module")
def truth(filters) -> dict[str, np.ndarray]:
    tensors = {name: value.numpy() for name, value in filters.population.tensors().items()}
    return tensors | {
        "receptive_field": filters.even.numpy(), "receptive_field_odd": filters.odd.numpy(),
        "fast_kernel": filters.fast.numpy(), "slow_kernel": filters.slow.numpy(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(5, FRAMES, *SIZE))


def written_out(truth, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the filter pairs of the preferred and the opposite direction, (2, T, H, W) each."""
    even, odd = truth["receptive_field"][unit], truth["receptive_field_odd"][unit]
    fast, slow = (truth[f"{name}_kernel"][unit][:FRAMES][::-1] for name in ("fast", "slow"))

    def product(course, image):
        return course[:, None, None] * image

    towards = [product(slow, even) + product(fast, odd), product(slow, odd) - product(fast, even)]
    away = [product(slow, even) - product(fast, odd), product(slow, odd) + product(fast, even)]
    return np.stack(towards), np.stack(away)


def test_drives_are_those_of_written_out_filters(truth, videos):
    found = drive_correlation(videos, truth)
    for unit in range(8):
        towards, away = written_out(truth, unit)
        other = 1 - truth["selectivity"][unit]
        if truth["complex"][unit]:
            rows = np.concatenate([towards, np.sqrt(other) * away]).reshape(4, -1)
            drive = np.linalg.norm(videos.reshape(5, -1) @ rows.T, axis=1)
            largest = np.linalg.norm(rows, 2)
        else:
            whole = (towards[0] + other * away[0]).ravel()
            drive = (videos.reshape(5, -1) @ whole).clip(0)
            largest = np.linalg.norm(whole)
        expected = drive / largest / np.linalg.norm(videos.reshape(5, -1), axis=1)
        assert found[:, unit] == pytest.approx(expected, abs=1e-6)


def test_drives_are_in_proportion_to_those_of_the_simulation(filters, truth, videos):
    drives = np.stack(
        [filters.parts(torch.from_numpy(video).float())[0][-1].numpy() for video in videos]
    )
    norms = np.linalg.norm(videos.reshape(5, -1), axis=1)[:, None]
    ratio = drives / norms / np.maximum(drive_correlation(videos, truth), 1e-12)
    known = drives > 1e-6
    assert known.sum() > 20
    for unit in range(8):
        own = ratio[known[:, unit], unit]
        assert own == pytest.approx(np.full(len(own), own.mean()), rel=1e-3)


def test_the_true_filter_has_a_correlation_of_one(truth, videos):
    units = np.arange(8)
    start = np.random.default_rng(3).normal(size=(8, FRAMES, *SIZE))
    near = nearest_filters(start, truth)
    norms = [np.linalg.norm(each.reshape(8, -1), axis=1) for each in (near, start)]
    assert norms[0] == pytest.approx(norms[1])
    simple = truth["complex"] == 0
    assert drive_correlation(near, truth)[units, units][simple] == pytest.approx(1, abs=1e-6)
    assert drive_correlation(-near, truth)[units, units][simple] == pytest.approx(0, abs=1e-6)
    # The nearest of all phases: once more it hardly changes, and it drives more than what it is near.
    complex_ = ~simple
    for _ in range(30):
        near = nearest_filters(near, truth)
    assert drive_correlation(near, truth)[units, units][complex_] == pytest.approx(1, abs=1e-3)
    assert drive_correlation(-near, truth)[units, units][complex_] == pytest.approx(1, abs=1e-3)


def test_space_is_the_projection_on_the_gabor_pair(truth, videos):
    found = space_correlation(videos, truth)
    for unit in range(8):
        pair = np.stack([truth["receptive_field"][unit], truth["receptive_field_odd"][unit]])
        basis, _ = np.linalg.qr(pair.reshape(2, -1).T)
        flat = videos.reshape(5, FRAMES, -1)
        inside = np.linalg.norm((flat @ basis).reshape(5, -1), axis=1)
        expected = inside / np.linalg.norm(flat.reshape(5, -1), axis=1)
        assert found[:, unit] == pytest.approx(expected, abs=1e-6)
    images = truth["receptive_field"][:, None] - 0.3 * truth["receptive_field_odd"][:, None]
    assert np.diag(space_correlation(images, truth)) == pytest.approx(1)
    assert nearest_filters(images, truth) == pytest.approx(images, abs=1e-6)


def test_controls_are_of_other_units_and_of_shuffled_frames(truth):
    places = [4, 1]
    own = {name: values[places] for name, values in truth.items()}
    stimuli = nearest_filters(np.random.default_rng(4).normal(size=(2, FRAMES, *SIZE)), own)
    found = agree("video", stimuli, truth, places, 1, seed=0)
    everything = drive_correlation(stimuli, truth)
    assert found.drive == pytest.approx(everything[[0, 1], places])
    others = [everything[row, unit] for row in (0, 1) for unit in range(8) if unit != places[row]]
    assert found.other_drive == pytest.approx(np.mean(others))
    assert (found.shuffled < 0.6 * found.drive).all()
    assert found.space == pytest.approx([1, 1])
    told = found.to_json()
    assert told["drive"]["median"] == pytest.approx(np.median(found.drive))
    assert set(agree("image", stimuli[:, :1], truth, places, 15, seed=0).to_json()) == {"space"}


def test_a_response_of_several_frames_counts_its_best_one(truth):
    own = {name: values[:2] for name, values in truth.items()}
    stimuli = nearest_filters(np.random.default_rng(4).normal(size=(2, FRAMES, *SIZE)), own)
    late = np.concatenate([stimuli, np.zeros((2, 2, *SIZE))], 1)
    last = agree("video", late, own, [0, 1], 1, seed=0).drive
    best = agree("video", late, own, [0, 1], 3, seed=0).drive
    assert best == pytest.approx(agree("video", stimuli, own, [0, 1], 1, seed=0).drive)
    assert (last < best).all()
