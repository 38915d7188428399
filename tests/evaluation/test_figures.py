"""Figures: that pixels are put back exactly, and that each file shows what it was given."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vivit.evaluation import figures
from ssl_vivit.evaluation.figures import (
    learning_curves,
    nearest_neighbours,
    pixels,
    read_metrics,
    view_pairs,
)
from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures


def test_pixels_undo_the_normalisation():
    image = torch.rand(2, 3, 4, 5)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pixels(normalised, mean, std), image.movedim(1, -1))
    grey = pixels(normalised[:, :1], mean[:1], std[:1])
    assert grey.shape == (2, 4, 5, 3)
    torch.testing.assert_close(grey[..., 2], image[:, 0])


def colours(path) -> set[tuple[int, ...]]:
    image = np.asarray(Image.open(path).convert("RGB"))
    found, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    return {
        tuple(map(int, colour)) for colour, count in zip(found, counts, strict=True) if count > 400
    }


def test_view_pairs_show_every_view(tmp_path):
    clips = torch.zeros(2, 2, 3, 4, 8, 8)
    clips[0, 0, 0] = clips[0, 1, 1] = clips[1, 0, 2] = 1.0
    clips[1, 1, :2] = 1.0
    view_pairs(clips, ["a", "b"], (0.0,) * 3, (1.0,) * 3, tmp_path / "views.png")
    shown = colours(tmp_path / "views.png")
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)} <= shown


def test_nearest_neighbours_show_the_closest_video(tmp_path):
    """Red and green lie together, blue apart: red's one neighbour is green."""
    frames = torch.zeros(3, 1, 3, 8, 8)
    for i in range(3):
        frames[i, 0, i] = 1.0
    features = torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]], [[-1.0, 0.2]]])
    path = tmp_path / "neighbours.png"
    found = ViewFeatures(features, ["r", "g", "b"], frames)
    nearest_neighbours(found, (0.0,) * 3, (1.0,) * 3, path, queries=1, neighbours=1)
    shown = colours(path)
    assert {(255, 0, 0), (0, 255, 0)} <= shown
    assert (0, 0, 255) not in shown


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log"), (-0.5, "linear")])
def test_losses_that_fall_far_are_drawn_on_a_logarithmic_axis(last, scale, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.extend(figure.axes))
    losses = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": last}]
    rates = [{"step": 1, "train/lr": 1.0}, {"step": 2, "train/lr": 0.001}]
    learning_curves(losses + rates, tmp_path / "curves.png")
    assert [axis.get_yscale() for axis in drawn] == [scale, "linear"]


def test_curves_are_drawn_from_the_metrics_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train/loss": 3.0, "train/lr": 0.1}\n'
        '{"step": 2, "train/loss": 1.0, "train/lr": 0.2}\n{"step": 2, "val/retrieval_top1": 0.5}\n'
    )
    metrics = read_metrics(path)
    assert [line["step"] for line in metrics] == [1, 2, 2]
    learning_curves(metrics, tmp_path / "curves.png")
    width = Image.open(tmp_path / "curves.png").width
    learning_curves([m for m in metrics if "train/loss" in m], tmp_path / "fewer.png")
    assert width > Image.open(tmp_path / "fewer.png").width
    learning_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert read_metrics(tmp_path / "missing.jsonl") == []
