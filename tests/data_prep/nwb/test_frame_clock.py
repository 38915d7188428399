"""Binning, compared with slow loops, with events exactly on the edges."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.nwb.frame_clock import (
    bin_means,
    even_edges,
    frame_at,
    frame_ends,
    frame_rate,
    observed,
    sample_means,
    spike_counts,
)


def clocks():
    rng = np.random.default_rng(0)
    irregular = 3.7 + np.cumsum(rng.uniform(0.02, 0.05, 200))
    regular = 1e5 + np.arange(301) / 30.0
    return {"irregular": irregular, "regular": regular, "even": even_edges(0.1, 4.1, 60.0)}


@pytest.mark.parametrize("name", clocks())
def test_spikes_on_edges_belong_to_the_bin_that_begins(name):
    edges = clocks()[name]
    rng = np.random.default_rng(1)
    spikes = np.concatenate(
        [
            rng.uniform(edges[0] - 1, edges[-1] + 1, 500),
            edges,
            np.repeat(edges[5:9], 3),
            np.nextafter(edges, -np.inf),
            np.nextafter(edges, np.inf),
        ]
    )
    spikes.sort()
    slow = np.zeros(len(edges) - 1, int)
    for spike in spikes:
        for k in range(len(edges) - 1):
            if edges[k] <= spike < edges[k + 1]:
                slow[k] += 1
    np.testing.assert_array_equal(spike_counts(spikes, edges), slow)
    assert spike_counts(spikes[:0], edges).sum() == 0


def test_neighbouring_bins_lose_and_double_no_spike():
    edges = clocks()["irregular"]
    spikes = np.sort(np.random.default_rng(2).uniform(edges[0], edges[-1], 1000))
    parts = [spike_counts(spikes, edges[:80]), spike_counts(spikes, edges[79:])]
    assert np.concatenate(parts).sum() == 1000


def test_a_frame_before_a_pause_lasts_as_long_as_usual():
    onsets = np.array([0.0, 0.1, 0.2, 0.4, 0.5, 2.0, 2.1])
    # 0.2 s is a dropped frame: the one before it stayed on. 1.5 s is a pause.
    np.testing.assert_allclose(frame_ends(onsets), [0.1, 0.2, 0.4, 0.5, 0.6, 2.1, 2.2])


def test_the_rate_of_a_clock_of_whole_milliseconds():
    onsets = np.round(np.arange(600) / 60, 3)
    assert frame_rate(onsets) == pytest.approx(60, rel=1e-4)
    assert frame_rate(np.append(onsets, onsets + 60)) == pytest.approx(60, rel=1e-4)


def test_even_edges_do_not_drift():
    edges = even_edges(7.0, 7.0 + 100_000 / 30, 30.0)
    assert len(edges) == 100_001
    assert edges[-1] == 7.0 + 100_000 / 30.0


def test_the_frame_of_a_bin_has_begun():
    onsets = np.array([0.0, 0.1, 0.25, 0.3])
    edges = np.array([0.0, 0.05, 0.1 - 1e-12, 0.2, 0.28, 0.3, 0.4])
    np.testing.assert_array_equal(frame_at(onsets, edges), [0, 0, 1, 1, 2, 3])
    rng = np.random.default_rng(3)
    edges = np.sort(rng.uniform(0, 0.4, 50))
    slow = [max(k for k, t in enumerate(onsets) if t <= e) for e in edges[:-1]]
    np.testing.assert_array_equal(frame_at(onsets, edges), slow)


def test_means_over_bins_against_a_loop():
    edges = clocks()["irregular"]
    rng = np.random.default_rng(4)
    times = np.sort(np.concatenate([rng.uniform(edges[3], edges[-1] + 1, 150), edges[10:40]]))
    values = rng.normal(size=(len(times), 2)) + 1e6
    values[rng.random(values.shape) < 0.2] = np.nan
    slow = np.full((len(edges) - 1, 2), np.nan)
    for k in range(len(edges) - 1):
        for c in range(2):
            inside = [
                v for t, v in zip(times, values[:, c], strict=True)
                if edges[k] <= t < edges[k + 1] and not np.isnan(v)
            ]  # fmt: skip
            before = [
                v for t, v in zip(times, values[:, c], strict=True)
                if t < edges[k] and not np.isnan(v)
            ]  # fmt: skip
            if inside or before:
                slow[k, c] = np.mean(inside) if inside else before[-1]
    assert np.isnan(slow[0]).all()
    np.testing.assert_allclose(bin_means(times, values, edges), slow, rtol=1e-14)


def test_means_do_not_look_ahead():
    """A change of the signal after an edge does not change bins before the edge."""
    edges = clocks()["irregular"]
    times = np.sort(np.random.default_rng(5).uniform(edges[0] - 1, edges[-1], 90))
    values = np.random.default_rng(6).normal(size=(90, 1))
    later = np.where(times[:, None] >= edges[100], values + 5, values)
    before, after = bin_means(times, values, edges), bin_means(times, later, edges)
    np.testing.assert_array_equal(before[:100], after[:100])
    assert (before[100:] != after[100:]).any()


def test_observed_bins():
    edges = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    seen = observed(np.array([[0.0, 1.5], [2.0, 4.0]]), edges)
    np.testing.assert_array_equal(seen, [True, False, True, True, False])


def test_responses_are_neither_looked_ahead_nor_filled():
    edges = clocks()["irregular"]
    rng = np.random.default_rng(7)
    times = np.sort(np.concatenate([rng.uniform(edges[2], edges[-1] + 1, 120), edges[10:40]]))
    values = rng.normal(size=(len(times), 3)) + 1e6
    values[rng.random(values.shape) < 0.3] = np.nan
    keep = 0.05
    slow = np.full((len(edges) - 1, 3), np.nan)
    held = 0
    for k in range(len(edges) - 1):
        inside = (times >= edges[k]) & (times < edges[k + 1])
        before = np.flatnonzero(times < edges[k])
        for c in range(3):
            known = values[inside, c][~np.isnan(values[inside, c])]
            if inside.any():
                slow[k, c] = known.mean() if len(known) else np.nan
            elif len(before) and edges[k] - times[before[-1]] <= keep:
                slow[k, c] = values[before[-1], c]
                held += 1
    assert held > 20
    np.testing.assert_allclose(sample_means(times, values, edges, keep), slow, rtol=1e-14)
    nothing = sample_means(times[:0], values[:0], edges, keep)
    assert np.isnan(nothing).all()
