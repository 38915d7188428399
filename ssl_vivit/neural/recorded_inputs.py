"""Check and standardise recorded stimuli and behaviour for a model of neurons."""

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

# Relative tolerance of frame rates: a nominal rate of 30 and an exact rate of 29.97 are equal.
RATE_TOLERANCE = 0.005


class RecordedInputs(NamedTuple):
    """Inputs of :class:`ssl_vivit.neural.model.NeuralModel`.

    Attributes:
        video: (B, 1, T, H, W), standardised.
        behaviour: (B, T, k), standardised. None means the session's mean in all frames.
        pupil_centre: (B, T, 2), standardised. None if it was not given.
        recorded: (B, T), False in padding frames at the end of a trial.
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
    """Check and standardise a batch of trials with equal numbers of frames.

    Frames at the end of a trial count as padding if the video, the behaviour or the pupil's centre
    consists only of NaN in them.

    Args:
        facts: ``SessionFacts`` of the session.
        video: (B, T, H, W) or (B, 1, T, H, W), uint8 or numbers from 0 to 255.
        behaviour: (B, T, K) all recorded channels, in recorded units.
        pupil_centre: (B, T, 2) in recorded units.
        like: tensor whose device and precision the results take.
        first_trial: number of the first trial, for messages.

    Raises:
        NeuralModelError: for inputs that the session did not record, or numbers before the padding
            that are not finite.
    """
    pixels = _pixels(video, facts).to(like.device)
    expected = (pixels.shape[0], pixels.shape[2])
    parts = {"video": pixels[:, 0].flatten(2)}
    parts |= _signals(facts, behaviour, pupil_centre, expected, like.device)

    lengths = {name: _recorded_frames(values) for name, values in parts.items()}
    shortest = torch.stack([*lengths.values()]).amin(0)
    recorded = torch.arange(expected[1], device=like.device) < shortest[:, None]
    for name, values in parts.items():
        _check_finite(name, values, recorded, first_trial)
    pixels = pixels.where(recorded[:, None, :, None, None], 0)
    for trial, each in enumerate(pixels):
        _check_range(each, f"video of trial {first_trial + trial}")

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


class RecordedFrames:
    """Checks and standardises the frames of a stream, one at a time.

    A frame is checked on the device where it is given, so checking a frame in host memory does not
    wait for a GPU.

    Args:
        facts: ``SessionFacts`` of the session.
        like: tensor whose device and precision the results take.

    Attributes:
        count: number of frames given so far.
    """

    def __init__(self, facts: SessionFacts, like: Tensor) -> None:
        self.facts, self.like, self.count = facts, like, 0
        self._ended = self._bright = False

    def take(
        self, frame: Array, behaviour: Array | None = None, pupil_centre: Array | None = None
    ) -> RecordedInputs | None:
        """Return the inputs of the next frame, with B = T = 1, or None for padding.

        A frame is padding if one of its inputs consists only of NaN. Only padding may follow.

        Args:
            frame: (H, W), uint8 or numbers from 0 to 255.
            behaviour: (K,) all recorded channels, in recorded units.
            pupil_centre: (2,) in recorded units.

        Raises:
            NeuralModelError: for inputs that the session did not record, for numbers that are not
                finite except in padding, and for a recorded frame after padding.
        """
        pixels = _frame(frame, self.facts)
        parts = {"frame": pixels}
        parts |= _signals(self.facts, behaviour, pupil_centre, (), pixels.device)
        floats = {k: v for k, v in parts.items() if v.is_floating_point() and v.numel()}
        if any(bool(values.isnan().all()) for values in floats.values()):
            self._ended, self.count = True, self.count + 1
            return None
        if self._ended:
            raise NeuralModelError(
                f"frame {self.count} follows a frame with an input of only NaN, which ends a "
                "trial; begin a new stream, or interpolate unknown values"
            )
        for name, values in floats.items():
            if not bool(values.isfinite().all()):
                raise NeuralModelError(
                    f"{name} is not finite at frame {self.count}; interpolate unknown values"
                )
        _check_range(pixels, f"frame {self.count}", dark=self._bright)
        self._bright = self._bright or pixels.dtype == torch.uint8 or bool((pixels > 1).any())
        self.count += 1
        return self._standardised(pixels, parts.get("behaviour"), parts.get("pupil_centre"))

    def _standardised(
        self, pixels: Tensor, behaviour: Tensor | None, centre: Tensor | None
    ) -> RecordedInputs:
        def moved(values: Tensor) -> Tensor:
            return values.to(self.like.device, self.like.dtype, non_blocking=True)

        facts = self.facts
        if behaviour is not None:
            behaviour = moved(facts.standardised_behaviour(behaviour)[None, None])
        if centre is not None:
            centre = moved(facts.standardised_pupil(centre)[None, None])
        return RecordedInputs(
            moved(facts.standardised_video(pixels)[None, None, None]),
            behaviour if facts.behaviour_channels else None,
            centre,
            torch.ones(1, 1, dtype=torch.bool),
        )


def check_rate(frames_per_second: float, facts: SessionFacts) -> None:
    """Refuse a frame rate that is not the session's.

    Raises:
        NeuralModelError: if the rates differ; the message names both.
    """
    if not math.isclose(frames_per_second, facts.frames_per_second, rel_tol=RATE_TOLERANCE):
        raise NeuralModelError(
            f"frames_per_second is {frames_per_second:g}, but session {facts.name!r} has "
            f"{facts.frames_per_second:g} frames per second; resample video and behaviour to "
            f"{facts.frames_per_second:g} frames per second"
        )


def _pixels(video: Array, facts: SessionFacts) -> Tensor:
    """Return the video as (B, 1, T, H, W), uint8 or float32."""
    given = _tensor(video, "video")
    pixels = given[:, None] if given.ndim == 4 else given
    height, width = facts.frame_size
    if pixels.ndim != 5 or pixels.shape[1] != 1 or tuple(pixels.shape[3:]) != (height, width):
        raise NeuralModelError(
            f"video has shape {tuple(given.shape)}; session {facts.name!r} needs (B, T, H, W) or "
            f"(B, 1, T, H, W) with H = {height} and W = {width}"
        )
    return _numbers_of(pixels)


def _frame(frame: Array, facts: SessionFacts) -> Tensor:
    """Return the frame as (H, W), uint8 or float32."""
    pixels = _tensor(frame, "frame")
    if tuple(pixels.shape) != tuple(facts.frame_size):
        height, width = facts.frame_size
        raise NeuralModelError(
            f"frame has shape {tuple(pixels.shape)}; session {facts.name!r} needs (H, W) = "
            f"({height}, {width})"
        )
    return _numbers_of(pixels)


def _numbers_of(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.bool:
        raise NeuralModelError(
            "video is boolean; pixels must range from 0 to 255: give video * np.uint8(255)"
        )
    return pixels if pixels.dtype == torch.uint8 else pixels.float()


def _check_range(pixels: Float[Tensor, "*dims"], where: str, *, dark: bool = False) -> None:
    """Raise an error for pixels outside [0, 255].

    Unless ``dark`` is true, raise an error also for floating-point pixels whose maximum is above 0
    and at most 1, since these were probably scaled to [0, 1].
    """
    if pixels.dtype == torch.uint8 or not pixels.numel():
        return
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 255:
        raise NeuralModelError(
            f"{where} has values from {low:g} to {high:g}; give pixels from 0 to 255, as they "
            "were shown and not standardised"
        )
    if 0 < high <= 1 and not dark:
        raise NeuralModelError(
            f"{where} has values up to {high:g}; pixels must range from 0 to 255: give video * 255 "
            "if it is scaled to [0, 1], or uint8 if its frames really are this dark"
        )


def _signals(
    facts: SessionFacts,
    behaviour: Array | None,
    pupil_centre: Array | None,
    expected: tuple[int, ...],
    device: torch.device,
) -> dict[str, Tensor]:
    """Check behaviour and pupil centre. Return those that are not None in a dictionary by name.

    Their leading axes must have the lengths ``expected``: (B, T), or () for a single frame.
    """
    parts = {}
    if behaviour is not None and facts.recorded_channels != 0:
        parts["behaviour"] = _behaviour(behaviour, facts, expected).to(device)
    elif behaviour is not None and _tensor(behaviour, "behaviour").numel():
        raise NeuralModelError(
            f"session {facts.name!r} was recorded without behaviour; omit the argument behaviour"
        )
    if pupil_centre is not None:
        parts["pupil_centre"] = _pupil(pupil_centre, facts, expected).to(device)
    return parts


def _behaviour(behaviour: Array, facts: SessionFacts, expected: tuple[int, ...]) -> Tensor:
    """Return the behaviour as (B, T, K) or (K,), with all recorded channels."""
    given = _tensor(behaviour, "behaviour").float()
    exact, least = facts.recorded_channels, max(facts.behaviour_channels, default=-1) + 1
    fits = given.ndim == len(expected) + 1 and tuple(given.shape[:-1]) == expected
    if not fits or given.shape[-1] < least or exact not in (None, given.shape[-1]):
        axes = "(B, T, K)" if expected else "(K,)"
        sizes = ", ".join(map(str, (*expected, f"at least {least}" if exact is None else exact)))
        raise NeuralModelError(
            f"behaviour has shape {tuple(given.shape)}; session {facts.name!r} needs {axes} = "
            f"({sizes}), with all recorded channels"
        )
    return given


def _pupil(centre: Array, facts: SessionFacts, expected: tuple[int, ...]) -> Tensor:
    if facts.pupil_mean is None:
        raise NeuralModelError(
            f"session {facts.name!r} was trained without the pupil's centre; omit the argument "
            "pupil_centre"
        )
    given = _tensor(centre, "pupil_centre").float()
    if tuple(given.shape) != (*expected, 2):
        axes = "(B, T, 2) = " if expected else ""
        raise NeuralModelError(
            f"pupil_centre has shape {tuple(given.shape)}; it must be {axes}{(*expected, 2)}"
        )
    return given


def _tensor(values: Any, name: str) -> Tensor:
    """Return a numeric array as a tensor.

    Read-only arrays, arrays with negative strides and big-endian arrays are copied first, since
    torch does not read them.
    """
    try:
        if isinstance(values, Tensor):
            given = values
        else:
            array = np.asarray(values)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            given = torch.from_numpy(np.require(array, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise NeuralModelError(f"{name} is not an array of numbers: {error}") from None
    if given.is_complex():
        raise NeuralModelError(f"{name} is complex; give real numbers")
    return given


def _recorded_frames(values: Tensor) -> Int[Tensor, " B"]:
    """Return, for each trial of ``values`` (B, T, n), the number of frames before its padding.

    Frames at the end of a trial that consist only of NaN are padding.
    """
    if not values.is_floating_point() or not values.shape[2]:
        return torch.full((len(values),), values.shape[1], device=values.device)
    there = ~values.isnan().all(2)
    return (there.flip(1).cumsum(1) > 0).sum(1)


def _check_finite(name: str, values: Tensor, recorded: Tensor, first_trial: int) -> None:
    """Refuse values (B, T, n) that are not finite in a recorded frame, and trials of only NaN."""
    if not values.is_floating_point() or not values.numel():
        return
    empty = values.isnan().flatten(1).all(1)
    if empty.any():
        raise NeuralModelError(
            f"{name} of trial {first_trial + int(empty.int().argmax())} consists only of NaN; "
            "leave " + ("the trial out" if name == "video" else f"{name} out")
        )
    wrong = ~values.isfinite().all(2) & recorded
    if wrong.any():
        trial, frame = (int(place) for place in wrong.nonzero()[0])
        raise NeuralModelError(
            f"{name} of trial {first_trial + trial} is not finite at frame {frame} of "
            f"{values.shape[1]}; only NaN frames at the end of a trial are padding, so interpolate "
            "earlier frames"
        )
