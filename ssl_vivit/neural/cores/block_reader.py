"""Read the tokens of any block of an encoder, or a weighted sum of several blocks' tokens."""

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
    """Module that reads chosen blocks of a ViViT as a feature map. Later blocks are not computed.

    The encoder's final norm is applied to the tokens of each block, so the last block gives the
    encoder's own output. In Model 2 this is the norm after the spatial or the temporal blocks. The
    tokens of several blocks are summed with softmax weights, which start equal. If the encoder has
    no norm on tokens, a LayerNorm without parameters is applied to each term of the sum, because
    residuals grow with depth.

    Args:
        blocks: numbers of the blocks in ascending order, as returned by :func:`chosen_blocks`.

    Attributes:
        logits: (blocks,) logits of the softmax weights. None for one block.
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
        """Return the map of the chosen block, or the weighted sum of the maps of several blocks.

        Args:
            encoder: the encoder.
            video: see :meth:`ViViT.forward`.
            patch_draw: see :meth:`ViViT.forward`.
        """
        return self.mixed(self.maps(encoder, video, patch_draw))

    def maps(
        self,
        encoder: ViViT,
        video: Float[Tensor, "b c T H W"],
        patch_draw: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b blocks_d t h w"]:
        """Return the unweighted maps of the chosen blocks, concatenated along channels.

        Args:
            encoder: see :meth:`forward`.
            video: see :meth:`forward`.
            patch_draw: see :meth:`forward`.
        """
        _, features = encode_with_blocks(
            encoder, video, self.blocks, norm=True, stop_early=True, patch_draw=patch_draw
        )
        height = encoder.config.grid_of(*video.shape[2:]).h
        return self._side_by_side(encoder, [each.tokens for each in features], height)

    def step(
        self, encoder: ViViT, frames: Float[Tensor, "b c pt H W"], cache: KeyValueCache
    ) -> Float[Tensor, "b d 1 h w"]:
        """Return the map of the next time step of a stream; arguments as in :meth:`ViViT.step`."""
        tokens, grid = encoder.step(frames, cache, self.blocks)
        return self.mixed(self._side_by_side(encoder, tokens, grid.h))

    def _side_by_side(
        self, encoder: ViViT, tokens: list[Float[Tensor, "b t n d"]], height: int
    ) -> Float[Tensor, "b blocks_d t h w"]:
        """Return the blocks' tokens as maps, concatenated along channels.

        Tokens of several blocks are normalised, unless the encoder's final norm has done so.
        """
        config = encoder.config
        if len(tokens) > 1 and config.final_norm != "tokens":
            tokens = [F.layer_norm(x, x.shape[-1:], eps=config.norm_eps) for x in tokens]
        return rearrange(torch.cat(tokens, -1), "b t (h w) c -> b c t h w", h=height)

    def mixed(self, maps: Float[Tensor, "b blocks_d t h w"]) -> Float[Tensor, "b d t h w"]:
        """Return the weighted sum of the maps; the map itself if there is only one block.

        Args:
            maps: maps as returned by :meth:`maps`.
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
    """Return the numbers of the blocks that a setting selects, in ascending order.

    Args:
        encoder: the encoder.
        layers: number of a block, a list of numbers, or ``all``. Negative numbers count from the
            end.
        setting: name of the setting, for messages.

    Raises:
        NeuralModelError: if the list is empty, names a block twice or a block that does not exist,
            or ``layers`` is of another type.
    """
    count = len(block_names(encoder))
    if layers == "all":
        return list(range(count))
    wanted: list[Any] = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not wanted:
        raise NeuralModelError(
            f"{setting} is an empty list; name one block or more, or give null for the last block"
        )
    if not all(type(block) is int for block in wanted):
        raise NeuralModelError(
            f"{setting} {layers!r} must be the number of a block, a list of such numbers, all, or "
            "null for the last block"
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
    """Build a reader of the encoder blocks that ``layers`` selects.

    Returns:
        The reader. None if only the last block is selected.

    Raises:
        NeuralModelError: see :func:`chosen_blocks`.
    """
    if layers is None:
        return None
    blocks = chosen_blocks(encoder, layers)
    # For the last block use the encoder's own output, which is equal and can be compiled.
    return None if blocks == [len(block_names(encoder)) - 1] else BlockReader(blocks)


def blocks_told(encoder: ViViT, reader: BlockReader | None) -> str:
    """Return a text that names the encoder blocks that ``reader`` reads, with their weights."""
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
    """Return the numbers of an encoder's blocks as a text, such as "0 to 5"."""
    names, config = block_names(encoder), encoder.config
    if config.variant == "factorized_encoder" and config.temporal_depth:
        spatial = len(names) - config.temporal_depth
        first, last = _range(0, spatial - 1), _range(spatial, len(names) - 1)
        return f"{first} (spatial), {last} (temporal)"
    return _range(0, len(names) - 1)


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"
