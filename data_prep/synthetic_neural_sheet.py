"""A picture of a simulated session: movies, receptive fields, true rates and responses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from data_prep.synthetic_neural_truth import FACTS, TENSORS
from ssl_vivit.data.errors import DataError

_MOVIES, _FRAMES, _CELLS, _TRACES = 4, 8, 16, 5


def save_sheet(session: str | Path, path: str | Path) -> None:
    """Draw movies for training (rows over time), receptive fields with their preferred motion, and a
    test trial's true rates and responses for neurons from the most to the least predictable.

    Args:
        session: a simulated session's folder.
        path: PNG file to write.

    Raises:
        DataError: if the picture cannot be written.
    """
    session, path = Path(session), Path(path)
    truth = load_file(session / TENSORS)
    facts = json.loads((session / FACTS).read_text())
    tiers = np.load(session / "meta/trials/tiers.npy", allow_pickle=False)
    figure = Figure(figsize=(12, 13), layout="constrained")
    movies, fields, traces = figure.subfigures(3, 1, height_ratios=[3, 4, 5])
    train = _some(np.flatnonzero(tiers == "train"), _MOVIES)
    for row, trial in zip(_axes(movies, _MOVIES, _FRAMES), train, strict=False):
        video = np.load(session / f"data/videos/{trial}.npy", allow_pickle=False)
        for axis, t in zip(row, _some(np.arange(video.shape[-1]), _FRAMES), strict=False):
            axis.imshow(video[..., t], cmap="gray", vmin=0, vmax=255)
    movies.suptitle("movies")
    cells = _some(np.arange(len(truth["center"])), _CELLS)
    height, width = truth["receptive_field"].shape[1:]
    for axis, cell in zip(_axes(fields, 4, 4).flat, cells, strict=False):
        field = truth["receptive_field"][cell]
        limit = np.abs(field).max()
        axis.imshow(field, cmap="RdBu_r", vmin=-limit, vmax=limit)
        x, y = (truth["center"][cell] + 1) / 2 * [width, height] - 0.5
        angle, length = truth["direction"][cell], 8 * truth["selectivity"][cell]
        axis.arrow(x, y, length * np.cos(angle), length * np.sin(angle), head_width=1.5)
        kind = "complex" if truth["complex"][cell] else "simple"
        axis.set_title(f"{cell} {kind}", fontsize=7, pad=2)
    fields.suptitle("receptive fields (even phase) and preferred motion by selectivity")
    share = np.array(facts["ceiling"]["neurons"]["correlation"], dtype=float)
    order = np.argsort(-np.nan_to_num(share, nan=-1.0))
    trial = np.flatnonzero(tiers == "live_test_main")[0]
    rates, responses = (
        np.load(session / f"data/{kind}/{trial}.npy", allow_pickle=False)
        for kind in ("true_rates", "responses")
    )
    seconds = np.arange(rates.shape[1]) / facts["settings"]["frames_per_second"]
    panels = traces.subplots(_TRACES, 1, sharex=True, squeeze=False)[:, 0]
    for axis, cell in zip(panels, _some(order, _TRACES), strict=False):
        axis.bar(seconds, responses[cell], width=seconds[1], color="0.75")
        axis.plot(seconds, rates[cell], color="C3", linewidth=1)
        axis.set_ylabel(f"neuron {cell}")
        axis.set_title(f"correlation {share[cell]:.2f} over the test", fontsize=7, pad=2)
    panels[-1].set_xlabel("seconds")
    traces.suptitle("true rates (line) and responses (bars), a frame, of a test trial")
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, format="png", dpi=90)
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"--contact-sheet {path} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _axes(figure, rows: int, columns: int) -> np.ndarray:
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return axes


def _some(items: np.ndarray, most: int) -> np.ndarray:
    return items[
        np.unique(np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int))
    ]
