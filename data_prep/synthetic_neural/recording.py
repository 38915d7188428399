"""Simulate the calcium signal of spiking neurons, with slow decay and photon noise."""

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
    """Sample a calcium signal: decaying responses to Poisson spikes, with gamma-distributed noise.

    Args:
        draw: random generator.
        rates: (T, N), expected spikes per frame.
        resting: (N,), expected spikes per frame before the first frame.
        frames_per_second: frame rate of the movie.

    Returns:
        (T, N), non-negative; without noise, the peak after a single spike is 1.
    """
    # Also simulate the time before the first frame, so that the signal is stationary.
    before = math.ceil(5 * _DECAY_SECONDS * frames_per_second)
    expected = np.concatenate([np.tile(resting, (before, 1)), rates])
    signal = _decaying(draw.poisson(expected), resting, frames_per_second)[before:]
    return draw.gamma(np.maximum(signal, 1e-12) / _NOISE, _NOISE)


def expected_calcium(
    rates: Float[np.ndarray, "t n"], resting: Float[np.ndarray, " n"], frames_per_second: float
) -> Float[np.ndarray, "t n"]:
    """Return the expected value, (T, N), of :func:`calcium_signal` for the same arguments."""
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
