"""Measure tuning, receptive fields and stimuli of a simulated session's own neurons, as if they were a model.

python docs/published/true_neurons.py sessions/spikes

What they miss of the truth is what the measurement misses, and no model can be asked for more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from data_prep.synthetic_neural.population import GREY, Filters, Population
from data_prep.synthetic_neural.truth import settings_of
from ssl_vivit.evaluation.fields.agreement import compare, kernel_correlation, true_ellipses
from ssl_vivit.evaluation.fields.white_noise import WhiteNoise, reverse_correlation
from ssl_vivit.evaluation.stimuli import AscentConfig, Constraints, Presentation, ascend
from ssl_vivit.evaluation.stimuli.agreement import agree
from ssl_vivit.evaluation.stimuli.references import measure_references
from ssl_vivit.evaluation.tuning.curves import measure_curves
from ssl_vivit.evaluation.tuning.fits import fit_all
from ssl_vivit.evaluation.tuning.gratings import Protocol
from ssl_vivit.evaluation.tuning.stimuli import default_stimuli
from ssl_vivit.evaluation.tuning.truth import agreement, true_tuning
from ssl_vivit.evaluation.tuning.units import measure_units


def neurons_of(session: str) -> Filters:
    """The neurons of a simulated session, with their scales."""
    settings = settings_of(session)
    stored = load_file(Path(session) / "meta" / "ground_truth.safetensors")
    names = {each.name for each in fields(Population)}
    tensors = {name: values for name, values in stored.items() if name in names}
    size, rate = tuple(settings["size"]), float(settings["frames_per_second"])
    return Filters(Population(size=size, frames_per_second=rate, **tensors))


def main(session: str) -> None:
    """Print correlations with the truth."""
    neurons = neurons_of(session)
    population = neurons.population
    size, rate = population.size, population.frames_per_second
    truth = {name: values.numpy() for name, values in population.tensors().items()}
    truth |= {"fast_kernel": neurons.fast.numpy(), "slow_kernel": neurons.slow.numpy()}
    units = list(range(len(population)))

    def rates(videos: torch.Tensor) -> torch.Tensor:
        return torch.stack([neurons.rates(video) for video in videos])

    curves = measure_curves(
        rates,
        Protocol(size, rate, seconds=2.5),
        default_stimuli(size, rate),
        units,
        truth["center"],
    )
    table = measure_units(curves, units, fit_all(curves.values, curves.responses))
    for name, each in agreement(table, true_tuning(truth, rate)).items():
        print(name, {key: round(value, 3) for key, value in each.items()})
    noise = WhiteNoise(size)
    found = reverse_correlation(rates, noise, units, lags=round(rate / 2))
    both = {"noise": found.ellipses(noise), "truth": true_ellipses(truth)}
    for pair, each in compare(both, size).items():
        print(pair, {key: round(value, 3) for key, value in each.items()})
    kernels = kernel_correlation(found.kernels, truth["fast_kernel"], truth["slow_kernel"])
    print("time courses", round(float(np.nanmedian(kernels)), 3))
    most_exciting(rates, neurons, truth, round(rate / 2))


def most_exciting(
    rates: Callable[[torch.Tensor], torch.Tensor],
    neurons: Filters,
    truth: dict[str, np.ndarray],
    frames: int,
) -> None:
    """Print how the most exciting videos and images of the neurons agree with their filters."""
    units = list(range(len(neurons.population)))
    truth = truth | {
        "receptive_field": neurons.even.numpy(),
        "receptive_field_odd": neurons.odd.numpy(),
    }
    for kind, response in (("video", 1), ("image", frames)):
        shown = Presentation(kind, neurons.population.size, GREY, frames, frames, response)
        # About a deviation of 50 grey levels, as textures have.
        limits = Constraints(shown.shape, GREY, 0.15 * 50, blur=1.0, time_blur=1.0)
        starts = measure_references(rates, shown, limits, units).best
        found = ascend(rates, shown, limits, starts, units, AscentConfig()).deviations.numpy()
        for name, each in agree(kind, found, truth, units, response, 0).to_json().items():
            print(kind, name, {key: round(value, 3) for key, value in each.items()})


if __name__ == "__main__":
    main(sys.argv[1])
