"""The token grid: how many tubelets a clip has along time, height and width."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """Tubelet counts along time, height and width; spatial tokens are row-major (n = h·w).

    It travels with the tokens and is saved with every checkpoint, because a token count alone
    does not say whether 144 tokens are 12×12 or 9×16.
    """

    t: int
    h: int
    w: int

    @property
    def n(self) -> int:
        """Spatial tokens in one time step."""
        return self.h * self.w
