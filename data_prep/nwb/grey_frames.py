"""Convert recorded stimulus frames to grey uint8 frames of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from ssl_vivit.data.video.colour import luma
from ssl_vivit.errors import DataError

# Pixel value of the screen between pictures, which files do not store.
GREY = 128
_VALUES_AT_ONCE = 2**26
_MOST_PIXELS = 2**26


class FrameArray(Protocol):
    """An array of frames (F, H, W) or (F, H, W, C), in memory or on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, key: slice, /) -> np.ndarray: ...


class GreyFrames:
    """Frames of any pixel range and number of channels, read as grey uint8.

    Colour is converted to luma (ITU-R 601) and alpha is dropped. Resizing is bilinear and
    antialiased and does not keep the aspect ratio. Pixels in [0, 1] and [−1, 1] are scaled to [0,
    255]; values are rounded once, at the end.

    Args:
        pieces: successive arrays of frames, (F, H, W) or (F, H, W, C) with C = 1, 3 or 4. Sizes may
            differ; the pixel range is determined from all arrays together.
        size: (h, w) of the returned frames.
        name: name of the stimulus, for messages.
        transpose: the file stores frames as (frame, column, row).

    Attributes:
        source_size: (H, W) of the first frame.

    Raises:
        DataError: if the shape or the pixel range is not supported.
    """

    def __init__(
        self,
        pieces: Sequence[FrameArray],
        size: tuple[int, int],
        name: str,
        *,
        transpose: bool = False,
    ) -> None:
        if not pieces:
            raise DataError(f"{name} has no frames; choose another stimulus or add frames")
        for piece in pieces:
            shape = tuple(piece.shape)
            if piece.dtype.kind not in "fiub":
                raise DataError(f"{name} has pixels of type {piece.dtype}; pixels must be numbers")
            if (
                len(shape) not in (3, 4)
                or not all(shape)
                or (len(shape) == 4 and shape[3] not in (1, 3, 4))
            ):
                raise DataError(
                    f"{name} has frames of shape {shape}; the shape must be (frames, rows, "
                    "columns), optionally with 1, 3 or 4 channels at the end"
                )
            if shape[1] * shape[2] > _MOST_PIXELS:
                raise DataError(
                    f"{name} has frames of {shape[1]}×{shape[2]} pixels; write smaller frames of "
                    f"at most {_MOST_PIXELS:,} pixels"
                )
        self._pieces = pieces
        self._starts = np.cumsum([0, *(piece.shape[0] for piece in pieces)])
        self._size = size
        self._transpose = transpose
        self._scale, self._shift = self._range(name)
        rows, columns = pieces[0].shape[1:3]
        self.source_size = (columns, rows) if transpose else (rows, columns)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, positions: np.ndarray) -> UInt8[np.ndarray, "f h w"]:
        """Return the frames with the given numbers, grey and resized; numbers may repeat."""
        wanted, order = np.unique(positions, return_inverse=True)
        piece = np.searchsorted(self._starts, wanted, side="right") - 1
        cuts = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(piece) != 0)) + 1
        frames = np.empty((len(wanted), *self._size), np.uint8)
        for first, last in zip([0, *cuts], [*cuts, len(wanted)], strict=True):
            source, skipped = self._pieces[piece[first]], self._starts[piece[first]]
            for a, b in _chunks(
                source.shape, wanted[first] - skipped, wanted[last - 1] + 1 - skipped
            ):
                at = first + a - (wanted[first] - skipped)
                frames[at : at + b - a] = self._grey(source[a:b])
        return frames[order]

    def _grey(self, frames: np.ndarray) -> np.ndarray:
        array = np.asarray(frames)
        if self._transpose:
            array = array.swapaxes(1, 2)
        if array.ndim == 4:
            array = array[..., 0] if array.shape[3] == 1 else array[..., :3]
        as_they_are = (self._scale, self._shift) == (1.0, 0.0) and array.dtype == np.uint8
        if as_they_are and array.ndim == 3 and array.shape[1:] == self._size:
            return array
        # torch does not support all of numpy's types, so convert in numpy.
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
        if all(piece.dtype == np.uint8 for piece in self._pieces) and any(
            piece[a:b].max() > 1  # else the pixels are in [0, 1]
            for piece in self._pieces
            for a, b in _chunks(piece.shape, 0, piece.shape[0])
        ):
            return 1.0, 0.0
        low, high = np.inf, -np.inf
        for piece in self._pieces:
            for a, b in _chunks(piece.shape, 0, piece.shape[0]):
                part = np.asarray(piece[a:b])
                if part.ndim == 4 and part.shape[3] == 4:
                    part = part[..., :3]
                # np.minimum propagates NaN, which fits none of the ranges below.
                low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
        if low >= 0 and high <= 1:
            return 255.0, 0.0
        if low >= -1 and high <= 1:
            return 127.5, 1.0
        if low >= 0 and high <= 255:
            return 1.0, 0.0
        raise DataError(
            f"{name} has pixels from {low:g} to {high:g}; pixels must be in [0, 1], [−1, 1] or "
            "[0, 255]"
        )


def _chunks(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of chunks of the frames ``start`` to ``stop``; each fits into memory."""
    step = max(1, _VALUES_AT_ONCE // int(np.prod(shape[1:])))
    for first in range(int(start), int(stop), step):
        yield first, min(first + step, int(stop))
