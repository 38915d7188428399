"""The calcium signal of spiking neurons: slow decay, and the noise of counted photons."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

_DECAY_SECONDS = 0.4
_NOISE = 0.15


def calcium_signal(
    draw: np.random.Generator,
    rates: Float[np.ndarray, "t n"],
    resting: Float[np.ndarray, " n"],
    frames_per_second: float,
) -> Float[np.ndarray, "t n"]:
    """Poisson spikes through an exponential kernel, with gamma noise that keeps the mean.

    Args:
        draw: where spikes and noise come from.
        rates: expected spikes a frame.
        resting: expected spikes a frame before the first frame.
        frames_per_second: of the movie.

    Returns:
        A signal of at least 0 in units of one spike's peak.
    """
    # The seconds before, so that the first frame is no fresh start.
    before = math.ceil(5 * _DECAY_SECONDS * frames_per_second)
    expected = np.concatenate([np.tile(resting, (before, 1)), rates])
    signal = _decaying(draw.poisson(expected), resting, frames_per_second)[before:]
    return draw.gamma(np.maximum(signal, 1e-12) / _NOISE, _NOISE)


def expected_calcium(
    rates: Float[np.ndarray, "t n"], resting: Float[np.ndarray, " n"], frames_per_second: float
) -> Float[np.ndarray, "t n"]:
    """The expectation of :func:`calcium_signal`."""
    return _decaying(rates, resting, frames_per_second)


def _decaying(
    spikes: np.ndarray, resting: Float[np.ndarray, " n"], frames_per_second: float
) -> Float[np.ndarray, "t n"]:
    keep = math.exp(-1 / (_DECAY_SECONDS * frames_per_second))
    level = resting / (1 - keep)
    signal = np.empty(spikes.shape)
    for t, new in enumerate(spikes):
        level = keep * level + new
        signal[t] = level
    return signal
