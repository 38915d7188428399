"""A picture of a simulated session: movies, receptive fields, true rates and responses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from data_prep.output_files import picture_file
from data_prep.synthetic_neural.truth import FACTS, TENSORS

_MOVIES, _FRAMES, _CELLS, _COLUMNS, _TRACES = 4, 8, 24, 6, 5


def save_sheet(session: str | Path, path: str | Path) -> None:
    """Draw movies for training (rows over time), receptive fields with their preferred motion, and a
    test trial's true rates and responses for neurons from the most to the least predictable.

    Args:
        session: a simulated session's folder.
        path: PNG file to write.

    Raises:
        DataError: if the picture cannot be written.
    """
    session = Path(session)
    truth = load_file(session / TENSORS)
    facts = json.loads((session / FACTS).read_text())
    tiers = np.load(session / "meta/trials/tiers.npy", allow_pickle=False)
    figure = Figure(figsize=(11, 13), layout="constrained")
    panels = figure.subplots(2 + _TRACES, 1, height_ratios=[3, 4, *[1] * _TRACES])
    train = _some(np.flatnonzero(tiers == "train"), _MOVIES)
    films = [np.load(session / f"data/videos/{n}.npy", allow_pickle=False) for n in train]
    films = [film[..., _some(np.arange(film.shape[-1]), _FRAMES)] for film in films]
    shown = rearrange(films, "movie h w t -> (movie h) (t w)")
    panels[0].imshow(shown, cmap="gray", vmin=0, vmax=255)
    panels[0].set_title(f"{len(train)} movies over time")
    _draw_receptive_fields(panels[1], truth)
    for axis in panels[:2]:
        axis.axis("off")
    share = np.array(facts["ceiling"]["neurons"]["correlation"], dtype=float)
    order = np.argsort(-np.nan_to_num(share, nan=-1.0))
    trial = np.flatnonzero(tiers == "live_test_main")[0]
    rates, responses = (
        np.load(session / f"data/{kind}/{trial}.npy", allow_pickle=False)
        for kind in ("true_rates", "responses")
    )
    seconds = np.arange(rates.shape[1]) / facts["settings"]["frames_per_second"]
    for axis, cell in zip(panels[2:], _some(order, _TRACES), strict=False):
        axis.bar(seconds, responses[cell], width=seconds[1], color="0.75")
        axis.plot(seconds, rates[cell], color="C3", linewidth=1)
        axis.set_ylabel(f"neuron {cell}", fontsize=8)
        axis.set_title(f"correlation {share[cell]:.2f} over the test", fontsize=8, pad=2)
    panels[-1].set_xlabel(
        "seconds; true rates (lines) and responses (bars) a frame in a test trial"
    )
    with picture_file("--contact-sheet", path) as part:
        figure.savefig(part, format="png", dpi=90)


def _draw_receptive_fields(axis: Axes, truth: dict[str, np.ndarray]) -> None:
    """The first neurons' even fields side by side, with arrows as long as they are selective."""
    fields = truth["receptive_field"][:_CELLS]
    height, width = fields.shape[1:]
    blank = np.zeros((-len(fields) % _COLUMNS, height, width), fields.dtype)
    scaled = np.concatenate([fields / np.abs(fields).max((1, 2), keepdims=True), blank])
    tiled = rearrange(scaled, "(row column) h w -> (row h) (column w)", column=_COLUMNS)
    axis.imshow(tiled, cmap="RdBu_r", vmin=-1, vmax=1)
    for cell in range(len(fields)):
        corner = np.array([cell % _COLUMNS * width, cell // _COLUMNS * height])
        x, y = corner + (truth["center"][cell] + 1) / 2 * [width, height] - 0.5
        angle, length = truth["direction"][cell], height / 4 * truth["selectivity"][cell]
        axis.arrow(x, y, length * np.cos(angle), length * np.sin(angle), head_width=height / 24)
        kind = "complex" if truth["complex"][cell] else "simple"
        axis.text(*corner + 1, f"{cell} {kind}", fontsize=6, va="top")
    for line in range(1, _COLUMNS):
        axis.axvline(line * width - 0.5, color="0.8", linewidth=0.5)
    for line in range(1, len(scaled) // _COLUMNS):
        axis.axhline(line * height - 0.5, color="0.8", linewidth=0.5)
    axis.set_title("receptive fields (even phase) and preferred motion, as long as selective")


def _some(items: np.ndarray, most: int) -> np.ndarray:
    return items[
        np.unique(np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int))
    ]
