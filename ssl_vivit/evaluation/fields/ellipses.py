"""Ellipses of receptive fields, computed from power maps by adaptive second moments."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

# Standard deviation of the initial weight, an isotropic Gaussian: as a fraction of the map's
# height, and its smallest value in pixels. It must bridge the zeros between the lobes of a filter.
_START, _LEAST_START = 0.12, 1.5
_ROUNDS, _TOLERANCE = 200, 1e-4
# Smallest standard deviation in pixels: a uniform distribution over one pixel has 1/√12 = 0.29.
_NARROWEST = 0.29
# Largest standard deviation as a fraction of the map's longer side. Wider shapes are an offset of
# the whole map, not a field.
_WIDEST = 0.25


class Ellipses(NamedTuple):
    """Gaussian receptive fields of n units; NaN for a unit without a receptive field.

    Attributes:
        centres: (n, 2), (x, y); −1 and 1 are the outer edges of the frame.
        covariances: (n, 2, 2), covariance of (x, y) in pixels².
    """

    centres: Float[np.ndarray, "n 2"]
    covariances: Float[np.ndarray, "n 2 2"]

    @property
    def axes(self) -> Float[np.ndarray, "n 2"]:
        """Standard deviations in pixels along the major and the minor axis."""
        known = np.isfinite(self.covariances).all((1, 2))
        safe = np.where(known[:, None, None], self.covariances, np.eye(2))
        lengths = np.sqrt(np.maximum(np.linalg.eigvalsh(safe)[:, ::-1], 0))
        return np.where(known[:, None], lengths, np.nan)

    @property
    def angles(self) -> Float[np.ndarray, " n"]:
        """Direction of the major axis in degrees, from 0 to below 180; 90 is vertical."""
        xx, xy, yy = (self.covariances[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        return np.degrees(np.arctan2(2 * xy, xx - yy) / 2) % 180

    @property
    def size(self) -> Float[np.ndarray, " n"]:
        """Geometric mean of the standard deviations along the two axes, in pixels."""
        return np.sqrt(self.axes.prod(1))

    def masked(self, known: np.ndarray) -> Ellipses:
        """Return a copy of the ellipses with NaN where ``known`` is False."""
        return Ellipses(
            np.where(known[:, None], self.centres, np.nan),
            np.where(known[:, None, None], self.covariances, np.nan),
        )


def ellipses_of(power: Float[np.ndarray, "n h w"]) -> Ellipses:
    """Return the ellipse of each unit's spatial filter, given a map of the filter's square.

    Second moments over a whole frame are dominated by noise, so moments are computed under a
    Gaussian weight. Its centre and covariance are iterated until the covariance is twice that of
    the weighted map, because the product of a Gaussian with itself has half its variance (adaptive
    moments, Bernstein & Jarvis 2002, Astron. J. 123:583, Section 3). The weight starts at the peak
    of the smoothed map. For a Gabor function, whose envelope is √2 wider than the envelope of its
    square, the result is the Gaussian envelope.

    Args:
        power: maps (n, h, w) of the squared filter, in pixels of the frame. The mean of a map must
            be 0 outside the receptive field, so noise may be negative.

    Returns:
        Ellipses. They are NaN for a unit if its map is not finite or has no positive values, if the
        Gaussian leaves the map, becomes too wide or loses all weight, or if the iteration does not
        converge.
    """
    height, width = power.shape[1:]
    row, column = np.mgrid[:height, :width]
    found = [_adapted(each, row, column) for each in power]
    centres = np.array([centre for centre, _ in found])
    covariances = np.array([covariance for _, covariance in found])
    places = (2 * centres + 1) / np.array([width, height]) - 1
    return Ellipses(places, 2 * covariances)


def _adapted(
    power: Float[np.ndarray, "h w"], row: np.ndarray, column: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre (x, y), in pixel indices, and the covariance of one map's Gaussian."""
    unknown = np.full(2, np.nan), np.full((2, 2), np.nan)
    if not np.isfinite(power).all() or power.max() <= 0:
        return unknown
    start = max(_START * len(power), _LEAST_START)
    smooth = _smoothed(power, start / 2)
    peak = np.unravel_index(smooth.argmax(), smooth.shape)
    centre = np.array([peak[1], peak[0]], float)
    covariance = np.eye(2) * start**2
    for _ in range(_ROUNDS):
        x, y = column - centre[0], row - centre[1]
        inverse = np.linalg.inv(covariance)
        distance = inverse[0, 0] * x**2 + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y**2
        weight = power * np.exp(-distance / 2)
        total = weight.sum()
        if not total > 0:
            return unknown
        step = np.array([(weight * x).sum(), (weight * y).sum()]) / total
        x, y = x - step[0], y - step[1]
        cross = (weight * x * y).sum()
        moments = np.array([[(weight * x**2).sum(), cross], [cross, (weight * y**2).sum()]]) / total
        centre, before, covariance = centre + step, covariance, 2 * moments
        lengths, turn = np.linalg.eigh(covariance)
        inside = (centre > -1).all() and (centre < np.array(power.shape[::-1])).all()
        if not (inside and lengths[1] < (_WIDEST * max(power.shape)) ** 2):
            return unknown
        # Noise can make a moment negative.
        covariance = (turn * np.maximum(lengths, _NARROWEST**2)) @ turn.T
        change = np.abs(step).max() + np.abs(covariance - before).max() / covariance.trace()
        if change < _TOLERANCE:
            return centre, covariance
    return unknown


def _smoothed(power: Float[np.ndarray, "h w"], sigma: float) -> Float[np.ndarray, "h w"]:
    """Smooth a map by a Gaussian; the edges are padded by their nearest pixel."""
    reach = max(1, round(2 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 0.5)) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padding = [(reach, reach) if each == axis else (0, 0) for each in (0, 1)]
        windows = sliding_window_view(np.pad(power, padding, mode="edge"), len(kernel), axis=axis)
        power = windows @ kernel
    return power
