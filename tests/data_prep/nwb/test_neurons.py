"""Calcium signals that are read in parts, compared with a loop over all samples."""

from __future__ import annotations

import numpy as np

from data_prep.nwb.neurons import RoiSignals


def test_trials_keep_recent_samples_from_before_them():
    """Samples are at 4 Hz, bins at 20 Hz, and there is no sample between 5 and 8 s."""
    times = np.concatenate([np.arange(0, 5, 0.25), np.arange(8, 10, 0.25)]) + 0.03
    samples = np.random.default_rng(0).normal(size=(len(times), 3))
    columns = np.array([2, 0])
    rois = RoiSignals("r", np.array([7, 3]), times, samples, columns, 3, 2.0, 0.5)
    missing = 0
    for start in (-1.0, 0.0, 0.1, 2.0, 4.9, 5.1, 6.0, 7.9, 9.5):
        edges = start + np.arange(21) / 20
        expected = np.full((20, 2), np.nan)
        for k in range(20):
            inside = (times >= edges[k]) & (times < edges[k + 1])
            before = np.flatnonzero(times < edges[k])
            if inside.any():
                expected[k] = samples[inside].mean(0)[columns] * 2 + 0.5
            elif before.size and edges[k] - times[before[-1]] <= 1.5 * 0.25:
                expected[k] = samples[before[-1]][columns] * 2 + 0.5
        missing += int(np.isnan(expected[:, 0]).sum())
        np.testing.assert_allclose(rois.responses(edges), expected, rtol=1e-6)
    assert missing > 40
