"""Result files of measured receptive fields.

units.csv        a row for each unit and method: centre, axes and angle of the ellipse, time of the
                 kernel's peak
fields.npz       ellipses, kernels and maps of all units as arrays
ellipses.png     ellipses of up to 60 units over the frame, a panel for each method
fields.png       maps and time courses of some units
agreement.json   agreement of the methods with each other and with the true fields
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.evaluation.fields.agreement import compare, kernel_correlation, true_ellipses
from ssl_vivit.evaluation.fields.figure import draw_ellipses, draw_maps
from ssl_vivit.evaluation.fields.methods import Fields
from ssl_vivit.evaluation.neurons.result_files import write_csv
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.files import without_nan, write_json


def write_results(
    folder: Path,
    fields: Mapping[str, Fields],
    facts: SessionFacts,
    unit_ids: Sequence[int],
    truth: Mapping[str, np.ndarray] | None,
    *,
    draw: int,
) -> list[str]:
    """Write all result files of measured receptive fields; return a summary as lines of text.

    Args:
        folder: an empty folder.
        fields: receptive fields by name of the method; all methods must have the same units.
        facts: ``SessionFacts`` of the session.
        unit_ids: ids of the units.
        truth: true receptive fields of these units in a simulated session, as arrays by name; None
            if they are unknown or not compared.
        draw: number of units in the figure of maps; those with the largest gradients are drawn.
    """
    ellipses = {name: each.ellipses for name, each in fields.items()}
    shown = ellipses if truth is None else {**ellipses, "truth": true_ellipses(truth)}
    agreed = compare(shown, facts.frame_size)
    found: dict[str, Any] = {"ellipses": agreed}
    told = _lines(agreed)
    # Calcium responses are slower than the neurons' true kernels, so only spikes are compared.
    if truth is not None and facts.kind == "spikes":
        found["kernels"] = {}
        for name, each in fields.items():
            if each.kernels is not None:
                rs = kernel_correlation(each.kernels, truth["fast_kernel"], truth["slow_kernel"])
                rs = rs[np.isfinite(rs)]
                median = float(np.median(rs)) if len(rs) else math.nan
                found["kernels"][name] = {"units": len(rs), "median": median}
                told.append(
                    f"time courses by {name}: median r = {median:.3f} with the true kernels over "
                    f"{len(rs)} units"
                )
    write_csv(folder / "units.csv", _table(fields, facts, unit_ids))
    arrays: dict[str, Any] = _arrays(fields, facts, unit_ids)
    np.savez(folder / "fields.npz", **arrays)
    write_json(folder / "agreement.json", without_nan(found), indent=1)
    draw_ellipses(shown, facts.frame_size, folder / "ellipses.png")
    strongest = fields["gradient"].images["power"].max((1, 2))
    rows = np.argsort(-strongest, kind="stable")[:draw].tolist()
    names = [f"unit {unit_ids[row]}" for row in rows]
    draw_maps(fields, shown, names, rows, facts, folder / "fields.png")
    return told


def _lines(agreed: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [["centres and sizes by", "units", "r of x", "r of y", "r of size", "distance (pixels)"]]
    for pair, each in agreed.items():
        numbers = [_said(each[name], 3) for name in ("x", "y", "size")]
        rows.append([pair, str(each["units"]), *numbers, _said(each["distance"], 1)])
    return text_table(rows).splitlines()


def _said(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _table(
    fields: Mapping[str, Fields], facts: SessionFacts, unit_ids: Sequence[int]
) -> dict[str, list[Any]]:
    columns = ("unit", "method", "x", "y", "major", "minor", "angle", "peak_ms")
    table: dict[str, list[Any]] = {name: [] for name in columns}
    for name, each in fields.items():
        own, count = each.ellipses, len(unit_ids)
        peaks = np.full(count, np.nan)
        if each.kernels is not None:
            known = np.isfinite(each.kernels).all(1)
            lag = np.abs(np.where(known[:, None], each.kernels, 0)).argmax(1)
            peaks = np.where(known, 1000 * lag / facts.frames_per_second, np.nan)
        measured = (*own.centres.T, *own.axes.T, own.angles, peaks)
        table["unit"] += list(unit_ids)
        table["method"] += [name] * count
        for column, values in zip(columns[2:], measured, strict=True):
            table[column] += values.tolist()
    return table


def _arrays(
    fields: Mapping[str, Fields], facts: SessionFacts, unit_ids: Sequence[int]
) -> dict[str, np.ndarray]:
    arrays = {"unit": np.array(unit_ids), "frames_per_second": np.array(facts.frames_per_second)}
    for name, each in fields.items():
        arrays[f"{name}_centres"] = each.ellipses.centres
        arrays[f"{name}_covariances"] = each.ellipses.covariances
        if each.kernels is not None:
            arrays[f"{name}_kernels"] = each.kernels
        arrays |= {f"{name}_{image}": values for image, values in each.images.items()}
    return arrays
