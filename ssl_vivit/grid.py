"""The token grid: how many tubelets a clip has along time, height and width."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """Numbers of tubelets of a clip along time (t), height (h) and width (w).

    Each time step has n = h·w tokens in row-major order. The grid accompanies the tokens and is
    saved with every checkpoint, because 144 tokens may be a grid of 12×12 or of 9×16.
    """

    t: int
    h: int
    w: int

    @property
    def n(self) -> int:
        """Number of spatial tokens in one time step."""
        return self.h * self.w
