"""Agreement of receptive fields between methods, and with the true fields of simulated neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from jaxtyping import Float

from ssl_vivit.evaluation.fields.ellipses import Ellipses
from ssl_vivit.evaluation.neurons.receptive_fields import position_correlation, share_near


def true_ellipses(truth: Mapping[str, np.ndarray]) -> Ellipses:
    """Return the Gaussian envelopes of a simulated session's Gabor functions.

    Args:
        truth: tensors of ``meta/ground_truth.safetensors``.
    """
    cosine, sine = np.cos(truth["direction"]), np.sin(truth["direction"])
    turn = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], 1)
    return Ellipses(truth["center"], (turn * truth["sigma"][:, None] ** 2) @ turn.swapaxes(1, 2))


def compare(
    fields: Mapping[str, Ellipses], frame_size: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Compare all pairs of methods by correlations over units and by distances of centres.

    Args:
        fields: ellipses by name of the method; all methods must have the same units.
        frame_size: (H, W) in pixels.

    Returns:
        A dictionary of statistics for each pair of methods, by the names of the two methods joined
        with ", ".

        - ``units``: number of units with an ellipse by both methods
        - ``x``, ``y``: Pearson's r between the two methods' coordinates of the centres
        - ``size``: Pearson's r between the logarithms of the two methods' sizes
        - ``distance``: median over units of the distance between a unit's two centres, in pixels
        - ``near``: fraction of the ``units`` whose two centres are within 4 pixels of each other

        Correlations are NaN with fewer than three units.
    """
    found = {}
    for (name, one), (other, two) in combinations(fields.items(), 2):
        known = np.isfinite(one.centres).all(1) & np.isfinite(two.centres).all(1)
        a, b = one.centres[known], two.centres[known]
        x, y = position_correlation(a, b)
        pixels = np.linalg.norm((a - b) * np.array(frame_size[::-1]) / 2, axis=1)
        found[f"{name}, {other}"] = {
            "units": int(known.sum()),
            "x": x,
            "y": y,
            "size": _correlation(np.log(one.size[known]), np.log(two.size[known])),
            "distance": float(np.median(pixels)) if known.any() else math.nan,
            "near": share_near(a, b, frame_size) if known.any() else math.nan,
        }
    return found


def kernel_correlation(
    kernels: Float[np.ndarray, "n lags"],
    fast: Float[np.ndarray, "n lags"],
    slow: Float[np.ndarray, "n lags"],
) -> Float[np.ndarray, " n"]:
    """Correlate the temporal kernel of each unit with the unit's two true kernels.

    The true proportion of the fast and the slow kernel depends on the position in the receptive
    field. A kernel is therefore correlated with the best linear combination of the two. Means are
    not subtracted.

    Args:
        kernels: measured kernels, (n, lags).
        fast: true fast kernel of each unit, (n, lags).
        slow: true slow kernel of each unit, (n, lags).

    Returns:
        Correlations (n,) from 0 to 1: about √(2 / lags) for a kernel of pure noise, NaN for a
        kernel that is zero or not finite.
    """
    lags = min(kernels.shape[1], fast.shape[1])
    found = []
    for kernel, one, two in zip(kernels, fast, slow, strict=True):
        if not np.isfinite(kernel).all() or not kernel.any():
            found.append(math.nan)
            continue
        basis, _ = np.linalg.qr(np.stack([one, two], 1)[:lags])
        found.append(float(np.linalg.norm(basis.T @ kernel[:lags]) / np.linalg.norm(kernel)))
    return np.array(found)


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    known = np.isfinite(one) & np.isfinite(two)
    a, b = one[known], two[known]
    if len(a) < 3 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])
