"""The token grid: how many tubelets a clip has along time, height and width."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """Tubelet counts along time, height and width; spatial tokens are row-major (n = h·w).

    The grid accompanies the tokens and is saved with every checkpoint, because the number of tokens
    does not tell whether 144 tokens are 12×12 or 9×16.
    """

    t: int
    h: int
    w: int

    @property
    def n(self) -> int:
        """Number of spatial tokens in one time step."""
        return self.h * self.w
