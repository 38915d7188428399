"""Preferences and indices of each unit, as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ssl_vivit.evaluation.tuning import indices
from ssl_vivit.evaluation.tuning.curves import TuningCurves
from ssl_vivit.evaluation.tuning.fits import Fit

Columns = dict[str, Any]


def measure_units(
    curves: TuningCurves,
    unit_ids: Sequence[int],
    fits: Mapping[str, Sequence[Fit | None]] | None = None,
) -> Columns:
    """Return a column for each preference and index, with a row for each unit.

    ``grey`` and ``response`` are the mean rates at grey and, above it, at the best grating.
    ``modulation`` is F1 / F0, the amplitude at the temporal frequency over ``response`` (Skottun et
    al. 1991, Vision Res. 31:1079). ``*_vector`` are lengths of vector sums, ``dsi`` and ``osi``
    compare the best direction with the opposite one and the best orientation with the orthogonal
    one, as :mod:`~ssl_vivit.evaluation.tuning.indices` says. ``best_*`` are measured values,
    ``preferred_*`` those of the fits. ``*_octaves`` and ``direction_width`` are full widths at half
    height of the fitted bump, ``r2_*`` the fits' shares of explained variance. NaN where a unit has
    no response above grey or a curve no fit.

    Args:
        curves: of n units.
        unit_ids: of these units.
        fits: property → a fit for each unit; None leaves columns of fits out.
    """
    direction, orientation = (curves.responses[each] for each in ("direction", "orientation"))
    degrees = curves.values["direction"]
    turn = indices.vector_sum(direction, degrees, period=360)
    axis = indices.vector_sum(direction, degrees, period=180)
    best = direction.argmax(1)
    edge = orientation.argmax(1)
    peak = direction.max(1)
    responds = peak > 0

    def known(values: np.ndarray) -> np.ndarray:
        return np.where(responds, values, np.nan)

    opposite = indices.at_angle(direction, best, 180, period=360)
    orthogonal = indices.at_angle(orientation, edge, 90, period=180)
    table: Columns = {
        "unit": list(unit_ids),
        "grey": curves.grey,
        "response": peak,
        "vector_direction": indices.angle_of(turn, period=360),
        "dsi": indices.contrast_index(peak, opposite),
        "dsi_vector": np.abs(turn),
        "vector_orientation": indices.angle_of(axis, period=180),
        "osi": indices.contrast_index(orientation.max(1), orthogonal),
        "osi_vector": np.abs(axis),
        "modulation": known(curves.modulation / np.where(responds, peak, 1)),
    }
    for name in curves.values:
        if name not in ("direction", "orientation"):
            found = curves.values[name][curves.responses[name].argmax(1)]
            table[f"best_{name}"] = known(found)
    if "size" in curves.responses:
        table["suppression_index"] = indices.suppression_index(curves.responses["size"])
    if fits is not None:
        table |= _of_fits(fits, curves)
    return {name: each if name == "unit" else each.tolist() for name, each in table.items()}


def _of_fits(fits: Mapping[str, Sequence[Fit | None]], curves: TuningCurves) -> Columns:
    table: Columns = {}
    for name, own in fits.items():
        x = curves.values[name]
        for column, read in {**_READINGS[name], f"r2_{name}": lambda fit, x: fit.r2}.items():
            table[column] = np.array([math.nan if fit is None else read(fit, x) for fit in own])
    return table


def _preferred_direction(fit: Fit, x: np.ndarray) -> float:
    p = fit.parameters
    turned = 180 if p["opposite"] > p["amplitude"] else 0
    return (p["preferred"] + turned) % 360


def _direction_width(fit: Fit, x: np.ndarray) -> float:
    # Where the von Mises function is half as high: concentration · (1 − cos) = log 2.
    half = math.log(2) / fit.parameters["concentration"]
    return 2 * math.degrees(math.acos(1 - half)) if half < 2 else math.nan


def _preferred_size(fit: Fit, x: np.ndarray) -> float:
    fine = np.linspace(0, x[-1], 500)
    return float(fine[fit(fine).argmax()])


def _octaves(fit: Fit, x: np.ndarray) -> float:
    return fit.parameters["octaves"] * 2 * math.sqrt(2 * math.log(2))


def _parameter(name: str, period: float = math.inf) -> Callable[[Fit, np.ndarray], float]:
    return lambda fit, x: fit.parameters[name] % period


# Property → column → its value by the fit to the curve over x.
_READINGS: dict[str, dict[str, Callable[[Fit, np.ndarray], float]]] = {
    "direction": {
        "preferred_direction": _preferred_direction,
        "direction_width": _direction_width,
    },
    "orientation": {"preferred_orientation": _parameter("preferred", 180)},
    "spatial_frequency": {
        "preferred_spatial_frequency": _parameter("preferred"),
        "spatial_frequency_octaves": _octaves,
    },
    "temporal_frequency": {
        "preferred_temporal_frequency": _parameter("preferred"),
        "temporal_frequency_octaves": _octaves,
    },
    "contrast": {"c50": _parameter("c50"), "contrast_exponent": _parameter("exponent")},
    "size": {"preferred_size": _preferred_size},
}
