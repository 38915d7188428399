"""Functions for figures: write PNG and GIF files, convert pixels, draw images and curves."""

from __future__ import annotations

import gc
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

# Okabe & Ito (2008), Color Universal Design: distinct with any colour vision and in greyscale.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
LINES = ("-", "--", ":", "-.")
# Inches; 900 pixels at matplotlib's 100 dots an inch, the width of a web page.
PAGE_WIDTH = 9.0
# Milliseconds. GIF durations are hundredths of a second; browsers slow down frames shorter than
# two.
_SHORTEST = 20


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure of a size in inches.

    matplotlib is imported here so that ``--help`` is fast.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panel_figure(panels: int, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Create a figure as wide as a web page, with two panels per row; return figure and panels."""
    columns = min(2, panels)
    rows = -(-panels // columns)
    figure = new_figure(4.4 * columns, height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes[:panels]


def legend_below(axis: Axes) -> None:
    """Put a panel's legend below its axis, where it covers no line."""
    _, labels = axis.get_legend_handles_labels()
    if not labels:
        return
    columns = 2 if max(map(len, labels)) < 24 else 1
    axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns,
                frameon=False)  # fmt: skip


def caption(figure: Figure, text: str) -> None:
    """Write a text above a figure, in lines that fit its width."""
    letters_per_line = int(13 * figure.get_figwidth())
    figure.suptitle(textwrap.fill(text, letters_per_line), fontsize=9)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, atomically.

    Raises:
        ValueError: if ``path`` is a directory.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a PNG file")
    with replaced_file(path) as part:
        FigureCanvasAgg(figure).print_png(part)
    # Figures contain reference cycles. Without this call, their pixels would fill the memory.
    gc.collect()


def save_gif(pictures: Sequence[Image.Image], frames_per_second: float, path: Path) -> None:
    """Write a GIF that loops forever, atomically.

    The duration of a frame is rounded to hundredths of a second and is at least 0.02 s.

    Raises:
        ValueError: if ``path`` is a directory.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a GIF file")
    duration = max(_SHORTEST, round(100 / frames_per_second) * 10)
    with replaced_file(path) as part:
        pictures[0].save(
            part, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0
        )


def pixels(
    frames: Float[Tensor, "... c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "... h w 3"]:
    """Convert normalised frames to RGB in [0, 1]; a grey channel is repeated three times."""
    shape = (-1, 1, 1)
    frames = frames.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    if frames.shape[-3] == 1:
        frames = frames.expand(*frames.shape[:-3], 3, *frames.shape[-2:])
    return frames.clamp(0, 1).movedim(-3, -1)


def image_sheet(
    images: Float[Tensor, "rows columns h w 3"],
    titles: Sequence[Sequence[str]],
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw images in rows and columns; the figure is at most as wide as a web page.

    Args:
        images: RGB in [0, 1].
        titles: titles above the images, one list per row; an empty list draws no titles.
        labels: labels to the left of the rows.
    """
    rows, columns, height, width = images.shape[:4]
    cell = min(1.9, (PAGE_WIDTH - 0.3) / columns)
    lines = sum(max((title.count("\n") + 1 for title in row), default=0) for row in titles)
    figure = new_figure(cell * columns + 0.3, (cell * height / width + 0.08) * rows + 0.19 * lines)
    for row, axes in enumerate(figure.subplots(rows, columns, squeeze=False)):
        for column, axis in enumerate(axes):
            axis.imshow(images[row, column].numpy())
            axis.set(xticks=[], yticks=[])
            if titles[row]:
                axis.set_title(titles[row][column], fontsize=9, loc="left", pad=3)
        if labels is not None:
            axes[0].set_ylabel(labels[row], fontsize=9)
    return figure


def draw_curves(
    metrics: Sequence[Mapping[str, float | None]],
    panels: Mapping[str, Mapping[str, str]],
    path: Path,
    *,
    logarithmic: Sequence[str] = (),
    levels: Mapping[str, Mapping[str, float]] | None = None,
    level_name: str = "chance",
) -> None:
    """Draw curves of metrics over steps; panels and curves without values are left out.

    Args:
        metrics: lines of metrics.jsonl. None, which stands for a non-finite value, leaves a gap.
        panels: one mapping for each panel, by the panel's title. A mapping gives the label of the
            curve for each name of a metric.
        path: path of the PNG file.
        logarithmic: titles of panels whose axis is logarithmic if all values are positive and the
            largest is at least 30 times the smallest.
        levels: reference values of curves, such as chance levels, by the panel's title and the
            curve's label. They are drawn as dotted lines in the curve's colour.
        level_name: name of the reference values in the legend.
    """
    levels = levels or {}
    points = {
        title: {
            label: [(line["step"], line[name]) for line in metrics if name in line]
            for name, label in names.items()
            if any(name in line for line in metrics)
        }
        for title, names in panels.items()
    }
    shown = {title: curves for title, curves in points.items() if curves}
    if not shown:
        return
    figure, panels_of = panel_figure(len(shown))
    for axis, (title, curves) in zip(panels_of, shown.items(), strict=True):
        level = levels.get(title, {})
        for index, (label, pairs) in enumerate(curves.items()):
            colour, style = COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]
            steps, values = zip(*pairs, strict=True)
            heights = [float("nan") if value is None else value for value in values]
            marker = "o" if len(pairs) < 30 else None
            name = textwrap.fill(label, 45) if len(curves) <= 12 else None
            axis.plot(steps, heights, style, color=colour, marker=marker, ms=3, label=name)
            if label in level:
                # A leading underscore excludes the line from the legend.
                name = f"_{level_name} of {label}"
                axis.axhline(level[label], color=colour, lw=1.2, ls=":", label=name)
        if level.keys() & curves.keys():
            axis.plot([], [], ":", color="0.3", label=f"{level_name} (dotted)")
        known = [value for pairs in curves.values() for _, value in pairs if value is not None]
        falls_far = known and min(known) > 0 and max(known) >= 30 * min(known)
        if title in logarithmic and falls_far:
            axis.set_yscale("log")
        axis.set(title=title, xlabel="optimisation step")
        # Integer ticks, even if all values belong to one step.
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
        legend_below(axis)
    save(figure, path)
