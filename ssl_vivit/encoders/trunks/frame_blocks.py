"""Causal attention over all tokens of a clip, computed for one time step after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class FrameBlocks(NamedTuple):
    """Causal mask of the sequence [class token, registers, tokens of each time step].

    A token attends to the registers and to the tokens of its own and of earlier time steps.
    Registers attend only to registers. The class token attends to all tokens, and no token attends
    to it.

    All queries of a time step attend to one contiguous range of keys, so each time step is computed
    as one attention without a mask. A mask over the whole sequence would exclude flash attention
    and discard half of the products.

    Attributes:
        class_tokens: number of class tokens, 0 or 1.
        registers: number of registers.
        steps: number of time steps.
        window: number of newest time steps that a token attends to, including its own; None is all.
    """

    class_tokens: int
    registers: int
    steps: int
    window: int | None

    def attend(
        self,
        attention: Callable[[Tensor, Tensor, Tensor], Tensor],
        query: Float[Tensor, "b heads n width"],
        key: Float[Tensor, "b heads n width"],
        value: Float[Tensor, "b heads n width"],
    ) -> Float[Tensor, "b heads n width"]:
        """Compute the attention of the whole sequence with this mask.

        Args:
            attention: function of queries, keys and values that computes attention without a mask.
            query: queries of the whole sequence, (b, heads, length, width).
            key: keys of the whole sequence, in the same shape.
            value: values of the whole sequence, in the same shape.
        """
        first = self.class_tokens + self.registers
        specials = slice(self.class_tokens, first)
        count = (query.shape[2] - first) // self.steps
        parts = []
        if self.class_tokens:
            parts.append(attention(query[:, :, :1], key, value))
        if self.registers:
            of_registers = (x[:, :, specials] for x in (query, key, value))
            parts.append(attention(*of_registers))
        for step in range(self.steps):
            begin = 0 if self.window is None else max(step + 1 - self.window, 0)
            end = first + (step + 1) * count
            seen = (
                self._with_registers(x, specials, slice(first + begin * count, end))
                for x in (key, value)
            )
            parts.append(attention(query[:, :, end - count : end], *seen))
        return torch.cat(parts, dim=2)

    @staticmethod
    def _with_registers(x: Tensor, registers: slice, tokens: slice) -> Tensor:
        """Return the keys or values ``x`` of the registers and of a range of tokens.

        The result is a view of ``x`` if the two slices are adjacent.
        """
        if registers.stop == tokens.start:
            return x[:, :, registers.start : tokens.stop]
        if registers.start == registers.stop:
            return x[:, :, tokens]
        return torch.cat((x[:, :, registers], x[:, :, tokens]), dim=2)

    def mask(self, length: int, device: torch.device) -> Bool[Tensor, "length length"]:
        """Return the mask; element (i, j) is True if token i attends to token j."""
        first = self.class_tokens + self.registers
        count = (length - first) // self.steps
        when = torch.arange(length - first, device=device) // count
        # The class token counts as after the last time step, registers as before the first.
        after, before = (when.new_full((n,), at) for n, at in
                         ((self.class_tokens, self.steps), (self.registers, -1)))  # fmt: skip
        when = torch.cat((after, before, when))
        seen = when[:, None] >= when
        if self.window is not None:
            near = (when > when[:, None] - self.window) | (when < 0)
            seen = seen & (near | (when[:, None] == self.steps))
        return seen
