"""Result files of measured tuning.

units.csv        a row for each unit: preferences, indices, fits
tuning.csv       a row for each unit, property and value: response and fitted response
tuning.npz       responses as arrays, including those to all full-field gratings
tuning.png       curves of some units
agreement.json   correlations with recorded curves and with the true tuning; only with --against
recorded.png     predicted and recorded curves; only with --against
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vivit.evaluation.neurons.result_files import write_csv
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.evaluation.tuning.against import Known
from ssl_vivit.evaluation.tuning.curves import TuningCurves
from ssl_vivit.evaluation.tuning.figure import draw_curves, draw_recorded
from ssl_vivit.evaluation.tuning.fits import Fit
from ssl_vivit.evaluation.tuning.truth import agreement
from ssl_vivit.files import without_nan, write_json

_TOLD = (
    "response", "dsi", "osi", "modulation", "direction_width", "preferred_spatial_frequency",
    "preferred_temporal_frequency", "c50", "preferred_size", "suppression_index",
)  # fmt: skip


def write_results(
    folder: Path,
    curves: TuningCurves,
    fits: Mapping[str, Sequence[Fit | None]] | None,
    table: dict[str, Any],
    known: Known | None,
    *,
    draw: int,
) -> list[str]:
    """Write all files and return a summary as lines of text.

    Args:
        folder: an empty folder.
        curves: curves of all units.
        fits: fits of all units, or None.
        table: result of :func:`~ssl_vivit.evaluation.tuning.units.measure_units`.
        known: recorded and true tuning, or None.
        draw: number of units in the figures; those with the largest responses are drawn.
    """
    unit_ids = table["unit"]
    rows = np.argsort(-np.array(table["response"]), kind="stable")[:draw].tolist()
    names = [f"unit {unit_ids[row]}" for row in rows]
    told = _medians(table)
    found: dict[str, Any] = {}
    if known is not None and known.recorded is not None:
        recorded, agreed = known.recorded
        for name in ("model", "training", "reliability"):
            table[f"recorded_{name}"] = getattr(agreed, name).tolist()
        found["recorded"] = {"tiers": recorded.tiers, **agreed.to_json()}
        told += _recorded_lines(found["recorded"])
        draw_recorded(names, rows, recorded, agreed, folder / "recorded.png")
    if known is not None and known.true is not None:
        found["truth"] = agreement(table, known.true)
        told += [
            f"{name}: r = {each['correlation']:.3f} with the true tuning over {each['units']} units"
            for name, each in found["truth"].items()
        ]
    write_csv(folder / "units.csv", table)
    write_csv(folder / "tuning.csv", _long_table(curves, fits, unit_ids))
    arrays: dict[str, Any] = _arrays(curves, unit_ids)
    np.savez(folder / "tuning.npz", **arrays)
    draw_curves(curves, fits, names, rows, folder / "tuning.png")
    if found:
        write_json(folder / "agreement.json", without_nan(found), indent=1)
    return told


def _medians(table: Mapping[str, Any]) -> list[str]:
    """Return lines of text with medians over units and the number of responding units."""
    responsive = int((np.array(table["response"]) > 0).sum())
    rows = [["units with a response above grey", f"{responsive} of {len(table['unit'])}"]]
    for name in _TOLD:
        values = np.array(table.get(name, []), float)
        values = values[np.isfinite(values)]
        if len(values):
            rows.append([f"median {name}", f"{np.median(values):.3g}"])
    return text_table(rows).splitlines()


def _recorded_lines(found: Mapping[str, Any]) -> list[str]:
    names = {
        "model": "curves over movies, model and recorded",
        "training": "mean of the training trials and recorded",
        "reliability": "halves of the recorded trials",
        "other_units": "control: model's curves of other units",
        "other_movies": "control: movies exchanged",
    }
    rows = []
    for name, label in names.items():
        each = found.get(name, {})
        if "median" in each:
            rows.append([label, f"mean r = {each['mean']:.3f}, median {each['median']:.3f}"])
        elif each:
            low, high = each["range"]
            rows.append([label, f"mean r = {each['mean']:.3f}, 95 % {low:.3f} to {high:.3f}"])
    return text_table(rows).splitlines()


def _long_table(
    curves: TuningCurves, fits: Mapping[str, Sequence[Fit | None]] | None, unit_ids: Sequence[int]
) -> dict[str, list[Any]]:
    """Return the columns of tuning.csv, with a row for each unit, property and value."""
    names = ("unit", "property", "value", "response", "fitted")
    table: dict[str, list[Any]] = {name: [] for name in names}
    for row, unit in enumerate(unit_ids):
        for name, x in curves.values.items():
            fit = None if fits is None else fits[name][row]
            table["unit"] += [unit] * len(x)
            table["property"] += [name] * len(x)
            table["value"] += x.tolist()
            table["response"] += curves.responses[name][row].tolist()
            table["fitted"] += [math.nan] * len(x) if fit is None else fit(x).tolist()
    return table


def _arrays(curves: TuningCurves, unit_ids: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        "unit": np.array(unit_ids),
        "grey": curves.grey,
        "grid": curves.grid,
        "best": curves.best,
        **{f"{name}_values": each for name, each in curves.values.items()},
        **{f"{name}_responses": each for name, each in curves.responses.items()},
    }
