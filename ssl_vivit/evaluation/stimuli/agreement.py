"""Agreement of stimuli with the true filters of simulated neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.stimuli.presentation import Kind

# Columns are the four separable filters (even fast, even slow, odd fast, odd slow): products of an
# even or odd spatial filter and a fast or slow temporal filter. The motion energy of a direction is
# the sum of the squared responses of two rows, as in the simulation.
_PREFERRED = np.array([[0, 1, 1, 0], [-1, 0, 0, 1]], float)
_OPPOSITE = np.array([[0, 1, -1, 0], [1, 0, 0, 1]], float)


class Agreement(NamedTuple):
    """Correlations of the stimuli of n simulated units with true filters, and their controls.

    Attributes:
        space: (n,), spatial correlation of a unit's stimulus with the unit's own filter; see
            :func:`space_correlation`.
        other_space: control, the mean spatial correlation of stimuli with the filters of other
            neurons in the session; NaN without other neurons.
        drive: (n,), drive of the unit's own filter by its video, as a fraction of the largest
            possible drive; see :func:`drive_correlation`. None for images.
        other_drive: control, the mean drive of the filters of other neurons; NaN for images.
        shuffled: (n,), control, ``drive`` of the videos with their frames in random order; None for
            images.
    """

    space: Float[np.ndarray, " n"]
    other_space: float
    drive: Float[np.ndarray, " n"] | None = None
    other_drive: float = math.nan
    shuffled: Float[np.ndarray, " n"] | None = None

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return each correlation's median over units, and its controls, as JSON values."""
        told: dict[str, dict[str, float]] = {
            "space": {
                "units": len(self.space),
                "median": float(np.median(self.space)),
                "other_units": self.other_space,
            }
        }
        if self.drive is not None and self.shuffled is not None:
            told["drive"] = {
                "units": len(self.drive),
                "median": float(np.median(self.drive)),
                "other_units": self.other_drive,
                "shuffled": float(np.median(self.shuffled)),
            }
        return told


def agree(
    kind: Kind,
    deviations: Float[np.ndarray, "n T H W"],
    truth: Mapping[str, np.ndarray],
    places: Sequence[int],
    response: int,
    seed: int,
) -> Agreement:
    """Correlate stimuli with the true filters of their own units and of other units.

    Args:
        kind: "video" or "image".
        deviations: stimuli as deviations from grey.
        truth: tensors of ``meta/ground_truth.safetensors``, for all neurons of the session.
        places: indices of the units among all neurons of the session.
        response: number of last frames in which responses are measured. The drive is computed at
            each of these frames, and the largest is used.
        seed: seed of the shuffled frames.
    """
    units = np.arange(len(places))
    space = space_correlation(deviations, truth)
    own, other = space[units, places], _of_others(space, places)
    if kind == "image":
        return Agreement(own, other)
    drive = _best_drive(deviations, truth, response)
    order = named_generator(seed, "shuffled frames").permutation(deviations.shape[1])
    shuffled = _best_drive(deviations[:, order], truth, response)
    return Agreement(
        own, other, drive[units, places], _of_others(drive, places), shuffled[units, places]
    )


def _best_drive(
    videos: Float[np.ndarray, "b T H W"], truth: Mapping[str, np.ndarray], response: int
) -> Float[np.ndarray, "b n"]:
    frames = videos.shape[1]
    whole = _norms(videos)
    found = [
        drive_correlation(videos[:, :end], truth) * _norms(videos[:, :end]) / whole
        for end in range(frames - response + 1, frames + 1)
    ]
    return np.max(found, 0)


def _of_others(correlations: Float[np.ndarray, "b n"], places: Sequence[int]) -> float:
    """Return the mean correlation over all pairs of a stimulus and the filter of another neuron."""
    others = np.ones_like(correlations, bool)
    others[np.arange(len(places)), places] = False
    return float(correlations[others].mean()) if others.any() else math.nan


def space_correlation(
    stimuli: Float[np.ndarray, "b T H W"], truth: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "b n"]:
    """Correlate each stimulus with each neuron's Gabor function, at the best phase in each frame.

    The correlation is the square root of the fraction of the stimulus' power that lies in the span
    of the even and the odd Gabor function.

    Args:
        stimuli: videos, or images with T = 1, as deviations from grey.
        truth: tensors of ``meta/ground_truth.safetensors``.
    """
    seen = _spatial_products(stimuli, truth)
    inside = einsum(
        seen, np.linalg.inv(_gabor_products(truth)), seen, "b t n i, n i j, b t n j -> b n"
    )
    return np.sqrt(np.maximum(inside, 0)) / _norms(stimuli)


def drive_correlation(
    videos: Float[np.ndarray, "b T H W"], truth: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "b n"]:
    """Return each neuron's drive at the last frame, as a fraction of the largest possible drive.

    The largest possible drive is the maximum over all videos of equal contrast. For a simple neuron
    the result is the correlation with its space-time filter, and 0 if this is negative. For a
    complex neuron it is the square root of the motion energy, relative to its maximum. Motion in
    the opposite direction has the weight 1 − ``selectivity``. Divisive normalisation and the
    surround are ignored.

    Args:
        videos: deviations from grey.
        truth: tensors of ``meta/ground_truth.safetensors``.

    Returns:
        One value from 0 to 1 for each video and neuron.
    """
    parts = _filter_products(videos, truth)
    energy, linear = _weights(truth)
    root = np.linalg.cholesky(_pairwise_products(truth, videos.shape[1]))
    # Among videos of norm 1, the largest drive is that of a video in the span of the four filters.
    most_energy = np.linalg.eigvalsh(root.swapaxes(1, 2) @ energy @ root)[:, -1]
    most_linear = np.square(root.swapaxes(1, 2) @ linear[..., None]).sum((1, 2))
    of_complex = einsum(parts, energy, parts, "b n i, n i j, b n j -> b n") / most_energy
    of_simple = einsum(parts, linear, "b n i, n i -> b n") / np.sqrt(most_linear)
    drive = np.where(truth["complex"] > 0, np.sqrt(of_complex.clip(0)), of_simple.clip(0))
    return drive / _norms(videos)


def nearest_filters(
    stimuli: Float[np.ndarray, "n T H W"], truth: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "n T H W"]:
    """Return the true filter of each unit, with the phase and the contrast of the unit's stimulus.

    For videos these are space-time filters. For images (T = 1) they are Gabor functions.

    Args:
        stimuli: stimuli of n units, as deviations from grey.
        truth: tensors of ``meta/ground_truth.safetensors``, for the units of the stimuli.
    """
    units, frames = np.arange(len(stimuli)), stimuli.shape[1]
    if frames == 1:
        seen = _spatial_products(stimuli, truth)[units, :, units]
        phase = einsum(np.linalg.inv(_gabor_products(truth)), seen, "n i j, n t j -> n t i")
    else:
        parts = _filter_products(stimuli, truth)[units, units]
        energy, linear = _weights(truth)
        along = np.where(truth["complex"][:, None] > 0, (energy @ parts[..., None])[..., 0], linear)
        kernels = _kernels(truth, frames)
        phase = einsum(along.reshape(-1, 2, 2), kernels, "n i k, n k l -> n l i")
        phase = np.pad(phase, ((0, 0), (0, frames - phase.shape[1]), (0, 0)))[:, ::-1]
    found = einsum(phase, _gabors(truth), "n t i, n i h w -> n t h w")
    scale = _norms(stimuli) / np.maximum(_norms(found), 1e-12)
    return found * scale[..., None, None]


def _weights(
    truth: Mapping[str, np.ndarray],
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 4"]]:
    """Return the weights that turn the responses of a neuron's four filters into its drive.

    The first result (n, 4, 4) is the quadratic form of the motion energy, for complex cells. The
    second result (n, 4) is the vector of linear weights, for simple cells. The four filters are
    products of an even or odd spatial filter and a fast or slow temporal filter.
    """
    other = 1 - truth["selectivity"].astype(float)[:, None]
    energy = _PREFERRED.T @ _PREFERRED + other[..., None] * (_OPPOSITE.T @ _OPPOSITE)
    return energy, _PREFERRED[0] + other * _OPPOSITE[0]


def _kernels(truth: Mapping[str, np.ndarray], frames: int) -> Float[np.ndarray, "n 2 lags"]:
    """Return the fast and the slow temporal kernel of each neuron, for lags below ``frames``."""
    return np.stack([truth["fast_kernel"], truth["slow_kernel"]], 1)[..., :frames].astype(float)


def _filter_products(
    videos: Float[np.ndarray, "b T H W"], truth: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "b n 4"]:
    """Return inner products of the last frames of each video with each neuron's four filters.

    See :func:`_weights` for the four filters.
    """
    kernels = _kernels(truth, videos.shape[1])
    latest = _spatial_products(videos, truth)[:, ::-1][:, : kernels.shape[2]]
    parts = einsum(latest, kernels, "b l n i, n k l -> b n i k")
    return parts.reshape(*parts.shape[:2], 4)


def _pairwise_products(truth: Mapping[str, np.ndarray], frames: int) -> Float[np.ndarray, "n 4 4"]:
    """Return the inner products of each neuron's four space-time filters with each other."""
    kernels = _kernels(truth, frames)
    in_time = kernels @ kernels.swapaxes(1, 2)
    return einsum(_gabor_products(truth), in_time, "n i j, n k m -> n i k j m").reshape(-1, 4, 4)


def _spatial_products(
    stimuli: Float[np.ndarray, "b T H W"], truth: Mapping[str, np.ndarray]
) -> Float[np.ndarray, "b T n 2"]:
    """Return inner products of each frame with each neuron's even and odd Gabor function."""
    pairs = _gabors(truth)
    flat = rearrange(stimuli.astype(float), "b t h w -> b t (h w)")
    return rearrange(flat @ rearrange(pairs, "n i h w -> (h w) (n i)"), "b t (n i) -> b t n i", i=2)


def _gabors(truth: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n 2 H W"]:
    return np.stack([truth["receptive_field"], truth["receptive_field_odd"]], 1).astype(float)


def _gabor_products(truth: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n 2 2"]:
    pairs = _gabors(truth)
    return einsum(pairs, pairs, "n i h w, n j h w -> n i j")


def _norms(stimuli: Float[np.ndarray, "b T H W"]) -> Float[np.ndarray, "b 1"]:
    return np.linalg.norm(stimuli.astype(float).reshape(len(stimuli), -1), axis=1)[:, None]
