"""Preferences and indices of each unit, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    rows: dict[str, list[float]] = {}
    for name, own in fits.items():
        for one in own:
            told = dict.fromkeys(_READ[name], math.nan) | {f"r2_{name}": math.nan}
            if one is not None:
                told = _READINGS[name](one, curves.values[name]) | {f"r2_{name}": one.r2}
            for column, value in told.items():
                rows.setdefault(column, []).append(value)
    return {column: np.array(values) for column, values in rows.items()}


def _direction(fit: Fit, x: np.ndarray) -> dict[str, float]:
    p = fit.parameters
    turned = 180 if p["opposite"] > p["amplitude"] else 0
    # Where the von Mises function is half as high: concentration · (1 − cos) = log 2.
    half = math.log(2) / p["concentration"]
    width = 2 * math.degrees(math.acos(1 - half)) if half < 2 else math.nan
    return {"preferred_direction": (p["preferred"] + turned) % 360, "direction_width": width}


def _orientation(fit: Fit, x: np.ndarray) -> dict[str, float]:
    return {"preferred_orientation": fit.parameters["preferred"] % 180}


def _frequency(name: str) -> Any:
    def read(fit: Fit, x: np.ndarray) -> dict[str, float]:
        octaves = fit.parameters["octaves"] * 2 * math.sqrt(2 * math.log(2))
        return {f"preferred_{name}": fit.parameters["preferred"], f"{name}_octaves": octaves}

    return read


def _contrast(fit: Fit, x: np.ndarray) -> dict[str, float]:
    return {"c50": fit.parameters["c50"], "contrast_exponent": fit.parameters["exponent"]}


def _size(fit: Fit, x: np.ndarray) -> dict[str, float]:
    fine = np.linspace(0, x[-1], 500)
    return {"preferred_size": float(fine[fit(fine).argmax()])}


_READINGS = {
    "direction": _direction,
    "orientation": _orientation,
    "spatial_frequency": _frequency("spatial_frequency"),
    "temporal_frequency": _frequency("temporal_frequency"),
    "contrast": _contrast,
    "size": _size,
}
_READ = {
    "direction": ("preferred_direction", "direction_width"),
    "orientation": ("preferred_orientation",),
    "spatial_frequency": ("preferred_spatial_frequency", "spatial_frequency_octaves"),
    "temporal_frequency": ("preferred_temporal_frequency", "temporal_frequency_octaves"),
    "contrast": ("c50", "contrast_exponent"),
    "size": ("preferred_size",),
}
