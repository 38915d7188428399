"""Attention of a model of neurons in a trial: to places in the image and to past frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ssl_vivit.encoders import ViViTConfig
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.attention.maps import AttentionMaps, attention_maps
from ssl_vivit.evaluation.attention.rollout import Readout, rollout
from ssl_vivit.evaluation.chosen_units import ChosenUnits
from ssl_vivit.grid import Grid
from ssl_vivit.neural.cores.block_reader import BlockReader
from ssl_vivit.neural.cores.vivit_core import ViViTCore, core_of
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.positions import corners, gaussian_mask

# Time steps in a window, for encoders whose position encoding allows any length. Attention over w
# steps takes w² numbers at each place. In longer trials a step sees at least half a window of past.
_WINDOW = 256


class TrialAttention(NamedTuple):
    """Attention of the readouts to the encoder's input, at each of S time steps of a trial.

    Time steps are those of the encoder's tokens. Fractions refer to the readout at one time step.

    Attributes:
        where: (S, h, w), fraction of attention to each position of the token grid, summed over all
            time steps that the readout attends to.
        when: (S, S), fraction of attention to each time step (columns) by the readout at each time
            step (rows), summed over positions.
        read: (T,), index of the time step that is read out in each of T recorded frames; −1 before
            the first time step is complete.
    """

    where: Float[np.ndarray, "S h w"]
    when: Float[np.ndarray, "S S"]
    read: Int[np.ndarray, " T"]


@torch.no_grad()
def trial_attention(chosen: ChosenUnits, video: Shaped[np.ndarray, "T H W"]) -> TrialAttention:
    """Compute the attention of the selected units' readouts to the encoder's input.

    The result is the attention rollout
    (:func:`~ssl_vivit.evaluation.attention.rollout.rollout`) of each time step to the tokens that
    the readouts use, averaged over units. If the readouts use several blocks, the rollouts of the
    blocks are averaged with the model's block weights. The modulator and the frame stream have no
    attention and are left out. A trial of any length is divided into the windows in which the model
    encodes it. If the position encoding allows any length, windows have 256 time steps and overlap
    by half.

    Args:
        chosen: the units, of a model whose core is a ViViT.
        video: pixels from 0 to 255.

    Raises:
        NeuralModelError: if the core is not a ViViT, or if the trial is too short for one token.
    """
    model, session = chosen.predictor.model, chosen.facts.name
    try:
        core = core_of(model.encoder, model.block_reader)
    except NeuralModelError:
        core = None
    if not isinstance(core, ViViTCore):
        raise NeuralModelError(
            f"the model's core is a {type(model.encoder).__name__}, which has no attention; give a "
            "model whose core is a ViViT"
        )
    like = next(model.parameters())
    seen = chosen.facts.standardised_video(torch.from_numpy(np.ascontiguousarray(video)))
    clip = seen.to(like)[None, None]
    if model.adapter is not None:
        clip = model.adapter(clip)
    ended = torch.arange(1, len(video) + 1)
    rates = model.frame_rates[session]
    if rates is not None:
        clip, ended = clip[:, :, rates.shown(len(video))], rates.seen(len(video))
    read = (ended // core.temporal_stride - 1).numpy()
    steps = clip.shape[2] // core.temporal_stride
    if not steps or read[-1] < 0:
        raise NeuralModelError(
            f"a trial of {len(video)} frames is too short for one token, which takes "
            f"{core.temporal_stride} frames at the encoder's rate; give a longer trial"
        )
    grid = core.encoder.config.grid_of(core.temporal_stride, *clip.shape[3:])
    places = _position_weights(model.readouts[session], chosen.places, grid)
    where = np.zeros((steps, grid.h, grid.w))
    when = np.zeros((steps, steps))
    for start, first, last in _windows(steps, core.context or _WINDOW):
        frames = slice(start * core.temporal_stride, last * core.temporal_stride)
        maps = _of_all_heads(attention_maps(core.encoder, clip[:, :, frames]))
        for step in range(first, last):
            shares = (
                _tubelet_fractions(maps, core.reader, places, step - start).double().cpu().numpy()
            )
            where[step] = shares.sum(0)
            when[step, start:last] = shares.sum((1, 2))
    return TrialAttention(where, when, np.minimum(read, steps - 1))


def _windows(steps: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield the windows in which a trial of ``steps`` time steps is encoded, as in ViViTCore.

    Successive windows overlap by half. A window is a tuple (start, first, end). It covers the time
    steps from ``start`` to ``end`` − 1. Its results are used from the time step ``first`` on, since
    the preceding windows give the results of earlier time steps.
    """
    hop, taken = max(length // 2, 1), 0
    for start in range(0, steps, hop):
        end = min(start + length, steps)
        yield start, taken, end
        taken = end
        if end == steps:
            return


def _of_all_heads(maps: AttentionMaps) -> AttentionMaps:
    """Average the weights over heads; a rollout needs only the mean."""

    def mean(kind: dict[int, Tensor]) -> dict[int, Tensor]:
        return {layer: weights.mean(-3, keepdim=True) for layer, weights in kind.items()}

    return replace(
        maps, spatial=mean(maps.spatial), temporal=mean(maps.temporal), joint=mean(maps.joint)
    )


def _tubelet_fractions(
    maps: AttentionMaps, reader: BlockReader | None, places: Float[Tensor, " n"], step: int
) -> Float[Tensor, "t h w"]:
    """Return the fraction (t, h, w) of each tubelet in the tokens read out at one time step.

    Args:
        maps: attention weights of a clip.
        reader: reader of the blocks whose tokens are read out; None for the encoder's output.
        places: weights of the n positions of the token grid in the readouts, which sum to 1.
        step: index of the time step.
    """
    kinds = (maps.spatial, maps.temporal, maps.joint)
    some = next(iter({**maps.spatial, **maps.joint}.values()))
    patches = some.new_zeros(1, maps.grid.t, len(places))
    patches[0, step] = places.to(patches)
    read = Readout(patches, None, None)
    if reader is None:
        return rollout(maps.config, maps.grid, read, *kinds)[0]
    weights = torch.ones(1) if reader.logits is None else reader.logits.softmax(0)
    shares = patches.new_zeros(maps.grid)
    for block, weight in zip(reader.blocks, weights.to(patches), strict=True):
        until = ({k: v for k, v in kind.items() if k <= block} for kind in kinds)
        shares += weight * rollout(_truncated(maps.config, block), maps.grid, read, *until)[0]
    return shares


def _truncated(config: ViViTConfig, block: int) -> ViViTConfig:
    """Return the config of an encoder that ends after the given block."""
    if config.variant != "factorized_encoder":
        return config
    assert config.spatial_depth is not None
    spatial = min(config.spatial_depth, block + 1)
    return replace(config, pooling=None, spatial_depth=spatial, temporal_depth=block + 1 - spatial)


def _position_weights(readout: nn.Module, units: Sequence[int], grid: Grid) -> Float[Tensor, " n"]:
    """Return the weight of each of the token grid's n positions in the readouts of the units.

    Weights are averaged over units and sum to 1. Readouts that are not Gaussian weigh all positions
    equally.
    """
    size = (grid.h, grid.w)
    if not isinstance(readout, GaussianReadout):
        return torch.full((grid.h * grid.w,), 1 / (grid.h * grid.w))
    own = torch.as_tensor(units, device=readout.features.device)
    positions, align = readout.centres()[own], readout.config.align_corners
    if readout.config.sampling == "mask":
        weights = gaussian_mask(positions, readout.widths()[own], size, align_corners=align)
    else:
        pixel, weight = corners(positions, size, align_corners=align)
        weights = weight.new_zeros(len(own), grid.h * grid.w).scatter_add(1, pixel, weight)
    mean = weights.mean(0)
    return mean / mean.sum()
