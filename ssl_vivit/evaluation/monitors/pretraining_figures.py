"""Figures of a pretraining run: curves, augmented views, nearest neighbours, reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_vivit.evaluation.figures import caption, draw_curves, image_sheet, pixels, save
from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures, nearest_videos
from ssl_vivit.evaluation.probes.scores import CLEVRER_TARGETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssl_vivit.objectives.masked_tubelets import Reconstruction

RESCALED = (
    "predicted: only the structure of hidden tubelets is predicted; mean and standard deviation "
    "are those of the true tubelets. "
)
ERROR_SCALE = (
    "error: absolute difference of clip and predicted, from 0 (black) to half of the pixel range "
    "(white)"
)
_PANELS = {
    "loss": ["train/loss"],
    "error on hidden tubelets": [
        "val/error",
        "val/copy_error",
        "val/interpolation_error",
        "val/mean_error",
    ],
    "learning rate": ["train/lr"],
    "top-1 of the positive view": ["train/top1", "val/retrieval_top1"],
    "effective rank": ["train/effective_rank", "val/effective_rank"],
    "spread of features": ["val/feature_std"],
    "linear probe": [f"probe/linear_{target.name}" for target in CLEVRER_TARGETS],
}
# Metric → label of its curve, if it is not the metric's name.
_NAMED = {
    "val/copy_error": "nearest visible tubelet (val/copy_error)",
    "val/interpolation_error": "mean of nearest visible (val/interpolation_error)",
    "val/mean_error": "own mean colour, an oracle (val/mean_error)",
}
# Metric → metric with its chance level.
_CHANCE = {
    "train/top1": "train/top1_chance",
    "val/retrieval_top1": "val/retrieval_chance",
    **{f"probe/linear_{target.name}": f"probe/chance_{target.name}" for target in CLEVRER_TARGETS},
}


def learning_curves(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss, learning rate and other known metrics of pretraining over steps.

    Losses and errors are drawn on a logarithmic axis if they range over a factor of 30 or more.
    Dotted lines mark the chance levels of accuracies.
    """
    panels = {
        title: {name: _NAMED.get(name, name) for name in names} for title, names in _PANELS.items()
    }
    last = {name: value for line in metrics for name, value in line.items()}
    levels = {
        title: {name: last[_CHANCE[name]] for name in names if _CHANCE.get(name) in last}
        for title, names in _PANELS.items()
    }
    logarithmic = ("loss", "error on hidden tubelets")
    draw_curves(metrics, panels, path, logarithmic=logarithmic, levels=levels)


def view_pairs(
    clips: Float[Tensor, "b views c T H W"],
    keys: Sequence[str],
    numbers: Int[Tensor, "b views T"],
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    *,
    videos: int = 6,
    frames: int = 4,
) -> None:
    """Draw augmented views as the encoder gets them, with one row per video.

    Args:
        clips: normalised views.
        keys: names of the videos.
        numbers: frame numbers of the views in their videos.
        mean, std: statistics with which pixels were normalised.
        path: path of the PNG file.
        videos: maximum number of videos.
        frames: maximum number of frames shown of each view.
    """
    videos, views, total = min(videos, len(clips)), clips.shape[1], clips.shape[3]
    times = torch.linspace(0, total - 1, min(frames, total)).round().long()
    images = pixels(clips[:videos, :, :, times].movedim(3, 2), mean, std).flatten(1, 2)
    titles = []
    for key, numbers_of_views in zip(keys[:videos], numbers[..., times].tolist(), strict=False):
        row = [f"frame {number}" for view in numbers_of_views for number in view]
        for view in range(views):
            name = f"{key}, view 1" if view == 0 else f"view {view + 1}"
            row[view * len(times)] = f"{name}\n{row[view * len(times)]}"
        titles.append(row)
    save(image_sheet(images, titles), path)


def nearest_neighbours(
    found: ViewFeatures,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
    *,
    queries: int = 6,
    neighbours: int = 5,
) -> None:
    """Draw query clips (left) and the clips of other videos with the most similar features.

    A clip is shown by its middle frame, with the frame's number in the video and the cosine
    similarity to the query.
    """
    chosen = torch.linspace(0, len(found.keys) - 1, min(queries, len(found.keys))).long().unique()
    nearest, similarity = nearest_videos(found.features[:, 0], chosen, neighbours)
    shown = torch.cat((chosen[:, None], nearest), 1)
    numbers = found.frame_numbers[:, 0].tolist()
    titles = [
        [
            f"{_shortened(found.keys[video])}\nframe {numbers[video]}, "
            + ("query" if rank == 0 else f"{similarity[row, rank - 1]:.3f}")
            for rank, video in enumerate(videos)
        ]
        for row, videos in enumerate(shown.tolist())
    ]
    figure = image_sheet(pixels(found.middle_frames[:, 0], mean, std)[shown], titles)
    caption(figure, "nearest other videos, with their cosine similarity to the query")
    save(figure, path)


def _shortened(key: str) -> str:
    """Shorten a name to its last characters, to fit above an image."""
    return key if len(key) <= 18 else f"…{key[-17:]}"


def reconstructions(
    found: Reconstruction, keys: Sequence[str], numbers: Int[Tensor, "b T"], path: Path
) -> None:
    """Write :func:`reconstruction_sheet` as a PNG file."""
    save(reconstruction_sheet(found, keys, numbers), path)


def reconstruction_sheet(
    found: Reconstruction, keys: Sequence[str], numbers: Int[Tensor, "b T"], frames: int = 6
) -> Figure:
    """Draw reconstructions in four rows per clip: clip, visible part, prediction and error.

    The prediction shows visible tubelets unchanged. If targets are normalised, predicted tubelets
    are shown with the mean and standard deviation of the true tubelets, which the caption states.
    Errors are absolute differences, from black (0) to white (0.5 of the pixel range).

    Args:
        found: clips and predictions, pixels in [0, 1].
        keys: names of the clips.
        numbers: frame numbers of the clips in their videos.
        frames: maximum number of frames shown of each clip.
    """
    total = found.video.shape[2]
    times = torch.linspace(0, total - 1, min(frames, total)).round().long()
    hidden = upsampled(found.hidden, found.video.shape)
    rows = {
        "clip": found.video,
        "visible": torch.where(hidden[:, None], 0.15, found.video),
        "predicted": found.predicted,
        "error": ((found.video - found.predicted).abs().mean(1, keepdim=True) * 2).expand_as(
            found.video
        ),
    }
    images = pixels(torch.stack([*rows.values()], 1)[:, :, :, times].transpose(2, 3), [0.0], [1.0])
    titles: list[list[str]] = []
    for key, of_clip in zip(keys, numbers[:, found.frames][:, times].tolist(), strict=True):
        first, *others = (f"frame {number}" for number in of_clip)
        titles += [[f"{key}\n{first}", *others], *[[] for _ in range(len(rows) - 1)]]
    figure = image_sheet(images.flatten(0, 1), titles, [*rows] * len(keys))
    caption(figure, f"{RESCALED if found.rescaled else ''}{ERROR_SCALE}")
    return figure


def upsampled(hidden: Bool[Tensor, "b t h w"], shape: Sequence[int]) -> Bool[Tensor, "b T H W"]:
    """Return the mask of hidden pixels (b, T, H, W), given the mask of hidden tubelets.

    Args:
        hidden: True for hidden tubelets, (b, t, h, w).
        shape: shape (b, c, T, H, W) of the clips.
    """
    for axis, length in enumerate(shape[2:], start=1):
        hidden = hidden.repeat_interleave(length // hidden.shape[axis], axis)
    return hidden
