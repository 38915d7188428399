"""Split trials into training, validation and test tiers that share no movie."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ssl_vivit.errors import DataError

# Two trials show one movie if they share this fraction of the shorter trial's frames. Repeats of a
# movie may have dropped frames or another start.
SAME_MOVIE = 0.5


def frame_prints(video: np.ndarray) -> frozenset[bytes]:
    """Return one digest for each distinct frame of a trial's video; blank frames are left out.

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

    Two trials show one movie if they share half of the distinct frames of the shorter trial. The
    relation is transitive: two trials that each share a movie with a third trial show one movie.
    """
    first: dict[frozenset[bytes], int] = {}
    trials = [first.setdefault(frames, number) for number, frames in enumerate(prints)]
    # `above` maps a trial to an earlier trial of its movie (union-find). The first trial of a movie
    # maps to itself.
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
    """Assign trials to tiers so that no movie of the training trials is shown in another tier.

    Movies that were shown repeatedly go to ``live_test_main`` and ``oracle`` alternately, the most
    repeated first, if at least half of the trials remain for training. Further movies, in the order
    of their digests, are then added to these tiers, up to the fraction ``held_out / 2`` of all
    trials in each tier. The remaining trials are ``train``.

    Args:
        prints: digests of each trial's frames, see :func:`frame_prints`.
        held_out: fraction of the trials that are not for training, in (0, 1).

    Returns:
        A tier for each trial.

    Raises:
        DataError: if fewer than three different movies were shown.
    """
    of_trial = movies(prints)
    sizes = Counter(of_trial)
    if len(sizes) < 3:
        raise DataError(
            f"the trials show {len(sizes)} different movie{'s' * (len(sizes) > 1)}, but at least 3 "
            "are needed: one each for training, validation and test; lower --trial-seconds to cut "
            "the stimulus into more movies, give further stimuli by --stimulus, or give a column "
            "with the tier of each trial by --tiers COLUMN"
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
            # No movie was small enough: use the smallest, to leave most trials for training.
            tiers[[movie for movie in ordered if movie not in tiers][-1]] = tier
    return [tiers.get(movie, "train") for movie in of_trial]


def _root(above: dict[int, int], number: int) -> int:
    while above[number] != number:
        above[number] = above[above[number]]
        number = above[number]
    return number


def _digest(frame: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(frame).tobytes(), digest_size=12).digest()
