"""Attention to the last time steps: a mask for whole clips, a cache for step-by-step encoding."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

# Number of time steps that a new cache has room for.
_FIRST_ROOM = 8


def band(
    steps: int, window: int, *, registers: int, class_tokens: int = 0, device: torch.device
) -> Bool[Tensor, "length length"]:
    """Return the attention mask of a sequence [registers, time steps, class tokens].

    Element (i, j) is True if token i attends to token j. A time step attends to the registers and
    to the last ``window`` time steps including itself. A register attends to itself and to the
    registers before it. A class token summarises the clip, so it attends to all registers and time
    steps, and to the class tokens up to itself.

    Args:
        steps: number of time steps.
        window: number of time steps that a time step attends to, including itself.
        registers: number of registers at the start of the sequence.
        class_tokens: number of class tokens at the end of the sequence.
        device: device of the mask.
    """
    time = torch.arange(-registers, steps + class_tokens, device=device)
    ago = time[:, None] - time
    near = (ago < window) | (time < 0) | (time[:, None] >= steps)
    return (ago >= 0) & near


class KeyValueCache:
    """Keys and values of earlier time steps, for every attention layer over time.

    The cache is passed to blocks instead of a mask. Each attention layer appends the keys and
    values of the new tokens. The queries of the new tokens then attend to all cached keys. Keys are
    cached after their rotary embedding.

    Args:
        window: number of newest time steps to keep. None keeps all; buffers that are full are then
            doubled.

    Attributes:
        steps: number of time steps encoded so far.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window, self.steps = window, 0
        self._registers = 0
        self._first_mask: Literal["causal"] | Tensor | None = None
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Memory of the buffers of keys and values in bytes, including unused space."""
        return sum(part.nbytes for kept in self._kept.values() for part in kept)

    def begin(self, registers: int, mask: Literal["causal"] | Tensor | None) -> None:
        """Prepare the cache for the first time step.

        Args:
            registers: number of registers before the tokens of the first step. Their keys and
                values are always kept.
            mask: attention mask of the sequence [registers, tokens] in the first step. Tokens of
                later steps attend to all cached keys.
        """
        self._registers, self._first_mask = registers, mask

    def extended(
        self,
        attention: nn.Module,
        key: Float[Tensor, "b heads n width"],
        value: Float[Tensor, "b heads n width"],
    ) -> tuple[Tensor, Tensor, Literal["causal"] | Tensor | None]:
        """Add keys and values of the current step.

        Keys are in the order of time until the window is full. Then each step overwrites the oldest
        step, since attention does not depend on the order of keys.

        Args:
            attention: attention module that computed the keys and values.
            key: keys of the step's tokens; in the first step keys of the registers come first.
            value: values in the order of ``key``.

        Returns:
            All cached keys and values, (b, heads, k, width) each, and the attention mask: that of
            :meth:`begin` in the first step, else None.
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
    """Return new buffers for ``room`` tokens, which start with the cached keys and values."""
    keys, values = (like.new_empty(*like.shape[:2], room, like.shape[3]) for _ in range(2))
    if kept is not None:
        for whole, old in zip((keys, values), kept, strict=True):
            whole[:, :, : old.shape[2]] = old
    return keys, values
