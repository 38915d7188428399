"""Stimulus frames as they are recorded, made grey uint8 frames of one size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from ssl_vivit.data.video.colour import luma
from ssl_vivit.errors import DataError

_FRAMES_AT_ONCE = 256


class FrameArray(Protocol):
    """An array of frames (F, H, W) or (F, H, W, C) that may lie on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, key: slice, /) -> np.ndarray: ...


class GreyFrames:
    """Frames of any pixel range and number of channels, read as grey uint8.

    Colour becomes luma (ITU-R 601), alpha is dropped; resizing is bilinear and antialiased and does
    not keep the aspect. Pixels in [0, 1] are multiplied by 255, those in [−1, 1] shifted first, those
    in [0, 255] kept; values are rounded once, at the end.

    Args:
        frames: (F, H, W) or (F, H, W, 1, 3 or 4).
        size: (h, w) to resize to.
        name: for messages.
        transpose: whether the file stores columns before rows.

    Raises:
        DataError: if the shape is none of these or the pixels are in none of the ranges.
    """

    def __init__(
        self, frames: FrameArray, size: tuple[int, int], name: str, *, transpose: bool = False
    ) -> None:
        shape = tuple(frames.shape)
        if (
            len(shape) not in (3, 4)
            or not all(shape)
            or (len(shape) == 4 and shape[3] not in (1, 3, 4))
        ):
            raise DataError(
                f"{name} holds frames of shape {shape}; (frames, rows, columns) with 1, 3 or 4 "
                "channels at the end are read"
            )
        self._frames = frames
        self._size = size
        self._transpose = transpose
        self._scale, self._shift = self._range(name)
        rows, columns = shape[1:3]
        self.source_size = (columns, rows) if transpose else (rows, columns)

    def __len__(self) -> int:
        return int(self._frames.shape[0])

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, "f h w"]:
        """Frames ``start`` to ``stop``, grey and resized."""
        parts = [self._grey(self._frames[a:b]) for a, b in _chunks(start, stop)]
        return np.concatenate(parts)

    def _grey(self, frames: np.ndarray) -> np.ndarray:
        array = np.asarray(frames)
        if self._transpose:
            array = array.swapaxes(1, 2)
        if array.ndim == 4:
            array = array[..., 0] if array.shape[3] == 1 else array[..., :3]
        if array.ndim == 3 and array.shape[1:] == self._size and array.dtype == np.uint8:
            return array
        # A boolean or an integer has no other way into floating point that torch takes for all.
        video = torch.from_numpy(array.astype(np.float32))
        if video.ndim == 4:
            grey = luma(rearrange(video, "f h w c -> f c 1 h w"))[:, :, 0]
        else:
            grey = video[:, None]
        if tuple(grey.shape[2:]) != self._size:
            grey = torch.nn.functional.interpolate(
                grey, self._size, mode="bilinear", antialias=True, align_corners=False
            )
        pixels = ((grey[:, 0] + self._shift) * self._scale).round_().clamp_(0, 255)
        return pixels.to(torch.uint8).numpy()

    def _range(self, name: str) -> tuple[float, float]:
        if self._frames.dtype == np.uint8:
            return 1.0, 0.0
        low, high = np.inf, -np.inf
        for a, b in _chunks(0, len(self)):
            part = np.asarray(self._frames[a:b])
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        if low >= 0 and high <= 1:
            return 255.0, 0.0
        if low >= -1 and high <= 1:
            return 127.5, 1.0
        if low >= 0 and high <= 255:
            return 1.0, 0.0
        raise DataError(
            f"{name} holds pixels from {low:g} to {high:g}; write them in [0, 1], [−1, 1] or [0, 255]"
        )


def _chunks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, _FRAMES_AT_ONCE):
        yield first, min(first + _FRAMES_AT_ONCE, stop)
