"""Figures of tuning curves, and of predicted and recorded curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ssl_vivit.evaluation.figures import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PAGE_WIDTH,
    caption,
    new_figure,
    save,
)
from ssl_vivit.evaluation.tuning.curves import TuningCurves
from ssl_vivit.evaluation.tuning.fits import Fit
from ssl_vivit.evaluation.tuning.recorded import Agreement, RecordedCurves

# Property → label of its axis.
_LABELS = {
    "direction": "direction (°)",
    "spatial_frequency": "cycles per pixel",
    "temporal_frequency": "frequency (Hz)",
    "contrast": "contrast",
    "size": "diameter (pixels)",
}
_LOGARITHMIC = ("spatial_frequency", "temporal_frequency", "contrast")


def draw_curves(
    curves: TuningCurves,
    fits: Mapping[str, Sequence[Fit | None]] | None,
    names: Sequence[str],
    rows: Sequence[int],
    path: Path,
) -> None:
    """Draw tuning curves and fits of selected units, one row for each unit.

    Args:
        curves: curves of all units.
        fits: fits of all units; None draws lines between the points.
        names: labels of the selected units.
        rows: indices of the selected units.
        path: path of the PNG file.
    """
    shown = [name for name in _LABELS if name in curves.responses]
    figure = new_figure(PAGE_WIDTH, 1.45 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), len(shown), squeeze=False, sharex="col")
    for line, name, row in zip(axes, names, rows, strict=True):
        top = max(float(curves.responses[each][row].max()) for each in shown)
        low = min(0.0, *(float(curves.responses[each][row].min()) for each in shown))
        for axis, each in zip(line, shown, strict=True):
            x, y = curves.values[each], curves.responses[each][row]
            fit = None if fits is None else fits[each][row]
            axis.plot(x, y, "o", color=BLUE, ms=3)
            if fit is None:
                axis.plot(x, y, color=BLUE, lw=1)
            else:
                logarithmic = each in _LOGARITHMIC
                fine = (
                    np.geomspace(x[0], x[-1], 200) if logarithmic else np.linspace(x[0], x[-1], 200)
                )
                axis.plot(fine, fit(fine), color=ORANGE, lw=1.4)
            axis.axhline(0, color=BLACK, lw=0.6, ls=":")
            margin = 0.08 * ((top - low) or 1)
            axis.set_ylim(low - margin, top + margin)
            axis.tick_params(labelsize=8)
            axis.locator_params(axis="y", nbins=3)
            if each in _LOGARITHMIC:
                axis.set_xscale("log", base=10 if each == "contrast" else 2)
                axis.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
                axis.xaxis.set_minor_formatter("")
            if each == "direction":
                axis.set_xticks([0, 90, 180, 270])
            if axis is not line[0]:
                axis.tick_params(labelleft=False)
        line[0].set_ylabel(name, fontsize=9)
    for axis, each in zip(axes[-1], shown, strict=True):
        axis.set_xlabel(_LABELS[each], fontsize=9)
    said = "points: mean rate above grey (responses per frame)"
    caption(figure, said + ("" if fits is None else "; lines: fitted functions"))
    save(figure, path)


def draw_recorded(
    names: Sequence[str],
    rows: Sequence[int],
    found: RecordedCurves,
    agreed: Agreement,
    path: Path,
) -> None:
    """Draw correlations with recorded curves and their controls, and the curves of some units.

    Curves are standardised to mean 0 and standard deviation 1 over movies.

    Args:
        names: labels of the selected units.
        rows: indices of the selected units.
        found: predicted and recorded curves of all units.
        agreed: correlations of the curves.
        path: path of the PNG file.
    """
    columns = 3
    lines = 1 + -(-len(rows) // columns)
    figure = new_figure(PAGE_WIDTH, 2.4 * lines + 0.6)
    grid = figure.add_gridspec(lines, columns)
    axis = figure.add_subplot(grid[0, :])
    edges = np.linspace(-1, 1, 41).tolist()
    for label, values, colour, style in (
        ("model", agreed.model, BLUE, "-"),
        ("mean of training trials", agreed.training, ORANGE, "--"),
    ):
        known = values[np.isfinite(values)]
        if len(known):
            axis.hist(known, edges, color=colour, alpha=0.4)
            axis.axvline(known.mean(), color=colour, ls=style, lw=1.6,
                         label=f"{label}, mean {known.mean():.2f}")  # fmt: skip
    for label, values, colour in (
        ("model, units exchanged", agreed.other_units, GREEN),
        ("model, movies exchanged", agreed.other_movies, "0.4"),
    ):
        known = values[np.isfinite(values)]
        if len(known):
            low, high = np.percentile(known, [2.5, 97.5])
            axis.axvspan(low, high, color=colour, alpha=0.3, lw=0,
                         label=f"{label}: 95 % of means")  # fmt: skip
    axis.set(xlim=(-1, 1), xlabel="correlation with the recorded curve", ylabel="units")
    axis.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    directed = np.isfinite(found.directions).all()
    x = found.directions if directed else np.arange(len(found.directions))
    recorded = np.stack([np.nanmean(trials, 0) for trials in found.recorded], 1)
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        axis = figure.add_subplot(grid[1 + place // columns, place % columns])
        for label, values, colour, style in (
            ("recorded", recorded, BLACK, "o-"),
            ("model", found.predicted, BLUE, "s--"),
        ):
            curve = values[row] - values[row].mean()
            axis.plot(x, curve / (curve.std() or 1), style, color=colour, ms=4, lw=1.2, label=label)
        axis.set_title(f"{name}, r = {agreed.model[row]:.2f}", fontsize=9)
        axis.tick_params(labelsize=8, labelleft=place % columns == 0)
        axis.set_ylim(-3.2, 3.2)
        axis.set_xlabel("direction (°)" if directed else "movie", fontsize=9)
        if directed:
            axis.set(xlim=(-15, 375), xticks=[0, 90, 180, 270, 360])
        if place % columns == 0:
            axis.set_ylabel("response (z)", fontsize=9)
    if len(rows):
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      fontsize=9, frameon=False)  # fmt: skip
    save(figure, path)
