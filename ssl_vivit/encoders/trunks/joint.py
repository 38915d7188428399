"""Model 1, joint space-time attention: every token attends to all tokens (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.positions import Positions, Rotation, token_parameter
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.encoders.trunks.blocks import (
    Mask,
    drop_path_rates,
    make_block,
    run_block,
    token_norm,
)
from ssl_vivit.encoders.trunks.frame_blocks import FrameBlocks


class Joint(nn.Module):
    """One transformer over [class, registers, tokens], tokens in the order of time, row, column.

    With ``temporal_causal`` a token attends to the registers and to tokens of its own and of
    earlier time steps. Registers attend only to registers. The class token attends to all tokens,
    and no token attends to it.

    Attributes:
        attention_window: number of newest time steps that a token of a causal encoder attends to,
            including its own; None is all.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        assert config.depth is not None
        self.config = config
        self.grad_checkpointing = False
        self.attention_window: int | None = None
        registers, width = config.register_tokens, config.embed_dim
        self.class_token = token_parameter(width, std=1e-6) if config.class_token else None
        self.registers = token_parameter(registers, width) if registers else None
        rates = drop_path_rates(config, config.depth)
        self.blocks = nn.ModuleList(make_block(config, rate) for rate in rates)
        self.norm = token_norm(config)

    def forward(
        self,
        x: Float[Tensor, "b k d"],
        positions: Positions,
        times: Int[Tensor, "... k"],
        steps: int,
        rotation: Rotation | None,
        class_only: bool,
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b 1 d"] | None]:
        """Apply the blocks to all tokens.

        Args:
            x: embedded tokens (b, k, d) with positions added.
            positions: position embedding, for the class token.
            times: index of each token's time step, (k,) for all clips or (b, k) for each clip.
            steps: number of time steps.
            rotation: rotary embedding of the sequence [class, registers, tokens], or None.
            class_only: return no tokens; the last block then computes only the class token.

        Returns:
            The tokens (b, k, d), with k = 0 if ``class_only``; and the class token (b, 1, d), or
            None if there is none.
        """
        specials = []
        if self.class_token is not None:
            place = positions.of_class_token()
            token = self.class_token if place is None else self.class_token + place
            specials.append(token[None])
        if self.registers is not None:
            specials.append(self.registers)
        if specials:
            x = torch.cat((repeat(torch.cat(specials), "r d -> b r d", b=x.shape[0]), x), dim=1)
        mask = self._mask(times, steps) if self.config.temporal_causal else None
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            if class_only and index == last:
                x = run_block(block, self.grad_checkpointing, x, rotation, None, 1)
            else:
                x = run_block(block, self.grad_checkpointing, x, rotation, mask)
        x = self.norm(x)
        before = self.config.register_tokens + int(self.class_token is not None)
        return x[:, before:], None if self.class_token is None else x[:, :1]

    def step(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None, cache: KeyValueCache
    ) -> Iterator[tuple[Float[Tensor, "b n d"], nn.Module]]:
        """Apply the blocks to the next time step of a causal encoder.

        The tokens equal those of :meth:`forward` on the whole clip. The class token is not
        computed, since no token attends to it.

        Args:
            x: embedded tokens (b, n, d) of the step with positions added.
            rotation: rotary embedding of the sequence [class, registers, tokens], or None.
            cache: keys and values of the earlier steps.

        Yields:
            For each block the tokens after it (b, n, d), and the norm that follows the blocks. The
            norm has not been applied to the tokens.
        """
        tokens, registers = x.shape[1], self.config.register_tokens
        if self.registers is not None and not cache.steps:
            x = torch.cat((repeat(self.registers, "r d -> b r d", b=len(x)), x), dim=1)
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
            mask[:registers, registers:] = False
            cache.begin(registers, mask)
        rotation = None if rotation is None else rotation.of_tokens(slice(-x.shape[1], None))
        for block in self.blocks:
            x = block(x, rotation, cache)
            yield x[:, -tokens:], self.norm

    def _mask(self, times: Int[Tensor, "... k"], steps: int) -> Mask:
        """Return the causal mask of the sequence [class, registers, tokens].

        It is :class:`FrameBlocks` if ``times`` (k,) is the same for all clips, else a tensor (b, 1,
        length, length) that is True where token i attends to token j.
        """
        if times.ndim == 1:
            class_tokens = int(self.class_token is not None)
            registers = self.config.register_tokens
            return FrameBlocks(class_tokens, registers, steps, self.attention_window)
        # With visible_tokens, clips differ in the number of tokens per time step, so a mask is
        # needed. It excludes flash attention, but memory-efficient attention supports it.
        lead = times.shape[:-1]
        # The class token counts as after the last time step, registers as before the first.
        end = torch.iinfo(times.dtype).max
        after = times.new_full((*lead, int(self.class_token is not None)), end)
        before = times.new_full((*lead, self.config.register_tokens), -1)
        when = torch.cat((after, before, times), dim=-1)
        query, key = when[..., :, None], when[..., None, :]
        mask: Bool[Tensor, "... q k"] = query >= key
        if self.attention_window is not None:
            near = (key > query - self.attention_window) | (key < 0)
            mask = mask & (near | (query == end))
        return mask[:, None]

    def group_matcher(self) -> dict[str, str]:
        """Return a regular expression of parameter names for each layer group, ordered by depth."""
        return {
            "stem": r"^(?:tubelets|positions|trunk\.(?:class_token|registers)$)",
            "blocks": r"^trunk\.blocks\.(\d+)",
            "norm": r"^trunk\.norm",
        }
