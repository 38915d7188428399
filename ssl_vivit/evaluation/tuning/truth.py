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
        spatial_frequency: spatial frequency of the Gabor functions, in cycles per pixel.
        temporal_frequency: temporal frequency with the largest drive, in Hz.
        selectivity: 1 for neurons that respond to one direction, 0 for neurons that respond equally
            to both directions.
        surround: weight of the contrast around the receptive field.
    """

    direction: Column
    spatial_frequency: Column
    temporal_frequency: Column
    selectivity: Column
    surround: Column


def true_tuning(truth: Mapping[str, np.ndarray], frames_per_second: float) -> TrueTuning:
    """Compute the true tuning from the parameters of a simulated session.

    Args:
        truth: tensors of ``meta/ground_truth.safetensors``.
        frames_per_second: frame rate of the session.
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
    """Return the temporal frequency of the best grating in the preferred direction.

    Responses of the even and the odd filter to such a grating differ by a quarter of a cycle. The
    drive slow · even + fast · odd therefore has the amplitude |S(f) − i·F(f)|, where S and F are
    the Fourier transforms of the slow and the fast kernel.
    """
    frequencies = np.linspace(0, frames_per_second / 2, 500)
    # As in the simulation, lags refer to the middle of each frame.
    seconds = (np.arange(fast.shape[1]) + 0.5) / frames_per_second
    waves = np.exp(-2j * np.pi * seconds[:, None] * frequencies)
    return frequencies[np.abs(slow @ waves - 1j * (fast @ waves)).argmax(1)]


def angular_correlation(one: Column, two: Column, *, period: float) -> float:
    """Return the circular correlation of two angles over neurons, from −1 to 1.

    The correlation is computed from the sines of angle differences over all pairs of neurons
    (Fisher & Lee 1983, Biometrika 70:327). NaN for fewer than three neurons.

    Args:
        one: first angle of each neuron.
        two: second angle of each neuron. Neurons with an angle that is not finite are left out.
        period: period of the angles; 180 for orientations in degrees.
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
    """Return the absolute difference of angles, at most half a period."""
    return np.abs((np.asarray(one) - two + period / 2) % period - period / 2)


def _linear_correlation(one: Column, two: Column) -> float:
    known = np.isfinite(one) & np.isfinite(two)
    a, b = np.asarray(one)[known], np.asarray(two)[known]
    if len(a) < 3 or not (np.ptp(a) > 0 and np.ptp(b) > 0):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def agreement(units: Mapping[str, Any], true: TrueTuning) -> dict[str, dict[str, float]]:
    """Correlate measured and true tuning over neurons.

    Angles are compared by circular correlation, and frequencies by the correlation of their
    logarithms. Directions are compared only for neurons whose true ``selectivity`` is at least 0.5.
    The direction selectivity index is correlated with the true ``selectivity``, and the suppression
    index with the true ``surround``.

    Args:
        units: table from :func:`~ssl_vivit.evaluation.tuning.units.measure_units`.
        true: true tuning of these neurons.

    Returns:
        For each property a dictionary with two entries: ``units``, the number of neurons, and
        ``correlation``. Direction and orientation have a third entry ``median_difference``, the
        median absolute difference in degrees.
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
