"""Table of preferences and selectivity indices of units."""

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
    """Return a table with a column for each preference and index, and a row for each unit.

    The columns are as follows; :mod:`~ssl_vivit.evaluation.tuning.indices` defines the indices:

    - ``grey``: mean rate at grey; ``response``: mean rate at the best grating, minus ``grey``.
    - ``modulation``: F1 / F0, the amplitude at the temporal frequency divided by ``response``
      (Skottun et al. 1991, Vision Res. 31:1079).
    - ``dsi``: contrast index of the best and the opposite direction; ``osi``: contrast index of the
      best and the orthogonal orientation.
    - ``dsi_vector``, ``osi_vector``: lengths of the vector sums.
    - ``vector_*``: angles of the vector sums.
    - ``best_*``: the measured value with the largest response; ``preferred_*``: the value at the
      peak of the fit.
    - ``*_octaves``, ``direction_width``: full width at half height of the fitted peak.
    - ``r2_*``: fraction of variance that the fit explains.

    Values are NaN for units without a response above grey and for curves without a fit.

    Args:
        curves: curves of n units.
        unit_ids: ids of the units.
        fits: property → a fit for each unit; None omits the columns of fits.
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
    # The von Mises function has half its height at concentration · (1 − cos) = log 2.
    half = math.log(2) / fit.parameters["concentration"]
    return 2 * math.degrees(math.acos(1 - half)) if half < 2 else math.nan


def _preferred_size(fit: Fit, x: np.ndarray) -> float:
    fine = np.linspace(0, x[-1], 500)
    return float(fine[fit(fine).argmax()])


def _octaves(fit: Fit, x: np.ndarray) -> float:
    return fit.parameters["octaves"] * 2 * math.sqrt(2 * math.log(2))


def _parameter(name: str, period: float = math.inf) -> Callable[[Fit, np.ndarray], float]:
    return lambda fit, x: fit.parameters[name] % period


# Property → column → function of the fit and x that returns the column's value.
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
