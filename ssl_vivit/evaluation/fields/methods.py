"""Receptive fields of a model's neurons by readout positions, by gradients and by white noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.evaluation.chosen_units import ChosenUnits
from ssl_vivit.evaluation.fields.ellipses import Ellipses, ellipses_of
from ssl_vivit.evaluation.fields.white_noise import NoiseFields, WhiteNoise, at_peak
from ssl_vivit.evaluation.neurons.receptive_fields import readout_spreads, receptive_fields

# Number of units whose gradients are in memory at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class Fields:
    """Receptive fields of n units by one method.

    Attributes:
        ellipses: positions and sizes.
        kernels: (n, lags), time course of each unit where its ``power`` is largest; lag 0 is the
            current frame. None for a method without time courses.
        images: maps (n, h, w) by name: ``power``, from which the ellipses are computed, and
            ``filter``, the spatial filter at its strongest lag. Empty for a method without maps.
        pixel: width of a pixel of the maps, in pixels of the frame.
    """

    ellipses: Ellipses
    kernels: Float[np.ndarray, "n lags"] | None = None
    images: dict[str, Float[np.ndarray, "n h w"]] = field(default_factory=dict)
    pixel: int = 1


def by_position(chosen: ChosenUnits) -> Fields | None:
    """Return the readout's Gaussians in frame coordinates, or None for a readout without positions.

    The Gaussian is the distribution from which positions are drawn in training or, with
    ``sampling="mask"``, the readout's spatial mask. The encoder's receptive field at a position of
    the feature map is not included. The readout of a linear model has filters and no Gaussians.
    For such a model, ellipses have centres and no sizes.
    """
    centres = chosen.centres()
    if centres is None:
        return None
    spreads = readout_spreads(chosen.predictor.model, chosen.facts.name, chosen.facts.frame_size)
    if spreads is None:
        return Fields(Ellipses(centres, np.full((len(centres), 2, 2), np.nan)))
    return Fields(Ellipses(centres, spreads[list(chosen.places)]))


def by_gradient(
    chosen: ChosenUnits,
    clips: Float[Tensor, "b T H W"],
    *,
    lags: int,
    batch_size: int = 8,
    progress: bool = False,
) -> Fields:
    """Return receptive fields from gradients of rates with respect to preceding pixels.

    See :func:`~ssl_vivit.evaluation.neurons.receptive_fields.receptive_fields`.

    Args:
        chosen: the units.
        clips: pixels from 0 to 255; the rate of the last frame of each clip is differentiated.
        lags: number of frames at the end of a clip whose gradients are used; lag 0 is the last
            frame.
        batch_size: number of clips in a batch.
        progress: whether to show a progress bar.
    """
    model, session = chosen.predictor.model, chosen.facts.name
    seen = chosen.facts.standardised_video(clips)[:, None].to(next(model.parameters()))
    powers, filters, kernels = [], [], []
    with tqdm(total=len(chosen.places), desc="gradients", unit="unit", disable=not progress) as bar:
        # Gradients of all units at once would fill the memory.
        for start in range(0, len(chosen.places), _AT_ONCE):
            some = chosen.places[start : start + _AT_ONCE]
            found = receptive_fields(
                lambda video: model(video, None, session),
                seen, some, lags=lags, batch_size=batch_size,
            )  # fmt: skip
            power = found.energy.double().numpy()
            # Lag 0 is the current frame, as for white noise.
            own = found.filters.flip(1).numpy()
            strongest = np.square(own).sum((2, 3)).argmax(1)
            known = power.max((1, 2)) > 0
            powers.append(power)
            filters.append(own[np.arange(len(own)), strongest])
            kernels.append(np.where(known[:, None], at_peak(own, power), np.nan))
            bar.update(len(some))
    images = {"power": np.concatenate(powers), "filter": np.concatenate(filters)}
    # In units of the peak, so that tolerances do not depend on the unit.
    peaks = images["power"].max((1, 2), keepdims=True)
    power = images["power"] / np.where(peaks > 0, peaks, 1)
    return Fields(ellipses_of(power), np.concatenate(kernels), images)


def by_noise(found: NoiseFields, noise: WhiteNoise) -> Fields:
    """Return receptive fields from correlations of rates with white noise."""
    unit, lag = np.arange(len(found.linear)), np.abs(found.linear).max((2, 3)).argmax(1)
    images = {"power": found.power, "filter": found.linear[unit, lag]}
    return Fields(found.ellipses(noise), found.kernels, images, noise.check)


def clips_of_noise(noise: WhiteNoise, count: int, frames: int) -> Float[Tensor, "b T H W"]:
    """Draw clips of white noise that differ from the clips used for reverse correlation."""
    return torch.stack([noise.pixels(noise.draws(-1 - clip, frames)) for clip in range(count)])


def clips_of_movies(
    videos: Sequence[np.ndarray], count: int, frames: int
) -> Float[Tensor, "b T H W"] | None:
    """Cut clips evenly spaced over movies and time; return None if no movie is long enough.

    Args:
        videos: movies, (T, H, W) each.
        count: maximum number of clips.
        frames: number of frames of a clip.
    """
    long = [video for video in videos if len(video) >= frames]
    if not long:
        return None
    each = -(-count // len(long))
    cut = [
        video[start : start + frames]
        for video in long
        for start in np.linspace(0, len(video) - frames, each).round().astype(int)
    ]
    chosen = np.linspace(0, len(cut) - 1, min(count, len(cut))).round().astype(int)
    return torch.stack([torch.from_numpy(np.array(cut[place])).float() for place in chosen])
