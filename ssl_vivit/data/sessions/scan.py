"""One pass over a session's trials, which finds errors, lengths and statistics.

Everything that needs all numbers of a session (lengths without padding, statistics, which movies
are the same) is taken from this pass, one trial in memory at a time.
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
    """Facts of a trial that the pass keeps.

    Args:
        length: frames without the padding, which is the tail where a part is NaN throughout.
        cut: frames with known responses that the padding of another part cuts off.
        content: names the movie; equal for equal frames.
        video: moments of all pixels, in units of [0, 255].
        brightest: the largest pixel.
        behaviour: moments of each channel; None if absent.
        pupil: moments of x and y; None if absent.
        responses: moments of each neuron's known responses.
        counts: whether all known responses are counts: 0, 1, 2, …
        unknown: responses that are NaN within the length.
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
    """A memory-mapped .npy file.

    Raises:
        SessionError: if it is missing, damaged, or not of that many dimensions of numbers.
    """
    array = map_array(path, f"every trial needs one, or tier 'none' in {TIER_NAMES}")
    if array.ndim != dimensions or array.dtype.kind not in "uif" or array.size == 0:
        raise SessionError(
            f"{path} holds {array.dtype} {_shape(array)}; expected numbers of {dimensions} "
            f"dimensions ending with time, none of them empty"
        )
    return array


def map_array(path: Path, needed: str) -> np.ndarray:
    """Map a .npy file, of which nothing is read yet.

    Args:
        path: the file.
        needed: what needs it, for the message where it is missing.

    Raises:
        SessionError: if it is missing, damaged, or claims more than the file holds.
    """
    try:
        refuse_pipe(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SessionError(f"{path} is missing; {needed}") from None
    except Exception as error:
        # NumPy reads the header as Python, and raises whatever that does. It takes what it does not
        # know for a pickle, and advises to trust it.
        why = "it holds objects or is of another kind" if "pickle" in str(error) else str(error)
        raise SessionError(f"{path} is no readable .npy file of numbers: {why}") from None


def scan_trial(
    data: Path, trial: int, *, neurons: int, behaviour: bool, pupil: bool
) -> TrialFacts | None:
    """Read and check one trial; None if all of its responses are NaN, which are then withheld.

    Args:
        data: the session's ``data`` folder.
        trial: its number.
        neurons: how many there must be.
        behaviour: whether ``behavior`` is to be there.
        pupil: whether ``pupil_center`` is to be there.

    Raises:
        SessionError: that names the file and what is wrong with it.
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
                f"{paths[name]} has {array.shape[-1]} frames, the video of trial {trial} has "
                f"{frames}; bring both to the same clock"
            )
    if responses.shape[0] != neurons:
        raise SessionError(
            f"{paths[RESPONSES]} has {responses.shape[0]} neurons, {UNIT_IDS} "
            f"names {neurons}; all trials need the same neurons"
        )
    if PUPIL in others and others[PUPIL].shape[0] != 2:
        raise SessionError(f"{paths[PUPIL]} has {others[PUPIL].shape[0]} rows; expected x and y")

    lengths = {
        name: recorded_frames(array.reshape(-1, frames))
        for name, array in {VIDEOS: video, RESPONSES: responses, **others}.items()
    }
    for name in (VIDEOS, *others):
        if lengths[name] == 0:
            raise SessionError(f"{paths[name]} is NaN throughout; set the trial's tier to 'none'")
    if lengths[RESPONSES] == 0:
        return None
    length = min(lengths.values())
    video, responses = video[..., :length], responses[:, :length]
    _check_pixels(video, paths[VIDEOS])
    known = ~np.isnan(responses)
    _check_finite(np.where(known, responses, 0), paths[RESPONSES], "mark unknown responses by NaN")
    moments = {}
    for name, array in others.items():
        values = array[:, :length]
        _check_finite(values, paths[name], "interpolate it")
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
    """Return a hash of a movie's pixels; uint8 and floats of whole grey values give equal hashes.

    Args:
        video: (H, W, T), finite.
    """
    if video.dtype != np.uint8:
        rounded = video.astype(np.uint8)
        video = rounded if (rounded == video).all() else video.astype(np.float32)
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(f"{video.dtype} {_shape(video)}".encode())
    hashed.update(np.ascontiguousarray(video).data)
    return hashed.hexdigest()


def recorded_frames(array: np.ndarray) -> int:
    """Frames up to the last that is not NaN throughout; (rows, frames)."""
    if array.dtype.kind != "f":
        return array.shape[1]
    there = ~np.isnan(array).all(axis=0)
    return int(there.nonzero()[0][-1]) + 1 if there.any() else 0


def _check_pixels(video: np.ndarray, path: Path) -> None:
    if video.dtype == np.uint8:
        return
    _check_finite(video.reshape(-1, video.shape[-1]), path, "fix the video")
    low, high = float(video.min()), float(video.max())
    if low < 0 or high > 255:
        raise SessionError(
            f"{path} has values from {low:g} to {high:g}; videos must be stored as pixels from 0 "
            "to 255, without standardisation, which happens when they are loaded"
        )


def _check_finite(values: np.ndarray, path: Path, mend: str) -> None:
    """Refuse (rows, frames) with a number that float32, in which all is read, does not hold."""
    with np.errstate(over="ignore"):
        finite = np.all(np.isfinite(values.astype(np.float32, copy=False)), axis=0)
    if not finite.all():
        raise SessionError(
            f"{path} is not finite at frame {int(np.argmin(finite))} of {len(finite)}; {mend}, or "
            f"set the trial's tier to 'none'"
        )


def _shape(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape)) or "scalar"
