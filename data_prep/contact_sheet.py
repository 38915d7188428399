"""Draw contact sheets of videos: frames side by side, with names and frame numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

# Width of the picture in pixels, as wide as a web page.
_WIDTH = 900
# Font size, and height of the two lines above a row (name and frame numbers), in pixels.
_FONT_SIZE, _LINE = 12, 16
# Space between the frames of a row, in pixels.
_GAP = 4


def labelled_sheet(
    rows: Sequence[tuple[str, Sequence[int], UInt8[np.ndarray, "f h w 3"]]],
) -> Image.Image:
    """Draw videos in rows, with the video's name and frame numbers above each row.

    Frames are resized so that the picture is 900 pixels wide.

    Args:
        rows: for each video its name, frame numbers, and frames (f, H, W, 3), all of one size.
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
