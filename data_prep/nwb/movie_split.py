"""Training, validation and test trials that share no movie."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ssl_vivit.errors import DataError

# Two trials show the same movie if they share this part of the shorter one's frames: a dropped
# frame or another start must not make a repeat look new.
SAME_MOVIE = 0.5


def frame_prints(video: np.ndarray) -> frozenset[bytes]:
    """Return one digest for each distinct frame of a trial's video, without blank frames.

    A frame is blank if all its pixels are equal.

    Args:
        video: frames of the trial, (T, H, W) uint8.

    Returns:
        The digests. If all frames are blank, a single digest of the whole video.
    """
    shown = [frame for frame in video if frame.min() != frame.max()]
    return frozenset(_digest(frame) for frame in shown or [video])


def movies(prints: Iterable[frozenset[bytes]]) -> list[int]:
    """Return the movie of each trial, as the number of the first trial that shows it.

    Trials that share half of the shorter one's different frames show the same movie, and so do
    those that a third trial ties together.
    """
    first: dict[frozenset[bytes], int] = {}
    trials = [first.setdefault(frames, number) for number, frames in enumerate(prints)]
    # `above` leads from a trial to an earlier one of the same movie, at last to the first.
    above = {number: number for number in first.values()}
    holders: dict[bytes, list[int]] = {}
    sizes = {number: len(frames) for frames, number in first.items()}
    for frames, number in first.items():
        shared = Counter(other for frame in frames for other in holders.get(frame, ()))
        for other, count in shared.items():
            if count >= SAME_MOVIE * min(sizes[other], len(frames)):
                a, b = sorted((_root(above, number), _root(above, other)))
                above[b] = a
        for frame in frames:
            holders.setdefault(frame, []).append(number)
    return [_root(above, number) for number in trials]


def split_movies(prints: list[frozenset[bytes]], held_out: float) -> list[str]:
    """Tiers in which no movie of training trials is shown.

    Movies that were shown repeatedly go to ``live_test_main`` and ``oracle`` in turn, the most
    repeated first: all of them where at least half of the trials is left for training. Then, and
    where most of a session repeats, each of the two is filled with what fits into half of
    ``held_out`` of the trials, in the order of digests. What is left is ``train``.

    Args:
        prints: of each trial, see :func:`frame_prints`.
        held_out: share of the trials that are not for training, in (0, 1).

    Returns:
        A tier for each trial.

    Raises:
        DataError: if fewer than three different movies were shown.
    """
    of_trial = movies(prints)
    sizes = Counter(of_trial)
    if len(sizes) < 3:
        raise DataError(
            f"the trials show {len(sizes)} different movie{'s' * (len(sizes) > 1)}, and at least 3 "
            "are needed: one each for training, validation and test; lower --trial-seconds to cut "
            "more movies out of the stimulus, name more of --stimulus, or name a column that gives "
            "the tier of each trial by --tiers COLUMN"
        )
    ordered = sorted(sizes, key=lambda movie: (-sizes[movie], min(prints[movie])))
    room = held_out / 2 * len(prints)
    repeated = sum(count for count in sizes.values() if count > 1)
    all_repeats = repeated <= len(prints) / 2
    tiers: dict[int, str] = {}
    used = {"live_test_main": 0, "oracle": 0}
    for movie in ordered:
        tier = min(used, key=lambda name: used[name])
        whole = all_repeats and sizes[movie] > 1
        if whole or used[tier] + sizes[movie] <= room:
            tiers[movie] = tier
            used[tier] += sizes[movie]
    for tier, count in used.items():
        if not count:
            # Nothing was small enough: the smallest, so that most is left to train on.
            tiers[[movie for movie in ordered if movie not in tiers][-1]] = tier
    return [tiers.get(movie, "train") for movie in of_trial]


def _root(above: dict[int, int], number: int) -> int:
    while above[number] != number:
        above[number] = above[above[number]]
        number = above[number]
    return number


def _digest(frame: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(frame).tobytes(), digest_size=12).digest()
