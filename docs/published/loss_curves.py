"""Draw the figures of docs/how_to/is_my_loss_normal.md from the metrics of finished runs.

python docs/published/loss_curves.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from ssl_vivit.evaluation.figures import COLOURS, LINES, legend_below, panel_figure, save

RESULTS = Path(__file__).parents[2] / "recipes" / "results"
RUNS = RESULTS / "pretraining"


class Panel(NamedTuple):
    """A panel: its metric, the name of its axis, and the metrics drawn as levels beside it."""

    metric: str
    label: str
    levels: Mapping[str, str] = {}
    logarithmic: bool = False


MASKED = {
    "normal, Model 2": "mae_model2/metrics_seed0.jsonl",
    "normal, Model 3": "mae_model3/metrics_seed0.jsonl",
    "learning rate too low": "failures/low_learning_rate.jsonl",
    "mean image (tubes stay hidden)": "failures/mean_image.jsonl",
}
MASKED_PANELS = (
    Panel("train/loss", "loss", logarithmic=True),
    Panel(
        "val/error",
        "error on hidden tubelets",
        {
            "val/copy_error": "nearest visible tubelet",
            "val/interpolation_error": "mean of the nearest ones",
        },
        logarithmic=True,
    ),
)
SIMCLR = {
    "normal, Model 2": "simclr_model2/metrics_seed0.jsonl",
    "collapse": "failures/collapse.jsonl",
    "colours give the answer": "failures/colours.jsonl",
}
SIMCLR_PANELS = (
    Panel("train/loss", "loss"),
    Panel("val/retrieval_top1", "retrieval of the other view", {"val/retrieval_chance": "chance"}),
    Panel("val/feature_std", "spread of pooled (val/feature_std)", logarithmic=True),
    Panel("probe/linear_num_objects", "number of objects, linear probe (R²)"),
)


def figure(runs: Mapping[str, str], panels: tuple[Panel, ...]) -> Figure:
    """Draw a panel for each metric, with a curve for each run."""
    drawn, axes = panel_figure(len(panels))
    metrics = {name: _read(RUNS / file) for name, file in runs.items()}
    for axis, panel in zip(axes, panels, strict=True):
        for number, (name, lines) in enumerate(metrics.items()):
            points = [(line["step"], line[panel.metric]) for line in lines if panel.metric in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, color=COLOURS[number], marker=".",
                          linestyle=LINES[number % len(LINES)])  # fmt: skip
        first = next(iter(metrics.values()))
        for number, (metric, name) in enumerate(panel.levels.items()):
            level = next(line[metric] for line in first if metric in line)
            axis.axhline(level, color="0.4", linestyle=(":", "-.")[number], linewidth=1, label=name)
        axis.set(xlabel="step", ylabel=panel.label)
        if panel.logarithmic:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        legend_below(axis)
    return drawn


def _read(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    save(figure(MASKED, MASKED_PANELS), RESULTS / "loss_of_masked_tubelets.png")
    save(figure(SIMCLR, SIMCLR_PANELS), RESULTS / "loss_of_simclr.png")
