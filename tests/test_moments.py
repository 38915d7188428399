"""Merged moments equal the moments of all numbers at once."""

import numpy as np

from ssl_vivit.moments import Moments


def test_merged_moments_are_those_of_all_numbers_together():
    rng = np.random.default_rng(0)
    # An offset that a sum of squares would drown in.
    parts = [1e7 + rng.standard_normal((n, 3)) for n in (5, 1, 80, 14)]
    whole = np.concatenate(parts)
    parts[2][4:40, 1] = np.nan
    whole[10:46, 1] = np.nan
    whole[:, 2] = np.nan
    for part in parts:
        part[:, 2] = np.nan
    merged = Moments.merged(map(Moments.of, parts))
    assert np.allclose(merged.mean[:2], np.nanmean(whole[:, :2], axis=0), rtol=1e-15)
    assert np.allclose(merged.std[:2], np.nanstd(whole[:, :2], axis=0), rtol=1e-9)
    assert merged.count.tolist() == [100, 64, 0]
    assert (merged.mean[2], merged.std[2], merged.varies[2]) == (0, 0, False)
    turned = Moments.merged(Moments.of(part.T, axis=1) for part in parts)
    assert np.array_equal(turned.deviation, merged.deviation)


def test_moments_of_pixels_need_no_float_copy():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    for values in (pixels, pixels.astype(np.float32)):
        moments = Moments.of_pixels(values)
        assert np.allclose([moments.mean, moments.std], [pixels.mean(), pixels.std()], rtol=1e-12)


def test_rounding_does_not_count_as_variance():
    constant = Moments.merged([Moments.of(np.full((49, 1), np.float32(0.1)))] * 7)
    assert constant.varies.tolist() == [False]
