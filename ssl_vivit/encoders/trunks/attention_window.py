"""Attention to the last time steps: a mask for whole clips, and a cache for one step after the other."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

# Time steps that a new cache has room for.
_FIRST_ROOM = 8


def band(
    steps: int, window: int, *, registers: int, device: torch.device
) -> Bool[Tensor, "length length"]:
    """Return the mask of the tokens (columns) of [registers, time steps] that each token (row) attends to.

    A time step sees the registers and the last ``window`` steps, itself among them; a register sees
    itself and the registers before it.

    Args:
        steps: time steps of the sequence.
        window: how many of them a time step sees.
        registers: tokens in front.
        device: of the mask.
    """
    time = torch.arange(-registers, steps, device=device)
    ago = time[:, None] - time
    return (ago >= 0) & ((ago < window) | (time < 0))


class KeyValueCache:
    """Keys and values of the time steps so far, of every attention that looks back in time.

    Blocks take it in the place of a mask: each attention adds the keys and values of the tokens that
    it is given to its own, and the queries attend to all of them. Keys are kept after their rotation.

    Args:
        window: time steps that are kept, the newest among them. None keeps all: memory then grows by
            the keys and values of a step in each layer, and room is doubled when it is full.

    Attributes:
        steps: time steps that have been taken.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window, self.steps = window, 0
        self._registers = 0
        self._first_mask: Literal["causal"] | Tensor | None = None
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, with the room that is still free."""
        return sum(part.nbytes for kept in self._kept.values() for part in kept)

    def begin(self, registers: int, mask: Literal["causal"] | Tensor | None) -> None:
        """Say what stands in the sequences of the first step.

        Args:
            registers: tokens in front of those of the step; they are kept for good.
            mask: which tokens of [registers, tokens] attend to which. Tokens of later steps attend
                to all that is kept.
        """
        self._registers, self._first_mask = registers, mask

    def extended(
        self,
        attention: nn.Module,
        key: Float[Tensor, "b heads n width"],
        value: Float[Tensor, "b heads n width"],
    ) -> tuple[Tensor, Tensor, Literal["causal"] | Tensor | None]:
        """Add keys and values of the step that is being taken.

        Keys lie in the order of time until the window is full. Then each step takes the place of the
        oldest, which makes no difference to attention.

        Args:
            attention: that they belong to.
            key: of the tokens of the step, in the first step with the registers in front.
            value: likewise.

        Returns:
            all keys and values, (b, heads, k, width) each, and the mask that holds for them.
        """
        count = key.shape[2]
        tokens = count - (0 if self.steps else self._registers)
        place, held = self.steps, self.steps + 1
        if self.window is not None:
            place, held = place % self.window, min(held, self.window)
        begin = self._registers + place * tokens if self.steps else 0
        filled = self._registers + held * tokens
        kept = self._kept.get(attention)
        if kept is None or filled > kept[0].shape[2]:
            steps = max(_FIRST_ROOM, 2 * self.steps)
            room = steps if self.window is None else min(steps, self.window)
            kept = _with_room(kept, key, self._registers + room * tokens)
            self._kept[attention] = kept
        for whole, new in zip(kept, (key, value), strict=True):
            whole[:, :, begin : begin + count] = new
        keys, values = (whole[:, :, :filled] for whole in kept)
        return keys, values, None if self.steps else self._first_mask


def _with_room(
    kept: tuple[Tensor, Tensor] | None, like: Float[Tensor, "b heads n width"], room: int
) -> tuple[Tensor, Tensor]:
    """Keys and values at the start of tensors that have room for more."""
    keys, values = (like.new_empty(*like.shape[:2], room, like.shape[3]) for _ in range(2))
    if kept is not None:
        for whole, old in zip((keys, values), kept, strict=True):
            whole[:, :, : old.shape[2]] = old
    return keys, values
