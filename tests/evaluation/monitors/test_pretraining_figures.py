"""Figures of pretraining: they show the given clips, and the hidden pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from readable_figures import faults

from ssl_vivit.evaluation import figures
from ssl_vivit.evaluation.monitors import pretraining_figures
from ssl_vivit.evaluation.monitors.pretraining_figures import (
    ERROR_SCALE,
    RESCALED,
    learning_curves,
    nearest_neighbours,
    reconstruction_sheet,
    upsampled,
    view_pairs,
)
from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures
from ssl_vivit.evaluation.probes.scores import CLEVRER_TARGETS
from ssl_vivit.objectives.masked_tubelets import Reconstruction
from ssl_vivit.training.metrics.tracking import read_metrics


def colours(path) -> set[tuple[int, ...]]:
    image = np.asarray(Image.open(path).convert("RGB"))
    found, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    return {
        tuple(map(int, colour)) for colour, count in zip(found, counts, strict=True) if count > 400
    }


@pytest.fixture
def drawn(monkeypatch):
    """Return the sheets at saving; they are also written."""
    kept = []
    save = pretraining_figures.save

    def keep(figure, path):
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(pretraining_figures, "save", keep)
    return kept


def left_titles(figure) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_view_pairs_show_every_view(tmp_path, drawn):
    clips = torch.zeros(2, 2, 3, 4, 8, 8)
    clips[0, 0, 0] = clips[0, 1, 1] = clips[1, 0, 2] = 1.0
    clips[1, 1, :2] = 1.0
    numbers = torch.arange(16).view(2, 2, 4) + 100
    view_pairs(clips, ["a", "b"], numbers, (0.0,) * 3, (1.0,) * 3, tmp_path / "views.png")
    assert faults(drawn[0]) == []
    titles = left_titles(drawn[0])
    assert titles[:5] == [
        "a, view 1\nframe 100", "frame 101", "frame 102", "frame 103", "view 2\nframe 104",
    ]  # fmt: skip
    assert titles[8] == "b, view 1\nframe 108"
    shown = colours(tmp_path / "views.png")
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)} <= shown


def test_nearest_neighbours_show_the_closest_video(tmp_path, drawn):
    """Features of red and green are close and blue is far, so green is the neighbour of red."""
    frames = torch.zeros(3, 1, 3, 8, 8)
    for i in range(3):
        frames[i, 0, i] = 1.0
    features = torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]], [[-1.0, 0.2]]])
    path = tmp_path / "neighbours.png"
    keys = ["r", "clips/of/one/day/green", "b"]
    found = ViewFeatures(features, keys, frames, torch.tensor([[7], [8], [9]]))
    nearest_neighbours(found, (0.0,) * 3, (1.0,) * 3, path, queries=1, neighbours=1)
    assert left_titles(drawn[0]) == ["r\nframe 7, query", "…/of/one/day/green\nframe 8, 0.994"]
    assert faults(drawn[0]) == []
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


def test_curves_show_whole_steps_and_chance(tmp_path, monkeypatch):
    """Chance is 1/7 for train/top1 of 4 videos in two views, and 1/19 for retrieval among 10 videos."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    measured = {"val/retrieval_top1": 0.1, "val/retrieval_chance": 1 / 19}
    probed = {f"probe/linear_{target.name}": 0.3 for target in CLEVRER_TARGETS}
    probed |= {f"probe/chance_{target.name}": 0.2 for target in CLEVRER_TARGETS}
    training = {"train/loss": 1.0, "train/lr": 0.01, "train/top1": 0.3, "train/top1_chance": 1 / 7}
    training |= {"train/effective_rank": 3.0}
    metrics = [{"step": 0, **measured, **probed}, {"step": 1, **training}]
    metrics += [{"step": 2, **training}, {"step": 2, **measured, **probed}]
    learning_curves(metrics, tmp_path / "curves.png")
    (figure,) = drawn
    assert faults(figure) == []
    panels = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    for axis in panels.values():
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
    top1 = panels["top-1 of the positive view"]
    levels = {line.get_label(): line.get_ydata()[0] for line in top1.lines if len(line.get_ydata())}
    assert levels["_chance of train/top1"] == 1 / 7
    assert levels["_chance of val/retrieval_top1"] == 1 / 19
    for title in ("top-1 of the positive view", "linear probe"):
        named = [text.get_text() for text in panels[title].get_legend().get_texts()]
        assert named[-1] == "chance (dotted)"
    assert len(panels["linear probe"].lines) == 2 * len(CLEVRER_TARGETS) + 1


def test_curves_are_drawn_from_the_metrics_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train/loss": 3.0, "train/lr": 0.1}\n'
        '{"step": 2, "train/loss": 1.0, "train/lr": 0.2}\n{"step": 2, "val/retrieval_top1": 0.5}\n'
    )
    metrics = read_metrics(path)
    assert [line["step"] for line in metrics] == [1, 2, 2]
    learning_curves(metrics, tmp_path / "curves.png")
    size = Image.open(tmp_path / "curves.png").size
    assert size[0] <= 880  # as wide as a web page
    fewer = [m for m in metrics if "train/loss" in m]
    learning_curves(fewer, tmp_path / "fewer.png")
    assert size > Image.open(tmp_path / "fewer.png").size
    learning_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert read_metrics(tmp_path / "missing.jsonl") == []


# Every second frame of the videos, the first from frame 40 and the second from frame 140.
NUMBERS = torch.arange(40, 52, 2) + torch.tensor([[0], [100]])


@pytest.fixture
def found() -> Reconstruction:
    torch.manual_seed(0)
    hidden = torch.rand(2, 3, 2, 3) < 0.5
    video, predicted = torch.rand(2, 2, 1, 6, 8, 12)
    return Reconstruction(video, predicted, hidden, list(range(6)), False)


def test_hidden_pixels_are_those_of_hidden_tubelets(found):
    got = upsampled(found.hidden, found.video.shape)
    assert got.shape == (2, 6, 8, 12)
    for t in range(6):
        for y in range(8):
            for x in range(12):
                assert torch.equal(got[:, t, y, x], found.hidden[:, t // 2, y // 4, x // 4])


def test_rows_show_clip_what_was_visible_prediction_and_error(found):
    axes = reconstruction_sheet(found, ["a", "b"], NUMBERS, frames=3).axes
    assert len(axes) == 2 * 4 * 3
    times = [0, 2, 5]
    for clip, key in enumerate("ab"):
        numbers = [f"frame {40 + 100 * clip + 2 * t}" for t in times]
        titles = [axis.get_title(loc="left") for axis in axes[clip * 12 : clip * 12 + 4]]
        assert titles == [f"{key}\n{numbers[0]}", *numbers[1:], ""]
    hidden = upsampled(found.hidden, found.video.shape)
    for clip in range(2):
        for column, time in enumerate(times):
            shown = [
                torch.as_tensor(axes[(clip * 4 + row) * 3 + column].images[0].get_array())[..., 0]
                for row in range(4)
            ]
            video, predicted = found.video[clip, 0, time], found.predicted[clip, 0, time]
            visible = video.clone()
            visible[hidden[clip, time]] = 0.15
            error = ((video - predicted).abs() * 2).clamp(max=1)
            for got, expected in zip(shown, (video, visible, predicted, error), strict=True):
                torch.testing.assert_close(got, expected)


def test_frames_are_numbered_as_in_the_video_and_true_colours_are_stated(found):
    """Every third frame of a clip of 18 was embedded."""
    sampled = found._replace(frames=list(range(1, 18, 3)), rescaled=True)
    numbers = torch.arange(50, 86, 2).expand(2, 18)
    figure = reconstruction_sheet(sampled, ["a", "b"], numbers, frames=3)
    assert left_titles(figure)[:3] == ["a\nframe 52", "frame 64", "frame 82"]
    assert " ".join(figure.get_suptitle().split()) == RESCALED + ERROR_SCALE
    assert faults(figure) == []
    plain = reconstruction_sheet(found, ["a", "b"], NUMBERS, frames=3)
    assert " ".join(plain.get_suptitle().split()) == ERROR_SCALE


def test_sheets_of_many_columns_fit_the_page(found, tmp_path, drawn):
    clips, keys = torch.rand(6, 2, 3, 16, 64, 96), [f"video_{i:05d}" for i in range(6)]
    numbers = torch.arange(6 * 2 * 16).view(6, 2, 16)
    view_pairs(clips[:2], keys, numbers, (0.0,) * 3, (1.0,) * 3, tmp_path / "views.png")
    middle = ViewFeatures(torch.rand(6, 2, 8), keys, clips[:, :, :, 8], numbers[:, :, 8])
    path = tmp_path / "neighbours.png"
    nearest_neighbours(middle, (0.0,) * 3, (1.0,) * 3, path, queries=2)
    drawn.append(reconstruction_sheet(found._replace(rescaled=True), keys[:2], NUMBERS))
    for figure in drawn:
        assert faults(figure) == []
        assert figure.get_figwidth() > 8.5
