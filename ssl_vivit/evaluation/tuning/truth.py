"""Agreement of measured tuning with the known parameters of simulated neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Column = Float[np.ndarray, " n"]


class TrueTuning(NamedTuple):
    """True tuning of n simulated neurons.

    Attributes:
        direction: preferred direction of motion in degrees: 0 is to the right, 90 downwards.
        spatial_frequency: of the Gabor functions, cycles per pixel.
        temporal_frequency: at which the drive is largest, Hz.
        selectivity: 1 for neurons that respond to one direction, 0 for both alike.
        surround: weight of the contrast around the receptive field.
    """

    direction: Column
    spatial_frequency: Column
    temporal_frequency: Column
    selectivity: Column
    surround: Column


def true_tuning(truth: Mapping[str, np.ndarray], frames_per_second: float) -> TrueTuning:
    """Tuning by the parameters of a simulated session.

    Args:
        truth: tensors of ``meta/ground_truth.safetensors``.
        frames_per_second: of the session.
    """
    return TrueTuning(
        np.degrees(truth["direction"]) % 360,
        truth["spatial_frequency"],
        _best_frequency(truth["fast_kernel"], truth["slow_kernel"], frames_per_second),
        truth["selectivity"],
        truth["surround"],
    )


def _best_frequency(
    fast: Float[np.ndarray, "n lags"], slow: Float[np.ndarray, "n lags"], frames_per_second: float
) -> Column:
    """Temporal frequency of the largest response to a grating in the preferred direction.

    Such a grating reaches the even and the odd filter a quarter of a cycle apart, so that the drive
    slow · even + fast · odd has the amplitude |S(f) − i·F(f)|, S and F the kernels' transforms.
    """
    frequencies = np.linspace(0, frames_per_second / 2, 500)
    # Lags as in the simulation: the middle of each frame.
    seconds = (np.arange(fast.shape[1]) + 0.5) / frames_per_second
    waves = np.exp(-2j * np.pi * seconds[:, None] * frequencies)
    return frequencies[np.abs(slow @ waves - 1j * (fast @ waves)).argmax(1)]


def angular_correlation(one: Column, two: Column, *, period: float) -> float:
    """Correlation of two angles over neurons, from −1 to 1, also for angles all around the circle.

    The correlation of the sines of differences over all pairs of neurons (Fisher & Lee 1983,
    Biometrika 70:327). NaN for fewer than three neurons.

    Args:
        one: angles; pairs with one that is not finite are left out.
        two: the same neurons' other angles.
        period: of the angles; 180 for orientations in degrees.
    """
    known = np.isfinite(one) & np.isfinite(two)
    a, b = (np.asarray(each)[known] * 2 * np.pi / period for each in (one, two))
    if len(a) < 3:
        return math.nan
    sines, cosines = np.sin(a) * np.sin(b), np.cos(a) * np.cos(b)
    mixed = (np.cos(a) * np.sin(b)).sum() * (np.sin(a) * np.cos(b)).sum()
    product = 4 * (cosines.sum() * sines.sum() - mixed)
    spread = [len(a) ** 2 - np.abs(np.exp(2j * each).sum()) ** 2 for each in (a, b)]
    scale = math.sqrt(max(spread[0] * spread[1], 0.0))
    return float(product) / scale if scale > 1e-9 * len(a) ** 2 else math.nan


def angular_difference(one: Column, two: Column, *, period: float) -> Column:
    """Absolute difference of angles, at most half a period."""
    return np.abs((np.asarray(one) - two + period / 2) % period - period / 2)


def _linear_correlation(one: Column, two: Column) -> float:
    known = np.isfinite(one) & np.isfinite(two)
    a, b = np.asarray(one)[known], np.asarray(two)[known]
    if len(a) < 3 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def agreement(units: Mapping[str, Any], true: TrueTuning) -> dict[str, dict[str, float]]:
    """Property → correlation of measured and true values over neurons, and further numbers.

    Angles have a circular correlation and the median of their absolute difference in degrees;
    frequencies are correlated as logarithms. Directions are compared over the neurons whose true
    ``selectivity`` is at least a half, orientations over all.

    Args:
        units: table of :func:`~ssl_vivit.evaluation.tuning.units.measure_units`.
        true: of the same neurons.
    """

    def column(*names: str) -> Column:
        return np.array(units[next(name for name in names if name in units)], float)

    selective = true.selectivity >= 0.5
    found: dict[str, dict[str, float]] = {}
    for name, period, who in (
        ("direction", 360, selective),
        ("orientation", 180, selective | True),
    ):
        measured = column(f"preferred_{name}", f"vector_{name}")[who]
        actual = true.direction[who] % period
        difference = angular_difference(measured, actual, period=period)
        known = difference[np.isfinite(difference)]
        found[name] = {
            "units": len(known),
            "correlation": angular_correlation(measured, actual, period=period),
            "median_difference": float(np.median(known)) if len(known) else math.nan,
        }
    for name in ("spatial_frequency", "temporal_frequency"):
        measured = column(f"preferred_{name}", f"best_{name}")
        actual = getattr(true, name)
        found[name] = {
            "units": int(np.isfinite(measured).sum()),
            "correlation": _linear_correlation(np.log(measured), np.log(actual)),
        }
    for name, actual in (("dsi", true.selectivity), ("suppression_index", true.surround)):
        if name in units:
            measured = column(name)
            found[name] = {
                "units": int(np.isfinite(measured).sum()),
                "correlation": _linear_correlation(measured, actual),
            }
    return found
