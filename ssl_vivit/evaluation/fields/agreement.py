"""Agreement of receptive fields by several methods, and with those of simulated neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from jaxtyping import Float

from ssl_vivit.evaluation.fields.ellipses import Ellipses
from ssl_vivit.evaluation.neurons.receptive_fields import position_correlation, share_near


def true_ellipses(truth: Mapping[str, np.ndarray]) -> Ellipses:
    """Envelopes of the Gabor functions of a simulated session.

    Args:
        truth: tensors of ``meta/ground_truth.safetensors``.
    """
    cosine, sine = np.cos(truth["direction"]), np.sin(truth["direction"])
    turn = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], 1)
    return Ellipses(truth["center"], (turn * truth["sigma"][:, None] ** 2) @ turn.swapaxes(1, 2))


def compare(
    fields: Mapping[str, Ellipses], frame_size: tuple[int, int]
) -> dict[str, dict[str, float]]:
    """Compare every two methods: "one, other" → correlations over units, and distances.

    Args:
        fields: method → ellipses of the same units.
        frame_size: (H, W) in pixels.

    Returns:
        ``units`` with an ellipse by both methods; ``x`` and ``y``, Pearson's r of the centres;
        ``size``, of the logarithms of the sizes; ``distance``, median in pixels; ``near``, share of
        the ``units`` whose centres are within 4 pixels. NaN where fewer than three units are known.
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
    """Correlation of each kernel with the sum of the unit's two true kernels that is nearest to it.

    Where a receptive field is looked at decides in which proportion both are there. A kernel of
    noise alone has about √(2 / lags).
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
