"""Check that a matplotlib figure is readable at the width of a web page."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# Inches; 900 pixels at 100 dots an inch.
PAGE_WIDTH = 9.0
SMALLEST_FONT = 8.0


def faults(figure: Figure) -> list[str]:
    """Return the reasons why a figure is not readable at a width of 900 pixels; empty if it is.

    Reasons are: a figure wider than the page; text that is small, is cut off by the figure's edge
    or overlaps other text; legends on lines; error bars of length zero without a cap.
    """
    FigureCanvasAgg(figure).draw()
    found = []
    width = figure.get_size_inches()[0]
    if width > PAGE_WIDTH:
        found.append(f"the figure is {width:.1f} inches wide")
    texts = _shown_texts(figure)
    whole = figure.bbox.padded(1)
    for text, box in texts:
        if text.get_fontsize() < SMALLEST_FONT:
            found.append(f"{text.get_text()!r} has font size {text.get_fontsize():g}")
        if not (whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1)):
            found.append(f"{text.get_text()!r} is cut off")
    for (one, box), (other, second) in combinations(texts, 2):
        if _overlap(box, second):
            found.append(f"{one.get_text()!r} overlaps {other.get_text()!r}")
    for legend in figure.findobj(Legend):
        found += _lines_below(legend, figure)
    return found


def _shown_texts(figure: Figure) -> list[tuple[Text, Bbox]]:
    outside = set()
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_view_interval")):
        low, high = sorted(axes.get_view_interval())
        slack = 1e-6 * (high - low)
        for tick in axes.findobj(Tick):
            if not (axes.get_visible() and low - slack <= tick.get_loc() <= high + slack):
                outside |= {tick.label1, tick.label2}
    hidden = {text for axes in figure.axes if not axes.axison for text in axes.findobj(Text)}
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in outside | hidden
    ]
    return [(text, box) for text in texts for box in _boxes(text)]


def _boxes(text: Text) -> list[Bbox]:
    """Return the boxes of a text: one box, or a box for each line of text that is flush left."""
    whole, lines = text.get_window_extent(), text.get_text().split("\n")
    if len(lines) == 1 or text.get_rotation() or text.get_horizontalalignment() != "left":
        return [whole]
    renderer, height = text.figure.canvas.get_renderer(), whole.height / len(lines)
    boxes = []
    for place, line in enumerate(lines):
        width, *_ = renderer.get_text_width_height_descent(line, text.get_fontproperties(), False)
        boxes.append(Bbox.from_bounds(whole.x0, whole.y1 - (place + 1) * height, width, height))
    return boxes


def _overlap(one: Bbox, other: Bbox) -> bool:
    """Return whether two boxes overlap by more than their borders."""
    common = Bbox.intersection(one, other)
    return common is not None and common.width > 1 and common.height > 1


def _lines_below(legend: Legend, figure: Figure) -> list[str]:
    """Return the lines of the figure that a legend covers."""
    box = legend.get_window_extent()
    found = []
    for axes in figure.axes:
        if Bbox.intersection(box, axes.bbox) is None:
            continue
        for line in axes.lines:
            points = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
            places = np.linspace(0, len(points) - 1, 20 * len(points))
            x, y = (np.interp(places, range(len(points)), column) for column in points.T)
            inside = (x > box.x0) & (x < box.x1) & (y > box.y0) & (y < box.y1)
            if inside.any():
                found.append(f"a legend covers the line {line.get_label()!r}")
    return found
