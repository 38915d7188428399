"""Stimuli and behaviour as they were recorded → checked and standardised inputs of a model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError

Array = Tensor | np.ndarray

# A nominal rate (30) and its exact one (29.97) are one rate.
RATE_TOLERANCE = 0.005


class RecordedInputs(NamedTuple):
    """Inputs of :class:`ssl_vivit.neural.model.NeuralModel`.

    Attributes:
        video: (B, 1, T, H, W), standardised.
        behaviour: (B, T, k), standardised; None stands for its mean.
        pupil_centre: (B, T, 2), standardised; None where it was not given.
        recorded: (B, T), False in the frames of padding at the end of a trial.
    """

    video: Tensor
    behaviour: Tensor | None
    pupil_centre: Tensor | None
    recorded: Bool[Tensor, "B T"]


def recorded_inputs(
    facts: SessionFacts,
    video: Array,
    behaviour: Array | None,
    pupil_centre: Array | None,
    *,
    like: Tensor,
    first_trial: int = 0,
) -> RecordedInputs:
    """Check and standardise trials of one length.

    Frames at the end of a trial in which the video, the behaviour or the pupil's centre is NaN
    throughout are padding.

    Args:
        facts: of the session.
        video: (B, T, H, W) or (B, 1, T, H, W); uint8, or numbers from 0 to 255.
        behaviour: (B, T, K) with all recorded channels, in recorded units.
        pupil_centre: (B, T, 2) in recorded units.
        like: its device and precision are those of the inputs.
        first_trial: number of the first trial, for messages.

    Raises:
        NeuralModelError: for inputs that the session did not record, and numbers that are not
            finite before the padding.
    """
    pixels = _pixels(video, facts).to(like.device)
    expected = (pixels.shape[0], pixels.shape[2])
    parts = {"video": pixels[:, 0].flatten(2)}
    if behaviour is not None and facts.recorded_channels != 0:
        parts["behaviour"] = _behaviour(behaviour, facts, expected).to(like.device)
    elif behaviour is not None and _tensor(behaviour, "behaviour").numel():
        raise NeuralModelError(
            f"session {facts.name!r} was recorded without behaviour; leave behaviour out"
        )
    if pupil_centre is not None:
        parts["pupil_centre"] = _pupil(pupil_centre, facts, expected).to(like.device)

    lengths = {name: _recorded_frames(values) for name, values in parts.items()}
    shortest = torch.stack([*lengths.values()]).amin(0)
    recorded = torch.arange(expected[1], device=like.device) < shortest[:, None]
    for name, values in parts.items():
        _check_finite(name, values, recorded, first_trial)
    pixels = pixels.where(recorded[:, None, :, None, None], 0)
    _check_range(pixels, first_trial)

    def known(standardised: Tensor) -> Tensor:
        return standardised.to(like).where(recorded[..., None], 0)

    channels = parts.get("behaviour") if facts.behaviour_channels else None
    centre = parts.get("pupil_centre")
    return RecordedInputs(
        facts.standardised_video(pixels).to(like),
        None if channels is None else known(facts.standardised_behaviour(channels)),
        None if centre is None else known(facts.standardised_pupil(centre)),
        recorded,
    )


def check_rate(frames_per_second: float, facts: SessionFacts) -> None:
    """Refuse a frame rate that is not the session's.

    Raises:
        NeuralModelError: that names both rates.
    """
    if not math.isclose(frames_per_second, facts.frames_per_second, rel_tol=RATE_TOLERANCE):
        raise NeuralModelError(
            f"frames_per_second is {frames_per_second:g}; session {facts.name!r} has "
            f"{facts.frames_per_second:g} frames a second, each of which is a step of the model: "
            f"resample video and behaviour to {facts.frames_per_second:g}"
        )


def _pixels(video: Array, facts: SessionFacts) -> Tensor:
    """(B, 1, T, H, W), uint8 or float32."""
    given = _tensor(video, "video")
    pixels = given[:, None] if given.ndim == 4 else given
    height, width = facts.frame_size
    if pixels.ndim != 5 or pixels.shape[1] != 1 or tuple(pixels.shape[3:]) != (height, width):
        raise NeuralModelError(
            f"video of shape {tuple(given.shape)} is not (B, T, H, W) or (B, 1, T, H, W) with the "
            f"frames of {height}×{width} that session {facts.name!r} has"
        )
    if pixels.dtype == torch.bool:
        raise NeuralModelError(
            "video is boolean; pixels are recorded from 0 to 255: give video * np.uint8(255)"
        )
    return pixels if pixels.dtype == torch.uint8 else pixels.float()


def _check_range(pixels: Float[Tensor, "B 1 T H W"], first_trial: int) -> None:
    if pixels.dtype == torch.uint8 or not pixels.numel():
        return
    for trial, part in enumerate(pixels):
        low, high = float(part.min()), float(part.max())
        where = f"video of trial {first_trial + trial}"
        if low < 0 or high > 255:
            raise NeuralModelError(
                f"{where} has values from {low:g} to {high:g}; give pixels from 0 to 255 as they "
                f"were shown, which are standardised here"
            )
        if 0 < high <= 1:
            raise NeuralModelError(
                f"{where} has values up to {high:g}; pixels are recorded from 0 to 255: give video "
                f"* 255 (or uint8, if the frames are that dark)"
            )


def _behaviour(behaviour: Array, facts: SessionFacts, expected: tuple[int, int]) -> Tensor:
    """(B, T, K) with all recorded channels."""
    given = _tensor(behaviour, "behaviour").float()
    exact, least = facts.recorded_channels, max(facts.behaviour_channels, default=-1) + 1
    fits = given.ndim == 3 and tuple(given.shape[:2]) == expected
    if not fits or given.shape[2] < least or exact not in (None, given.shape[2]):
        told = f"at least {least}" if exact is None else exact
        raise NeuralModelError(
            f"behaviour of shape {tuple(given.shape)} is not (B, T, K) = ({expected[0]}, "
            f"{expected[1]}, {told}) with all recorded channels of session {facts.name!r}"
        )
    return given


def _pupil(centre: Array, facts: SessionFacts, expected: tuple[int, int]) -> Tensor:
    if facts.pupil_mean is None:
        raise NeuralModelError(
            f"session {facts.name!r} was trained without its pupil's centre; leave pupil_centre out"
        )
    given = _tensor(centre, "pupil_centre").float()
    if tuple(given.shape) != (*expected, 2):
        raise NeuralModelError(
            f"pupil_centre of shape {tuple(given.shape)} is not (B, T, 2) = {(*expected, 2)}"
        )
    return given


def _tensor(values: Any, name: str) -> Tensor:
    """Any array of numbers as a tensor; also read-only, reversed and big-endian ones."""
    try:
        if isinstance(values, Tensor):
            given = values
        else:
            array = np.asarray(values)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            given = torch.from_numpy(np.require(array, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise NeuralModelError(f"{name} is no array of numbers: {error}") from None
    if given.is_complex():
        raise NeuralModelError(f"{name} is complex; give real numbers")
    return given


def _recorded_frames(values: Tensor) -> Int[Tensor, " B"]:
    """Frames up to the last that is not NaN throughout, of values (B, T, n)."""
    if not values.is_floating_point() or not values.shape[2]:
        return torch.full((len(values),), values.shape[1], device=values.device)
    there = ~values.isnan().all(2)
    return (there.flip(1).cumsum(1) > 0).sum(1)


def _check_finite(name: str, values: Tensor, recorded: Tensor, first_trial: int) -> None:
    """Refuse values (B, T, n) that are not finite in a recorded frame, and trials without any."""
    if not values.is_floating_point() or not values.numel():
        return
    empty = values.isnan().flatten(1).all(1)
    if empty.any():
        raise NeuralModelError(
            f"{name} of trial {first_trial + int(empty.int().argmax())} is NaN throughout; leave "
            + ("the trial out" if name == "video" else f"{name} out")
        )
    wrong = ~values.isfinite().all(2) & recorded
    if wrong.any():
        trial, frame = (int(place) for place in wrong.nonzero()[0])
        raise NeuralModelError(
            f"{name} of trial {first_trial + trial} is not finite at frame {frame} of "
            f"{values.shape[1]}; only a tail of NaN frames is padding: interpolate the others"
        )
