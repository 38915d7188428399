"""No movie is in two parts of a split, with repeated, dropped and shifted frames."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_prep.nwb.movie_split import frame_prints, movies, split_movies
from ssl_vivit.errors import DataError


def clips(count, frames=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, 4, 4), dtype=np.uint8)


def prints_of(shown, pool):
    return [frame_prints(pool[k]) for k in shown]


def test_repeats_with_dropped_or_shifted_frames_are_the_same_movie():
    pool = clips(3)
    long = np.concatenate(pool[:2])
    videos = [
        pool[0],
        pool[1],
        np.delete(pool[0], 7, axis=0),
        long[6:26],  # 14 frames of clip 0
        pool[2],
        np.concatenate([pool[2][:5], pool[1][14:]]),  # 5 of clip 2's frames, 6 of clip 1's
    ]
    assert movies(map(frame_prints, videos)) == [0, 1, 0, 0, 4, 1]


def test_movies_that_differ_in_their_last_row_are_two():
    one, two = np.repeat(clips(1), 2, axis=0)
    two[:, -1] = 255 - two[:, -1]
    assert movies(map(frame_prints, (one, two))) == [0, 1]


def test_blank_frames_tie_nothing():
    pool = clips(2)
    grey = np.full((30, 4, 4), 128, np.uint8)
    videos = [np.concatenate([grey, clip]) for clip in pool] + [grey, grey.copy()]
    assert movies(map(frame_prints, videos)) == [0, 1, 2, 2]


@pytest.mark.parametrize("seed", range(20))
def test_train_shares_no_movie(seed):
    rng = np.random.default_rng(seed)
    pool = clips(12, seed=seed)
    shown = rng.integers(0, 12, 40)
    prints = prints_of(shown, pool)
    tiers = split_movies(prints, 0.2)
    by_tier = {t: {int(k) for k, u in zip(shown, tiers, strict=True) if u == t} for t in set(tiers)}
    assert set(by_tier) == {"train", "oracle", "live_test_main"}
    assert sum(map(len, by_tier.values())) == len(set(shown.tolist()))


def test_all_repeats_are_held_out_where_enough_is_left():
    shown = [*range(10), 10, 10, 10, 10, 11, 11]
    tiers = split_movies(prints_of(shown, clips(12)), 0.1)
    assert tiers == ["train"] * 10 + ["live_test_main"] * 4 + ["oracle"] * 2


def test_a_share_is_held_out_where_everything_repeats():
    shown = [k for k in range(10) for _ in range(10)]
    tiers = split_movies(prints_of(shown, clips(10)), 0.2)
    assert Counter(tiers) == {"train": 80, "oracle": 10, "live_test_main": 10}


def test_two_movies_cannot_be_split():
    with pytest.raises(DataError, match=r"show 2 different movies.*--trial-seconds"):
        split_movies(prints_of([0, 1, 0, 1], clips(2)), 0.2)
