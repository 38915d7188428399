"""Pictures of videos: frames side by side, with names and frame numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

# The width of a web page, in pixels.
_WIDTH = 900
# A row's name and frame numbers stand above it, in two lines of this height.
_FONT_SIZE, _LINE = 12, 16
# Between the frames of a row, in pixels.
_GAP = 4


def labelled_sheet(
    rows: Sequence[tuple[str, Sequence[int], UInt8[np.ndarray, "f h w 3"]]],
) -> Image.Image:
    """A picture of videos in rows, each frame below its number and each row below the video's name.

    Frames are resized, so that the picture is as wide as a web page, 900 pixels.

    Args:
        rows: name, numbers of the frames, and the frames, all of one size.
    """
    frames, height, width = rows[0][2].shape[:3]
    column = _WIDTH // frames
    size = (column - _GAP, max(1, round((column - _GAP) * height / width)))
    top = 2 * _LINE
    sheet = Image.new("RGB", (column * frames, (top + size[1]) * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for row, (name, numbers, pictures) in enumerate(rows):
        y = row * (top + size[1])
        draw.text((0, y + 1), name, "black", font)
        for place, (number, picture) in enumerate(zip(numbers, pictures, strict=True)):
            x = place * column
            draw.text((x, y + _LINE), f"frame {number}", "black", font)
            sheet.paste(
                Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), (x, y + top)
            )
    return sheet
