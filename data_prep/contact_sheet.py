"""Pictures of videos: frames side by side, with names and frame numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont


def labelled_sheet(
    rows: Sequence[tuple[str, Sequence[int], UInt8[np.ndarray, "f h w 3"]]],
) -> Image.Image:
    """A picture of videos in rows, each frame with its number and each row with the video's name.

    Args:
        rows: name, numbers of the frames, and the frames, all of one size.
    """
    sheet = Image.fromarray(np.concatenate([np.concatenate([*row[2]], axis=1) for row in rows]))
    height, width = rows[0][2].shape[1:3]
    draw, size = ImageDraw.Draw(sheet), max(8, min(14, height // 7))
    font = ImageFont.load_default(size)
    for row, (name, numbers, _) in enumerate(rows):
        for column, number in enumerate(numbers):
            text = f"{name}  frame {number}" if column == 0 else f"frame {number}"
            draw.text((column * width + 3, row * height + 2), text, "white", font, stroke_width=1,
                      stroke_fill="black")  # fmt: skip
    return sheet
