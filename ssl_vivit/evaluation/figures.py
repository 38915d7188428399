"""Figures of a pretraining run: learning curves, augmented views, nearest neighbours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures, nearest_videos
from ssl_vivit.files import replaced_file


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the file appears whole.

    Raises:
        ValueError: if ``path`` is a directory.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give the name of a PNG file")
    with replaced_file(path) as part:
        FigureCanvasAgg(figure).print_png(part)


def pixels(
    frames: Float[Tensor, "... c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "... h w 3"]:
    """Normalised frames as RGB in [0, 1]; grey ones get three equal channels."""
    shape = (-1, 1, 1)
    frames = frames.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    if frames.shape[-3] == 1:
        frames = frames.expand(*frames.shape[:-3], 3, *frames.shape[-2:])
    return frames.clamp(0, 1).movedim(-3, -1)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line]


_FALLING = ("loss", "error on hidden tubelets")


def learning_curves(metrics: list[dict[str, float]], path: Path) -> None:
    """Loss, learning rate and, where they were measured, accuracies over steps.

    Losses and errors that fall to a thirtieth or less are drawn on a logarithmic axis.
    """
    panels = {
        "loss": ["train/loss"],
        "error on hidden tubelets": ["val/error", "val/copy_error", "val/mean_error"],
        "learning rate": ["train/lr"],
        "top-1 of the positive view": ["train/top1", "val/retrieval_top1"],
        "effective rank": ["train/effective_rank", "val/effective_rank"],
        "spread of features": ["val/feature_std"],
        "linear probe": [
            f"probe/linear_{name}"
            for name in ("presence", "num_objects", "num_collisions", "has_collision", "mean_speed")
        ],
    }
    curves = {
        title: {
            name: [(line["step"], line[name]) for line in metrics if name in line]
            for name in names
            if any(name in line for line in metrics)
        }
        for title, names in panels.items()
    }
    shown = {title: lines for title, lines in curves.items() if lines}
    if not shown:
        return
    figure = Figure(figsize=(4.2 * len(shown), 3.2), layout="constrained")
    for axis, (title, lines) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        for name, points in lines.items():
            marker = "o" if len(points) < 30 else None
            axis.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
        values = [value for points in lines.values() for _, value in points]
        falls_far = min(values) > 0 and max(values) >= 30 * min(values)
        if title in _FALLING and falls_far:
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, path)


def view_pairs(
    clips: Float[Tensor, "b views c T H W"],
    keys: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    *,
    videos: int = 6,
    frames: int = 4,
) -> None:
    """A sheet of augmented views as the encoder gets them: a row a video, its views side by side."""
    videos, views, total = min(videos, len(clips)), clips.shape[1], clips.shape[3]
    times = torch.linspace(0, total - 1, min(frames, total)).round().long()
    images = pixels(clips[:videos, :, :, times].movedim(3, 2), mean, std)
    columns = views * len(times)
    aspect = clips.shape[-2] / clips.shape[-1]
    figure = Figure(figsize=(1.6 * columns, 1.6 * aspect * videos + 0.5), layout="constrained")
    axes = figure.subplots(videos, columns, squeeze=False)
    for row in range(videos):
        for column in range(columns):
            view, time = divmod(column, len(times))
            axis = axes[row][column]
            axis.imshow(images[row, view, time].numpy())
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"view {view + 1}, frame {int(times[time])}", fontsize=8)
        axes[row][0].set_ylabel(keys[row], fontsize=7)
    save(figure, path)


def nearest_neighbours(
    found: ViewFeatures,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    *,
    queries: int = 6,
    neighbours: int = 5,
) -> None:
    """Query clips (left) and the clips of other videos that the encoder puts closest to them."""
    chosen = torch.linspace(0, len(found.keys) - 1, min(queries, len(found.keys))).long().unique()
    indices, similarity = nearest_videos(found.features[:, 0], chosen, neighbours)
    images = pixels(found.middle_frames[:, 0], mean, std)
    rows, columns = len(chosen), 1 + indices.shape[1]
    aspect = images.shape[1] / images.shape[2]
    figure = Figure(figsize=(1.9 * columns, (1.9 * aspect + 0.3) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, query in enumerate(chosen.tolist()):
        shown = [query, *indices[row].tolist()]
        titles = ["query", *(f"{value:.3f}" for value in similarity[row].tolist())]
        for axis, video, title in zip(axes[row], shown, titles, strict=True):
            axis.imshow(images[video].numpy())
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"{title}  {found.keys[video]}", fontsize=7)
    save(figure, path)
