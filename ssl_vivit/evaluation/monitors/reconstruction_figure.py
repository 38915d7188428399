"""Clips, what of them was visible, what was predicted, and the error, over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from matplotlib.figure import Figure
from torch import Tensor

from ssl_vivit.evaluation.figures import pixels, save
from ssl_vivit.objectives.masked_tubelets import Reconstruction

RESCALED = (
    "predicted: structure alone; each hidden tubelet is drawn with the mean colour and spread of "
    "the true one"
)
_ROWS = ("clip", "visible", "predicted", "error")


def reconstructions(
    found: Reconstruction, keys: Sequence[str], path: Path, *, frames: int = 6
) -> None:
    """Write :func:`reconstruction_sheet` as PNG."""
    save(reconstruction_sheet(found, keys, frames), path)


def reconstruction_sheet(found: Reconstruction, keys: Sequence[str], frames: int = 6) -> Figure:
    """A sheet of reconstructions: four rows a clip, frames from left to right.

    Visible tubelets are pasted into the prediction. Where targets are normalised, a predicted
    tubelet has the mean and the spread of the one that it stands for, and a caption says so.
    Errors are absolute, from black (0) to white (0.5 of the pixel range). Frames are numbered as
    in the clip.

    Args:
        found: clips and predictions, pixels in [0, 1].
        keys: the clips' names.
        frames: frames shown of each clip.
    """
    total = found.video.shape[2]
    times = torch.linspace(0, total - 1, min(frames, total)).round().long()
    hidden = upsampled(found.hidden, found.video.shape)
    error = (found.video - found.predicted).abs().mean(1, keepdim=True) * 2
    sheets = {
        "clip": found.video,
        "visible": torch.where(hidden[:, None], 0.15, found.video),
        "predicted": found.predicted,
        "error": error,
    }
    images = {
        name: pixels(x[:, :, times].transpose(1, 2), [0.0], [1.0]) for name, x in sheets.items()
    }
    rows, columns = len(keys) * len(_ROWS), len(times)
    aspect = found.video.shape[3] / found.video.shape[4]
    figure = Figure(figsize=(1.9 * columns, 1.9 * aspect * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        clip, name = row // len(_ROWS), _ROWS[row % len(_ROWS)]
        for column, time in enumerate(times.tolist()):
            axis = axes[row][column]
            axis.imshow(images[name][clip, column].numpy())
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"frame {found.frames[time]}", fontsize=8)
        label = f"{keys[clip]}\n{name}" if name == "clip" else name
        axes[row][0].set_ylabel(label, fontsize=7)
    if found.rescaled:
        figure.supxlabel(RESCALED, fontsize=7)
    return figure


def upsampled(hidden: Bool[Tensor, "b t h w"], shape: Sequence[int]) -> Bool[Tensor, "b T H W"]:
    """Which pixels of a clip of this shape (b, c, T, H, W) were hidden."""
    for axis, length in enumerate(shape[2:], start=1):
        hidden = hidden.repeat_interleave(length // hidden.shape[axis], axis)
    return hidden
