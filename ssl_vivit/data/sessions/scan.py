"""One pass over a session's trials, which finds errors, lengths and statistics.

All facts that need every number of a session are computed in this pass: lengths without padding,
statistics, and hashes of movies. Only one trial is in memory at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_vivit.data.sessions.layout import BEHAVIOUR, PUPIL, RESPONSES, TIER_NAMES, UNIT_IDS, VIDEOS
from ssl_vivit.errors import SessionError
from ssl_vivit.files import refuse_pipe
from ssl_vivit.moments import Moments


@dataclass(frozen=True)
class TrialFacts:
    """Length, hash and statistics of one trial.

    Moments are the count, the mean and the sum of squared deviations of values, over all frames of
    the trial without padding.

    Args:
        length: number of frames without padding. The padding consists of the last frames in which
            at least one file contains only NaN.
        cut: number of frames after ``length`` for which responses were recorded. They are not used,
            because another file of the trial ends earlier.
        content: hash of the movie.
        video: moments of all pixels, on the scale [0, 255].
        brightest: largest pixel value.
        behaviour: moments of each behaviour channel; None if absent.
        pupil: moments of x and y of the pupil's centre; None if absent.
        responses: moments of each neuron's known responses.
        counts: whether all known responses are counts (0, 1, 2, …).
        unknown: number of NaN responses in the first ``length`` frames.
        silent: whether all known responses are 0.
    """

    length: int
    cut: int
    content: str
    video: Moments
    brightest: float
    behaviour: Moments | None
    pupil: Moments | None
    responses: Moments
    counts: bool
    unknown: int
    silent: bool


def open_array(path: Path, dimensions: int) -> np.ndarray:
    """Open a .npy file as a memory-mapped array.

    Raises:
        SessionError: if the file is missing or damaged, or does not contain a non-empty numeric
            array with the given number of dimensions.
    """
    array = map_array(path, f"add the file, or set the trial's tier in {TIER_NAMES} to 'none'")
    if array.ndim != dimensions or array.dtype.kind not in "uif" or array.size == 0:
        raise SessionError(
            f"{path} contains {array.dtype} of shape {_shape(array)}; it must contain a non-empty "
            f"numeric array with {dimensions} dimensions, time last"
        )
    return array


def map_array(path: Path, needed: str) -> np.ndarray:
    """Map a .npy file into memory without reading its data.

    Args:
        path: the file.
        needed: end of the message if the file is missing: why it is needed, or what to do.

    Raises:
        SessionError: if the file is missing or damaged, or shorter than its header says.
    """
    try:
        refuse_pipe(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{path} is missing; {needed}") from None
    except Exception as error:
        # NumPy parses the header as Python, which may raise any error. NumPy treats unknown files
        # as pickles, and its message advises to allow them.
        why = "it contains objects or has another format" if "pickle" in str(error) else str(error)
        raise SessionError(f"{path} is not a readable .npy file of numbers: {why}") from None


def scan_trial(
    data: Path, trial: int, *, neurons: int, behaviour: bool, pupil: bool
) -> TrialFacts | None:
    """Read and check one trial.

    Args:
        data: the session's ``data`` folder.
        trial: number of the trial.
        neurons: expected number of neurons.
        behaviour: whether the trial must have a file in ``behavior``.
        pupil: whether the trial must have a file in ``pupil_center``.

    Returns:
        The ``TrialFacts`` of the trial, or None if all responses are NaN.

    Raises:
        SessionError: if a file is missing or invalid; the message names the file.
    """
    paths = {name: data / name / f"{trial}.npy" for name in (VIDEOS, RESPONSES, BEHAVIOUR, PUPIL)}
    video = open_array(paths[VIDEOS], 3)
    responses = open_array(paths[RESPONSES], 2)
    others = {
        name: open_array(paths[name], 2)
        for name, there in ((BEHAVIOUR, behaviour), (PUPIL, pupil))
        if there
    }
    frames = video.shape[-1]
    for name, array in {RESPONSES: responses, **others}.items():
        if array.shape[-1] != frames:
            raise SessionError(
                f"{paths[name]} has {array.shape[-1]} frames, but the video of trial {trial} has "
                f"{frames}; resample both to the same frame times"
            )
    if responses.shape[0] != neurons:
        raise SessionError(
            f"{paths[RESPONSES]} has {responses.shape[0]} neurons, but {UNIT_IDS} "
            f"has {neurons}; all trials must have the same neurons"
        )
    if PUPIL in others and others[PUPIL].shape[0] != 2:
        raise SessionError(
            f"{paths[PUPIL]} has {others[PUPIL].shape[0]} rows; it must have 2 rows, x and y"
        )

    lengths = {
        name: recorded_frames(array.reshape(-1, frames))
        for name, array in {VIDEOS: video, RESPONSES: responses, **others}.items()
    }
    for name in (VIDEOS, *others):
        if lengths[name] == 0:
            raise SessionError(f"{paths[name]} contains only NaN; set the trial's tier to 'none'")
    if lengths[RESPONSES] == 0:
        return None
    length = min(lengths.values())
    video, responses = video[..., :length], responses[:, :length]
    _check_pixels(video, paths[VIDEOS])
    known = ~np.isnan(responses)
    _check_finite(np.where(known, responses, 0), paths[RESPONSES], "write unknown responses as NaN")
    moments = {}
    for name, array in others.items():
        values = array[:, :length]
        _check_finite(values, paths[name], "interpolate the value")
        moments[name] = Moments.of(values, axis=1)
    numbers = responses[known]
    return TrialFacts(
        length=length,
        cut=lengths[RESPONSES] - length,
        content=movie_name(video),
        video=Moments.of_pixels(video),
        brightest=float(video.max()),
        behaviour=moments.get(BEHAVIOUR),
        pupil=moments.get(PUPIL),
        responses=Moments.of(responses, axis=1),
        counts=bool((numbers >= 0).all() and (numbers == np.floor(numbers)).all()),
        unknown=responses.size - numbers.size,
        silent=not numbers.any(),
    )


def movie_name(video: np.ndarray) -> str:
    """Return a hash of a movie's pixels.

    uint8 pixels and floats with equal integer values give equal hashes.

    Args:
        video: (H, W, T) pixels, which must be finite.
    """
    if video.dtype != np.uint8:
        rounded = video.astype(np.uint8)
        video = rounded if (rounded == video).all() else video.astype(np.float32)
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(f"{video.dtype} {_shape(video)}".encode())
    hashed.update(np.ascontiguousarray(video).data)
    return hashed.hexdigest()


def recorded_frames(array: np.ndarray) -> int:
    """Return the number of frames up to and including the last frame that is not all NaN.

    Args:
        array: (values, frames), such as (neurons, frames).
    """
    if array.dtype.kind != "f":
        return array.shape[1]
    there = ~np.isnan(array).all(axis=0)
    return int(there.nonzero()[0][-1]) + 1 if there.any() else 0


def _check_pixels(video: np.ndarray, path: Path) -> None:
    if video.dtype == np.uint8:
        return
    _check_finite(video.reshape(-1, video.shape[-1]), path, "write finite pixels")
    low, high = float(video.min()), float(video.max())
    if low < 0 or high > 255:
        raise SessionError(
            f"{path} has values from {low:g} to {high:g}; pixels must range from 0 to 255 and must "
            "not be standardised"
        )


def _check_finite(values: np.ndarray, path: Path, fix: str) -> None:
    """Raise SessionError if an array (values, frames) has values that are not finite in float32."""
    with np.errstate(over="ignore"):
        finite = np.all(np.isfinite(values.astype(np.float32, copy=False)), axis=0)
    if not finite.all():
        raise SessionError(
            f"{path} is not finite at frame {int(np.argmin(finite))} of {len(finite)}; {fix}, or "
            f"set the trial's tier to 'none'"
        )


def _shape(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape)) or "scalar"
