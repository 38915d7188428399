"""Products of neurons' features with only those pixels that each neuron reads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

# Largest number of entries in a block, for pixels that are processed in padded blocks.
_LARGEST_BLOCK = 128
# Numbers gathered at once for blocks: as many as fit a CPU's cache; on other devices more, to
# launch few kernels.
_GATHERED = {"cpu": 2**20}
_GATHERED_ELSEWHERE = 2**26
# Multiplications for one pixel above which a separate product pays off on a CPU.
_WORTH_A_CALL = 2**20


def read_pixels(
    map: Float[Tensor, "b d t h w"],
    features: Float[Tensor, "n d"],
    pixel: Int[Tensor, " e"],
    neuron: Int[Tensor, " e"],
    weight: Float[Tensor, "e times"],
) -> Float[Tensor, "b t n"]:
    """Multiply each neuron's features with the pixels it reads, and sum the products with weights.

    An entry is a pixel that a neuron reads. Entry i adds
    ``weight[i] · features[neuron[i]] · map[b, :, t, y, x]`` to the result of neuron[i] in every
    frame t of clip b, where pixel[i] = (b·h + y)·w + x.

    The function sorts the entries by pixel. For each pixel, all frames are multiplied with the
    features of its neurons in one matrix product. This takes e·t·d multiplications for e entries,
    and few copies. On a CPU pixels are processed one by one if each pixel has many entries. In all
    other cases they are processed in padded blocks. The function is differentiable once, with
    respect to the map, the features and the weights. Only the arguments are stored for the backward
    pass.

    Args:
        map: feature map of the core. It is fastest with channels last in memory, as tokens are.
        features: features of each neuron. Under autocast, map and features are cast to its type;
            otherwise to the larger of their types.
        pixel: index of the pixel of each entry.
        neuron: index of the neuron of each entry.
        weight: (e, 1), or (e, t) with a weight for each frame; float32 or float64.

    Returns:
        (b, t, n) in the type of the weights.
    """
    kind = map.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = torch.promote_types(map.dtype, features.dtype)
    out = _products(map.to(dtype), features.to(dtype), pixel, neuron, weight)
    return rearrange(out, "b n t -> b t n")


@torch.library.custom_op("ssl_vivit::pixel_products", mutates_args=())
def _products(
    map: Tensor, features: Tensor, pixel: Tensor, neuron: Tensor, weight: Tensor
) -> Tensor:
    """Compute :func:`read_pixels` as (b, n, t). Compilers do not trace this custom operator."""
    (b, _, t, h, w), n = map.shape, len(features)
    out = weight.new_zeros(b * n, t)
    neuron, weight = _with_padding(neuron), _with_padding(weight)
    with torch.autocast(map.device.type, enabled=False):
        for group, entries in _groups(map, pixel):
            reader = neuron[entries]
            seen = features[reader] @ _values(map, group).mT
            rows = reader + (group // (h * w) * n)[:, None]
            out.index_add_(0, rows.flatten(), (seen * weight[entries]).flatten(0, 1))
    return out.view(b, n, t)


@torch.library.custom_op("ssl_vivit::pixel_products_backward", mutates_args=())
def _products_backward(
    grad: Tensor,
    map: Tensor,
    features: Tensor,
    pixel: Tensor,
    neuron: Tensor,
    weight: Tensor,
    by_map: bool,
    by_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of :func:`_products` for map (b·h·w, t, d), features and weights.

    The gradient of the map is empty if ``by_map`` is false, and that of the weights if
    ``by_weight`` is false.
    """
    (b, d, t, h, w), n, dtype = map.shape, len(features), map.dtype
    to_map = map.new_zeros((b * h * w, t, d) if by_map else 0)
    to_features = weight.new_zeros(n, d)
    to_weight = weight.new_zeros((len(weight) + 1, weight.shape[1]) if by_weight else 0)
    neuron, weight = _with_padding(neuron), _with_padding(weight)
    grad = grad.flatten(0, 1).contiguous()
    with torch.autocast(map.device.type, enabled=False):
        for group, entries in _groups(map, pixel):
            reader, scale, here = neuron[entries], weight[entries], _values(map, group)
            used = features[reader]
            coming = grad[reader + (group // (h * w) * n)[:, None]]
            weighted = (coming * scale).to(dtype)
            if scale.shape[-1] == 1:
                # Multiply before weighting, so that both gradients need only one matrix product.
                pulled = (coming.to(dtype) @ here).to(weight.dtype)
                if by_weight:
                    to_weight[entries] = (pulled * used).sum(-1, keepdim=True)
                pulled = pulled * scale
            else:
                pulled = (weighted @ here).to(weight.dtype)
                if by_weight:
                    to_weight[entries] = coming * (used @ here.mT)
            to_features.index_add_(0, reader.flatten(), pulled.flatten(0, 1))
            if by_map:
                to_map.index_add_(0, group, weighted.mT @ used)
    return to_map, to_features.to(features.dtype), to_weight[:-1].clone()


@_products.register_fake
def _(map: Tensor, features: Tensor, pixel: Tensor, neuron: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(map.shape[0], len(features), map.shape[2])


@_products_backward.register_fake
def _(
    grad: Tensor,
    map: Tensor,
    features: Tensor,
    pixel: Tensor,
    neuron: Tensor,
    weight: Tensor,
    by_map: bool,
    by_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    b, d, t, h, w = map.shape
    return (
        map.new_empty((b * h * w, t, d) if by_map else 0),
        torch.empty_like(features, memory_format=torch.contiguous_format),
        weight.new_empty(weight.shape if by_weight else 0),
    )


def _keep(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    map, *others = ctx.saved_tensors
    by_map, by_features, _, _, by_weight = ctx.needs_input_grad
    to_map, to_features, to_weight = _products_backward(grad, map, *others, by_map, by_weight)
    b, _, _, h, w = map.shape
    return (
        rearrange(to_map, "(b h w) t d -> b d t h w", b=b, h=h, w=w) if by_map else None,
        to_features if by_features else None,
        None,
        None,
        to_weight if by_weight else None,
    )


_products.register_autograd(_differentiate, setup_context=_keep)


def _with_padding(rows: Tensor) -> Tensor:
    """Append a row of zeros, to which the padding index of :func:`_groups` points."""
    return torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))


def _values(map: Float[Tensor, "b d t h w"], group: Int[Tensor, " k"]) -> Float[Tensor, "k t d"]:
    """Return all frames and channels of the map at the pixels with the indices ``group``."""
    h, w = map.shape[-2:]
    pixels = rearrange(map, "b d t h w -> b h w t d")
    return pixels[group // (h * w), group // w % h, group % w].contiguous()


def _groups(
    map: Float[Tensor, "b d t h w"], pixel: Int[Tensor, " e"]
) -> Iterator[tuple[Int[Tensor, " k"], Int[Tensor, "k size"]]]:
    """Yield groups of k pixels, each with the entries that read these pixels.

    Args:
        map: feature map of the core.
        pixel: index of the pixel of each of the e entries.

    Yields:
        Indices of the pixels (k,), and indices of their entries (k, size), padded with e.
    """
    b, d, t, h, w = map.shape
    order = pixel.argsort(stable=True)
    kind = map.device.type
    if kind == "cpu":
        counts = pixel.bincount(minlength=b * h * w)
        read = counts.nonzero().flatten()
        if len(pixel) * t * d >= len(read) * _WORTH_A_CALL:
            parts = order.split(counts[read].tolist())
            for one, entries in zip(read.split(1), parts, strict=True):
                yield one, entries[None]
            return
    groups, blocks = _blocks(pixel[order], order, b * h * w)
    size = blocks.shape[1]
    limit = _GATHERED.get(kind, _GATHERED_ELSEWHERE) // max(t * d, size * d, size * t)
    yield from zip(groups.split(max(1, limit)), blocks.split(max(1, limit)), strict=True)


def _blocks(
    pixel: Int[Tensor, " e"], order: Int[Tensor, " e"], pixels: int
) -> tuple[Int[Tensor, " k"], Int[Tensor, "k size"]]:
    """Divide entries, sorted by pixel, into blocks of equal size with one pixel each.

    The number of blocks depends only on shapes, so the host need not wait for the device. Some
    blocks may be empty.

    Args:
        pixel: index of the pixel of each of the e entries, in ascending order.
        order: index of each entry before sorting.
        pixels: total number of pixels.

    Returns:
        The pixel of each block, and the indices of its entries before sorting, padded with e.
    """
    e = len(pixel)
    size = min(2 ** max(0, e // pixels - 1).bit_length(), _LARGEST_BLOCK)
    total = (e + (size - 1) * min(e, pixels)) // size
    starts = torch.searchsorted(pixel, torch.arange(pixels + 1, device=pixel.device))
    ends = ((starts.diff() + size - 1) // size).cumsum(0)
    firsts = torch.cat((ends.new_zeros(1), ends[:-1]))
    slot = firsts[pixel] * size + torch.arange(e, device=pixel.device) - starts[pixel]
    entries = pixel.new_full((total * size,), e)
    entries[slot] = order
    group = torch.searchsorted(ends, torch.arange(total, device=pixel.device), right=True)
    return group.clamp(max=pixels - 1), entries.view(total, size)
