"""Causal attention over all tokens of a clip, time step by time step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class FrameBlocks(NamedTuple):
    """The sequence [class token, registers, tokens of each time step], under a causal mask.

    A token attends to the registers and to the tokens of its own and of earlier time steps; registers
    attend to each other alone, and the class token to everything, while nothing attends to it.

    The queries of a time step all attend to one stretch of keys, so each time step is one attention
    without a mask. A mask over the whole sequence would rule flash attention out, and half of the
    products would be thrown away.

    Attributes:
        class_tokens: 0 or 1.
        registers: how many there are.
        steps: time steps.
        window: time steps that a token attends to, its own among them; None is all.
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
        """Attention of the whole sequence.

        Args:
            attention: of queries, keys and values, without a mask.
            query: of all tokens; ``key`` and ``value`` likewise.
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
                self._seen(x, specials, slice(first + begin * count, end)) for x in (key, value)
            )
            parts.append(attention(query[:, :, end - count : end], *seen))
        return torch.cat(parts, dim=2)

    @staticmethod
    def _seen(x: Tensor, registers: slice, tokens: slice) -> Tensor:
        """Registers and some tokens; a view where they follow each other."""
        if registers.stop == tokens.start:
            return x[:, :, registers.start : tokens.stop]
        if registers.start == registers.stop:
            return x[:, :, tokens]
        return torch.cat((x[:, :, registers], x[:, :, tokens]), dim=2)

    def mask(self, length: int, device: torch.device) -> Bool[Tensor, "length length"]:
        """Return the mask of the tokens (columns) that each token (row) of a sequence attends to."""
        first = self.class_tokens + self.registers
        count = (length - first) // self.steps
        when = torch.arange(length - first, device=device) // count
        # The class token comes after all time steps, registers before the first.
        after, before = (when.new_full((n,), at) for n, at in
                         ((self.class_tokens, self.steps), (self.registers, -1)))  # fmt: skip
        when = torch.cat((after, before, when))
        seen = when[:, None] >= when
        if self.window is not None:
            near = (when > when[:, None] - self.window) | (when < 0)
            seen = seen & (near | (when[:, None] == self.steps))
        return seen
