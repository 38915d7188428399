"""Figures, PNG files and GIFs of stimuli."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from ssl_vivit.evaluation.figures import caption, image_sheet, save, save_gif
from ssl_vivit.evaluation.stimuli.presentation import Kind

Stimulus = Float[np.ndarray, "T H W"]

# Number of frames of a video in a row of the sheet.
_COLUMNS = 7
# Smallest width of PNG files and GIFs in pixels; a frame of 64 pixels is hard to see.
_WIDTH = 256


def draw_sheet(
    rows: Sequence[tuple[str, Mapping[Kind, Stimulus]]],
    grey: float,
    frames_per_second: float,
    path: Path,
) -> None:
    """Draw stimuli of units, with a row for each unit: frames of its video, and its image.

    Frames of a video are evenly spaced and include the last one.

    Args:
        rows: for each unit its label, and its stimuli as deviations from grey: kind → stimulus.
            The kinds are "video", "image" or both, equal for all units.
        grey: grey level from which deviations are measured.
        frames_per_second: frame rate of the videos.
        path: path of the PNG file.
    """
    titles, places = [], []
    for kind, stimulus in rows[0][1].items():
        frames = len(stimulus)
        step = max(1, (frames - 1) // (_COLUMNS - 1))
        shown = range((frames - 1) % step, frames, step)[-_COLUMNS:]
        places += [(kind, place) for place in shown]
        titles += [
            "image"
            if kind == "image"
            else f"{1000 * (place - frames + 1) / frames_per_second:.0f} ms"
            for place in shown
        ]
    sheet = np.stack([np.stack([own[kind][place] for kind, place in places]) for _, own in rows])
    pixels = torch.from_numpy(((sheet + grey) / 255).clip(0, 1))[..., None].expand(
        -1, -1, -1, -1, 3
    )
    figure = image_sheet(pixels, [titles, *[[]] * (len(rows) - 1)], [label for label, _ in rows])
    if "video" in rows[0][1]:
        caption(figure, "frames of the most exciting videos; 0 ms is the last one")
    save(figure, path)


def write_pictures(
    stimulus: Float[np.ndarray, "T H W"], frames_per_second: float, path: Path
) -> None:
    """Write an image as PNG or a video as GIF at its frame rate, enlarged by an integer factor.

    Args:
        stimulus: pixels from 0 to 255; one frame for a PNG.
        frames_per_second: frame rate of a video.
        path: path of the file; must end in .png or .gif.
    """
    pictures = [_enlarged(frame) for frame in stimulus.round().astype(np.uint8)]
    if path.suffix == ".png":
        pictures[0].save(path)
    else:
        save_gif(pictures, frames_per_second, path)


def _enlarged(frame: UInt8[np.ndarray, "H W"]) -> Image.Image:
    scale = -(-_WIDTH // frame.shape[1])
    return Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1))
