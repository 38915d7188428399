"""Read the outputs of an encoder's blocks by hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders.trunks.factorized_encoder import FactorizedEncoder
from ssl_vivit.encoders.trunks.joint import Joint
from ssl_vivit.encoders.vivit import Encoded, ViViT


class BlockFeatures(NamedTuple):
    """Tokens after a block.

    Attributes:
        tokens: (b, t, n, d) patch tokens.
        cls: class tokens (b, t, d), in Model 1 (b, 1, d); None if there are none.
    """

    tokens: Tensor
    cls: Tensor | None


class _LastBlockDone(Exception):
    """Raised to end the forward pass after the last requested block."""


def block_names(encoder: ViViT) -> list[str]:
    """Return the names of the encoder's blocks in the order of computation."""
    lists = ["blocks"]
    if isinstance(encoder.trunk, FactorizedEncoder):
        lists = ["spatial_blocks", "temporal_blocks"]
    return [f"trunk.{name}.{i}" for name in lists for i in range(len(getattr(encoder.trunk, name)))]


def block_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Return indices of blocks as a sorted list of non-negative numbers without repeats.

    Args:
        indices: an int n for the last n blocks, a sequence of indices (negative ones count from the
            end), or None for all.
        count: number of blocks.

    Raises:
        ValueError: if no block is selected or a block does not exist.
    """
    if isinstance(indices, int):
        wanted: Sequence[int] = range(-indices, 0)
    else:
        wanted = range(count) if indices is None else indices
    if not wanted or not all(-count <= index < count for index in wanted):
        raise ValueError(
            f"indices {indices} do not fit {count} blocks; give an int n from 1 to {count} for "
            "the last n "
            f"blocks, or a list of indices from {-count} to {count - 1}"
        )
    return sorted({index % count for index in wanted})


# torch.compile cannot trace temporary hooks and an exception raised in them.
@torch.compiler.disable
def encode_with_blocks(
    encoder: ViViT,
    video: Float[Tensor, "b c T H W"],
    indices: int | Sequence[int] | None,
    *,
    norm: bool,
    stop_early: bool,
    patch_draw: Float[Tensor, "b n"] | None = None,
) -> tuple[Encoded | None, list[BlockFeatures]]:
    """Encode clips and return the features after some blocks.

    Args:
        encoder: the encoder.
        video: (B, C, T, H, W).
        indices: blocks, see :func:`block_indices`.
        norm: apply the norm that follows the transformer to the features of each block.
        stop_early: compute no block after the last requested one.
        patch_draw: random numbers for patch dropout, as in :meth:`ViViT.forward`.

    Returns:
        Two values. The first is the encoder's output before pooling, or None if the encoder was
        stopped before its last block; patches dropped in training are left out. The second is the
        list of features of the requested blocks in the order of computation; patches dropped in
        training are zeros.

    Raises:
        ValueError: if a block does not exist.
    """
    blocks = [encoder.get_submodule(name) for name in block_names(encoder)]
    taken = block_indices(indices, len(blocks))
    encoder.check(video)
    kept = encoder.drop_patches(video, patch_draw=patch_draw)
    outputs: dict[int, Any] = {}
    handles = [_keep(blocks[index], outputs, index) for index in taken]
    # Stop before the next block: gradient checkpointing cannot recompute a block that an
    # exception interrupts.
    if stop_early and taken[-1] + 1 < len(blocks):
        handles.append(blocks[taken[-1] + 1].register_forward_pre_hook(_stop))
    encoded = None
    try:
        encoded = encoder.encode(video, None if kept is None else kept.visible)
    except _LastBlockDone:
        pass
    finally:
        for handle in handles:
            handle.remove()
    steps = encoder.config.grid_of(*video.shape[2:]).t
    features = []
    for index in taken:
        tokens, cls = _features(encoder, index, outputs[index], len(video), steps, norm)
        features.append(BlockFeatures(tokens if kept is None else kept.restore(tokens), cls))
    return encoded, features


def freeze_unread(encoder: ViViT, last: int) -> None:
    """Freeze the parameters that do not affect the patch tokens after the block of index ``last``.

    Parameters of pooling are not changed; :meth:`ViViT.freeze_pooling` freezes them.
    """
    names = block_names(encoder)
    unread = [f"{name}." for name in names[last + 1 :]]
    if names[last].startswith("trunk.spatial_blocks."):
        unread += ["trunk.temporal_", "positions.temporal"]
    for name, parameter in encoder.named_parameters():
        if name.startswith(tuple(unread)):
            parameter.requires_grad_(False)


def _keep(block: nn.Module, outputs: dict[int, Any], index: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        outputs[index] = output

    return block.register_forward_hook(hook)


def _stop(module: nn.Module, args: Any) -> None:
    raise _LastBlockDone


def _features(
    encoder: ViViT, index: int, output: Any, batch: int, steps: int, norm: bool
) -> BlockFeatures:
    """Return the patch and class tokens of a block's output, without registers."""
    trunk, config = encoder.trunk, encoder.config
    after: nn.Module
    if isinstance(trunk, Joint):
        x = trunk.norm(output) if norm else output
        specials = int(bool(config.class_token)) + config.register_tokens
        tokens = rearrange(x[:, specials:], "b (t n) d -> b t n d", t=steps)
        return BlockFeatures(tokens, x[:, :1] if config.class_token else None)
    if not isinstance(trunk, FactorizedEncoder):
        return BlockFeatures(trunk.norm(output.tokens) if norm else output.tokens, None)
    if index < len(trunk.spatial_blocks):
        after, specials = trunk.spatial_norm, int(bool(config.class_token)) + config.register_tokens
        x = rearrange(output, "(b t) m d -> b t m d", b=batch)
    else:
        # Frame vectors take the place of class tokens in the temporal transformer.
        after = trunk.temporal_norm
        specials = int(bool(config.class_token) or config.frame_pooling != "none")
        x = output[:, config.register_tokens : config.register_tokens + steps]
        x = rearrange(x, "(b m) t d -> b t m d", b=batch)
    x = after(x) if norm else x
    return BlockFeatures(x[:, :, specials:], x[:, :, 0] if config.class_token else None)
