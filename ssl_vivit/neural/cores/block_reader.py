"""Tokens of any block of an encoder, or of several as a sum with learned weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders import ViViT
from ssl_vivit.encoders.intermediates import block_names, encode_with_blocks
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.errors import NeuralModelError


class BlockReader(nn.Module):
    """The feature map of chosen blocks of a ViViT; blocks after the last of them are not computed.

    The tokens of each block pass the norm that follows the encoder's blocks (in Model 2 the one
    after the spatial or the temporal blocks), so the last block gives what the encoder itself
    returns. Several blocks are summed with softmax weights, which start equal. Residuals grow with
    depth, so where an encoder has no norm on tokens the terms of a sum pass a LayerNorm without
    parameters.

    Args:
        blocks: their numbers, rising, as of :func:`chosen_blocks`.

    Attributes:
        logits: (blocks,) of the softmax; None for one block.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.logits = nn.Parameter(torch.zeros(len(blocks))) if len(blocks) > 1 else None

    def forward(
        self,
        encoder: ViViT,
        video: Float[Tensor, "b c T H W"],
        patch_draw: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b d t h w"]:
        """The map of the chosen blocks, or the sum of their maps.

        Args:
            encoder: the encoder.
            video: as of :meth:`ViViT.forward`.
            patch_draw: as of :meth:`ViViT.forward`.
        """
        return self.mixed(self.maps(encoder, video, patch_draw))

    def maps(
        self,
        encoder: ViViT,
        video: Float[Tensor, "b c T H W"],
        patch_draw: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b blocks_d t h w"]:
        """Maps of the chosen blocks, concatenated along channels, before they are weighted.

        Args:
            encoder: as of :meth:`forward`.
            video: as of :meth:`forward`.
            patch_draw: as of :meth:`forward`.
        """
        _, features = encode_with_blocks(
            encoder, video, self.blocks, norm=True, stop_early=True, patch_draw=patch_draw
        )
        height = encoder.config.grid_of(*video.shape[2:]).h
        return self._side_by_side(encoder, [each.tokens for each in features], height)

    def step(
        self, encoder: ViViT, frames: Float[Tensor, "b c pt H W"], cache: KeyValueCache
    ) -> Float[Tensor, "b d 1 h w"]:
        """Return the map of the next time step of a stream; arguments as of :meth:`ViViT.step`."""
        tokens, grid = encoder.step(frames, cache, self.blocks)
        return self.mixed(self._side_by_side(encoder, tokens, grid.h))

    def _side_by_side(
        self, encoder: ViViT, tokens: list[Float[Tensor, "b t n d"]], height: int
    ) -> Float[Tensor, "b blocks_d t h w"]:
        """Concatenate tokens of the blocks as a map, at one scale where they are to be summed."""
        config = encoder.config
        if len(tokens) > 1 and config.final_norm != "tokens":
            tokens = [F.layer_norm(x, x.shape[-1:], eps=config.norm_eps) for x in tokens]
        return rearrange(torch.cat(tokens, -1), "b t (h w) c -> b c t h w", h=height)

    def mixed(self, maps: Float[Tensor, "b blocks_d t h w"]) -> Float[Tensor, "b d t h w"]:
        """The sum of maps by the blocks' weights.

        Args:
            maps: as :meth:`maps` returns them.
        """
        if self.logits is None:
            return maps
        each = rearrange(maps, "b (l d) t h w -> l b t h w d", l=len(self.blocks))
        weights = self.logits.softmax(0)
        mixed = torch.stack([w * x for w, x in zip(weights, each, strict=True)]).sum(0)
        return rearrange(mixed, "b t h w d -> b d t h w")


def chosen_blocks(
    encoder: ViViT, layers: int | Sequence[int] | Literal["all"], setting: str = "model.layers"
) -> list[int]:
    """Numbers of the blocks that a setting names, rising.

    Args:
        encoder: whose blocks.
        layers: the number of one, negative from the end; several; or ``all``.
        setting: its name, for messages.

    Raises:
        NeuralModelError: for none, one that does not exist, one that is named twice, and another
            type.
    """
    count = len(block_names(encoder))
    if layers == "all":
        return list(range(count))
    wanted: list[Any] = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not wanted:
        raise NeuralModelError(
            f"{setting} is an empty list; name one block or more, or give null for the last"
        )
    if not all(type(block) is int for block in wanted):
        raise NeuralModelError(
            f"{setting} {layers!r} must be the number of a block, a list of such numbers, all, or "
            "null for the last"
        )
    for block in wanted:
        if not -count <= block < count:
            raise NeuralModelError(
                f"{setting} names block {block}; the encoder has blocks {_extent(encoder)}, and "
                f"-1 to -{count} count from the end"
            )
    numbers = sorted(block % count for block in wanted)
    for one, after in itertools.pairwise(numbers):
        if one == after:
            raise NeuralModelError(f"{setting} {layers} names block {one} twice; name it once")
    return numbers


def block_reader(
    encoder: ViViT, layers: int | Sequence[int] | Literal["all"] | None
) -> BlockReader | None:
    """Build the reader of the blocks that ``model.layers`` names; None for the last block alone.

    Raises:
        NeuralModelError: as of :func:`chosen_blocks`.
    """
    if layers is None:
        return None
    blocks = chosen_blocks(encoder, layers)
    # The encoder's own output is the same, and torch.compile reaches it.
    return None if blocks == [len(block_names(encoder)) - 1] else BlockReader(blocks)


def blocks_told(encoder: ViViT, reader: BlockReader | None) -> str:
    """Describe the blocks that are read, and their weights."""
    if reader is None:
        told = "the last block"
    elif reader.logits is None:
        told = f"block {reader.blocks[0]}"
    else:
        weights = reader.logits.detach().softmax(0).tolist()
        pairs = zip(reader.blocks, weights, strict=True)
        told = "sum of " + ", ".join(f"block {block} ({weight:.3f})" for block, weight in pairs)
    return f"{told}; the encoder has blocks {_extent(encoder)}"


def _extent(encoder: ViViT) -> str:
    """Numbers of an encoder's blocks, in words."""
    names, config = block_names(encoder), encoder.config
    if config.variant == "factorized_encoder" and config.temporal_depth:
        spatial = len(names) - config.temporal_depth
        first, last = _range(0, spatial - 1), _range(spatial, len(names) - 1)
        return f"{first} (spatial), {last} (temporal)"
    return _range(0, len(names) - 1)


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"
