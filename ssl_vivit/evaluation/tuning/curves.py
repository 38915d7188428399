"""Tuning curves from a model's rates; each full-field grating is shown once for all units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.evaluation.tuning.gratings import Grating, Protocol
from ssl_vivit.evaluation.tuning.stimuli import Stimuli

Predict = Callable[[Float[Tensor, "b T H W"]], Float[Tensor, "b T N"]]
"""Function from pixels (0 to 255) to rates of all neurons in every frame."""


@dataclass(frozen=True)
class TuningCurves:
    """Responses of n units to gratings, as mean rates minus the rate at grey.

    The best grating of a unit is the full-field grating with the largest response, over all
    combinations of direction and frequencies. A curve varies one property of the best grating.

    Attributes:
        values: property → its k values; ``direction`` and ``orientation`` in degrees,
            ``spatial_frequency`` in cycles per pixel, ``temporal_frequency`` in Hz, ``contrast``,
            ``size`` in pixels.
        responses: property → responses (n, k). The response to an orientation is the mean over its
            two directions.
        grid: (n, directions, spatial frequencies, temporal frequencies), responses to full-field
            gratings.
        best: (n, 3), indices of the best grating in ``grid``.
        grey: (n,), mean rate at grey.
        modulation: (n,), amplitude of the rate at the temporal frequency of the best grating.
    """

    values: dict[str, Float[np.ndarray, " k"]]
    responses: dict[str, Float[np.ndarray, "n k"]]
    grid: Float[np.ndarray, "n directions spatial temporal"]
    best: Int[np.ndarray, "n 3"]
    grey: Float[np.ndarray, " n"]
    modulation: Float[np.ndarray, " n"]


def measure_curves(
    predict: Predict,
    protocol: Protocol,
    stimuli: Stimuli,
    units: Sequence[int],
    centres: Float[np.ndarray, "n 2"] | None = None,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> TuningCurves:
    """Show gratings to a model and measure tuning curves of selected neurons.

    Args:
        predict: the model, a function from pixels (b, T, H, W), 0 to 255, to rates (b, T, N) of all
            neurons.
        protocol: timing of a trial.
        stimuli: values of each property of the gratings. Empty sizes omit the size curve, and empty
            contrasts the contrast curve.
        units: indices of the units among the neurons that ``predict`` returns.
        centres: (x, y) in [−1, 1] of the patches of each unit; needed for the size curve.
        batch_size: number of trials in a batch.
        progress: whether to show a progress bar.

    Raises:
        NeuralModelError: if the session's frames cannot show a grating.
        ValueError: if there are sizes without centres.
    """
    if stimuli.sizes and centres is None:
        raise ValueError("stimuli.sizes needs the centres of the patches; give centres")
    for frequency in stimuli.temporal_frequencies:
        protocol.window(frequency)
    axes = (stimuli.degrees, stimuli.spatial_frequencies, stimuli.temporal_frequencies)
    gratings = [Grating(*each, contrast=stimuli.contrast) for each in product(*axes)]
    own = torch.as_tensor(units)
    show = _Shown(predict, protocol, batch_size)
    with tqdm(total=len(gratings), desc="gratings", unit="grating", disable=not progress) as bar:
        found = [(mean[own], wave[own]) for mean, wave in show(gratings, bar)]
        means, waves = (
            rearrange(torch.stack(part).numpy(), "(d s t) n -> n d s t", d=len(axes[0]), s=len(axes[1]))
            for part in zip(*found, strict=True)
        )  # fmt: skip
        flat = means.reshape(len(own), -1).argmax(1)
        best = np.stack(np.unravel_index(flat, means.shape[1:]), 1)
        preferred = [gratings[place] for place in flat]
        responses = _slices(means, best)
        values: dict[str, Sequence[float]] = {
            "direction": stimuli.degrees,
            "orientation": stimuli.degrees[: len(stimuli.degrees) // 2],
            "spatial_frequency": stimuli.spatial_frequencies,
            "temporal_frequency": stimuli.temporal_frequencies,
        }
        if stimuli.contrasts:
            values["contrast"] = stimuli.contrasts
            responses["contrast"] = _contrast_curves(show, preferred, stimuli.contrasts, own, bar)
        if stimuli.sizes:
            assert centres is not None
            values["size"] = stimuli.sizes
            responses["size"] = _size_curves(show, preferred, stimuli.sizes, own, centres, bar)
    return TuningCurves(
        {name: np.array(each, float) for name, each in values.items()},
        responses,
        means,
        best,
        show.grey.mean(0)[own].numpy(),
        waves.reshape(len(own), -1)[np.arange(len(own)), flat],
    )


class _Shown:
    """Function that shows gratings to a model; yields (response, modulation) for each grating.

    Response and modulation have one value for each neuron (N,), as in :class:`TuningCurves`.
    """

    def __init__(self, predict: Predict, protocol: Protocol, batch_size: int) -> None:
        self.predict, self.protocol, self.batch_size = predict, protocol, batch_size
        counted = slice(protocol.onset, None)
        self.blank = predict(protocol.blank()[None])[0].double().cpu()
        self.grey = self.blank[counted]

    def __call__(self, gratings: Sequence[Grating], bar: tqdm) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(gratings), self.batch_size):
            batch = gratings[start : start + self.batch_size]
            videos = torch.stack([self.protocol.render(each) for each in batch])
            for grating, rates in zip(batch, self.predict(videos).double().cpu(), strict=True):
                yield self._response(grating, rates)
            bar.update(len(batch))

    def _response(self, grating: Grating, rates: Float[Tensor, "T N"]) -> tuple[Tensor, Tensor]:
        window = self.protocol.window(grating.temporal_frequency)
        above = rates[window] - self.blank[window]
        time = torch.arange(len(above)) / self.protocol.frames_per_second
        turn = torch.polar(torch.ones_like(time), -2 * math.pi * grating.temporal_frequency * time)
        wave = 2 * (turn.to(torch.complex128) @ above.to(torch.complex128)).abs() / len(above)
        return above.mean(0), wave


def _slices(means: np.ndarray, best: np.ndarray) -> dict[str, np.ndarray]:
    """Return property → curves (n, k) through each unit's best grating.

    Properties are direction, orientation, spatial frequency and temporal frequency.

    Args:
        means: responses (n, directions, spatial frequencies, temporal frequencies).
        best: (n, 3), indices of each unit's best grating.
    """
    unit, (d, s, t) = np.arange(len(means)), best.T
    direction = means[unit, :, s, t]
    half = direction.shape[1] // 2
    return {
        "direction": direction,
        "orientation": (direction[:, :half] + direction[:, half:]) / 2,
        "spatial_frequency": means[unit, d, :, t],
        "temporal_frequency": means[unit, d, s],
    }


def _contrast_curves(
    show: _Shown, preferred: Sequence[Grating], contrasts: Sequence[float], own: Tensor, bar: tqdm
) -> Float[np.ndarray, "n k"]:
    """Return the responses (n, k) of each unit to its own best grating at all k contrasts.

    If several units have the same best grating, it is shown once.
    """
    distinct = list(dict.fromkeys(preferred))
    _extend(bar, len(distinct) * len(contrasts))
    curves = {
        each: torch.stack(
            [mean for mean, _ in show([replace(each, contrast=c) for c in contrasts], bar)]
        )
        for each in distinct
    }
    return torch.stack(
        [curves[each][:, unit] for each, unit in zip(preferred, own, strict=True)]
    ).numpy()


def _size_curves(
    show: _Shown,
    preferred: Sequence[Grating],
    sizes: Sequence[float],
    own: Tensor,
    centres: Float[np.ndarray, "n 2"],
    bar: tqdm,
) -> Float[np.ndarray, "n k"]:
    """Return each unit's responses (n, k) to patches of its best grating at its own centre."""
    _extend(bar, len(own) * len(sizes))
    curves = []
    for grating, unit, (x, y) in zip(preferred, own, centres.tolist(), strict=True):
        patches = [replace(grating, diameter=size, centre=(x, y)) for size in sizes]
        curves.append(torch.stack([mean[unit] for mean, _ in show(patches, bar)]))
    return torch.stack(curves).numpy()


def _extend(bar: tqdm, count: int) -> None:
    bar.total = (bar.total or 0) + count
    bar.refresh()
