"""Figures of receptive fields: ellipses over the frame, maps, time courses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.evaluation.fields.ellipses import Ellipses
from ssl_vivit.evaluation.fields.methods import Fields
from ssl_vivit.evaluation.figures import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    PAGE_WIDTH,
    RED,
    caption,
    new_figure,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Maximum number of ellipses in one panel; more would hide each other.
_MOST = 60
_OF_METHODS = {"position": BLACK, "gradient": BLUE, "noise": RED, "truth": GREEN}


def draw_ellipses(fields: Mapping[str, Ellipses], frame_size: tuple[int, int], path: Path) -> None:
    """Draw ellipses of one standard deviation over the frame, with one panel for each method.

    Args:
        fields: ellipses by name of the method, of the same units for all methods. At most 60 units
            are drawn; their indices are evenly spaced.
        frame_size: (H, W) in pixels.
        path: path of the PNG file.
    """
    height, width = frame_size
    rows = -(-len(fields) // 2)
    panel = PAGE_WIDTH / 2
    figure = new_figure(PAGE_WIDTH, rows * (panel * height / width + 0.25) + 0.5)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis in axes[len(fields) :]:
        axis.set_axis_off()
    for axis, (name, own) in zip(axes, fields.items(), strict=False):
        units = np.unique(np.linspace(0, len(own.centres) - 1, _MOST).round().astype(int))
        for place, unit in enumerate(units):
            _ellipse(axis, own, unit, frame_size, COLOURS[place % len(COLOURS)])
        known = int(np.isfinite(own.centres).all(1).sum())
        axis.set_title(f"{_named(name)}: {known} of {len(own.centres)} units", fontsize=9)
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
    caption(
        figure,
        "one standard deviation; a dot is a centre without a size; the same colour is the same unit",
    )
    save(figure, path)


def draw_maps(
    fields: Mapping[str, Fields],
    ellipses: Mapping[str, Ellipses],
    names: Sequence[str],
    rows: Sequence[int],
    facts: SessionFacts,
    path: Path,
) -> None:
    """Draw receptive fields of selected units in three columns, one row for each unit.

    - first column: the spatial filter from gradients, at its strongest lag
    - second column: the power measured by white noise, or by gradients if ``fields`` has no white
      noise
    - third column: time courses by gradients and by white noise

    Ellipses of all methods are drawn over the first two columns.

    Args:
        fields: receptive fields of all units, by name of the method.
        ellipses: ellipses of all units, by name of the method.
        names: labels of the selected units.
        rows: indices of the selected units among all units.
        facts: ``SessionFacts`` of the session.
        path: path of the PNG file.
    """
    height, width = facts.frame_size
    cell = PAGE_WIDTH / 3
    figure = new_figure(PAGE_WIDTH, (cell * height / width + 0.35) * len(rows) + 1.0)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    second = "noise" if "noise" in fields else "gradient"
    for line, name, row in zip(axes, names, rows, strict=True):
        filters, power = (
            fields["gradient"].images["filter"][row],
            fields[second].images["power"][row],
        )
        # Squares at the edge may extend beyond the frame.
        side = fields[second].pixel
        reach = (0, power.shape[1] * side, power.shape[0] * side, 0)
        peak = float(np.abs(filters).max()) or 1.0
        line[0].imshow(filters, cmap="PuOr", vmin=-peak, vmax=peak, extent=(0, width, height, 0))
        line[1].imshow(np.maximum(power, 0), cmap="Greys", extent=reach)
        for axis in line[:2]:
            for method, own in ellipses.items():
                _ellipse(axis, own, row, facts.frame_size, _OF_METHODS[method])
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        line[0].set_ylabel(name, fontsize=9)
        for method, style in (("gradient", "o-"), ("noise", "s--")):
            kernels = fields[method].kernels if method in fields else None
            if kernels is not None and np.isfinite(kernels[row]).all():
                milliseconds = -1000 * np.arange(kernels.shape[1]) / facts.frames_per_second
                course = kernels[row] / (np.abs(kernels[row]).max() or 1)
                line[2].plot(milliseconds, course, style, color=_OF_METHODS[method], ms=3, lw=1.2)
        line[2].axhline(0, color=BLACK, lw=0.6, ls=":")
        line[2].set_ylim(-1.1, 1.1)
        line[2].tick_params(labelsize=8)
    by = {"noise": "white noise", "gradient": "gradient"}[second]
    for axis, title in zip(
        axes[0], ("filter by gradient", f"power by {by}", "time course"), strict=True
    ):
        axis.set_title(title, fontsize=9)
    axes[-1][2].set_xlabel("before the response (ms)", fontsize=9)
    for method in ellipses:
        axes[0][0].plot([], [], color=_OF_METHODS[method], label=_named(method))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=9, frameon=False)  # fmt: skip
    caption(figure, "orange excites, purple suppresses; ellipses: one standard deviation")
    save(figure, path)


def _ellipse(
    axis: Axes, own: Ellipses, unit: int, frame_size: tuple[int, int], colour: str
) -> None:
    """Draw one ellipse in pixels, or a dot if only its centre is known."""
    from matplotlib.patches import Ellipse

    height, width = frame_size
    x, y = (own.centres[unit] + 1) / 2 * np.array([width, height])
    if not np.isfinite(x + y):
        return
    major, minor = own.axes[unit]
    if np.isfinite(major):
        axis.add_patch(Ellipse((x, y), 2 * major, 2 * minor, angle=own.angles[unit], fill=False,
                               color=colour, lw=1.1))  # fmt: skip
    else:
        axis.plot(x, y, ".", color=colour, ms=4)


def _named(method: str) -> str:
    return method if method == "truth" else f"by {method}"
