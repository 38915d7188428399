"""Stimuli joined on one clock and cut into trials."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.nwb.frame_clock import frame_ends
from data_prep.nwb.stimuli import ShownFrames
from data_prep.nwb.stimulus_trials import cut_by_table, cut_evenly, join
from ssl_vivit.errors import DataError


def shown(onsets, positions=None, name="a"):
    onsets = np.asarray(onsets, float)
    positions = np.arange(len(onsets)) if positions is None else np.asarray(positions)
    return ShownFrames(name, onsets, frame_ends(onsets), positions, [])


def positions(trials):
    return [trial.position.tolist() for trial in trials]


def test_rows_take_the_frames_that_begin_in_them():
    timeline = join([shown(np.arange(20) / 10)], None)
    starts, stops = np.array([0.0, 0.55, 1.0, 7.0]), np.array([0.5, 0.95, 1.3, 8.0])
    trials, left_out = cut_by_table(timeline, starts, stops, None)
    assert positions(trials) == [[0, 1, 2, 3, 4], [6, 7, 8, 9], [10, 11, 12]]
    assert [trial.row for trial in trials] == [0, 1, 2]
    np.testing.assert_allclose(trials[1].edges, [0.6, 0.7, 0.8, 0.9, 1.0])
    assert left_out == {"rows show fewer than two frames of the stimulus": 1}


def test_a_row_with_one_picture_has_as_many_bins_as_fit():
    timeline = join([shown([0.0, 1.0, 2.0])], 4.0)
    trials, left_out = cut_by_table(timeline, np.array([1.0]), np.array([2.0]), 4.0)
    assert positions(trials) == [[1, 1, 1, 1]]
    assert not left_out


def test_a_row_across_a_pause_is_left_out():
    timeline = join([shown([0, 0.1, 0.2, 0.3, 1.3, 1.4])], None)
    trials, left_out = cut_by_table(timeline, np.array([0.0, 0.0]), np.array([0.4, 2.0]), None)
    assert positions(trials) == [[0, 1, 2, 3]]
    assert left_out == {"rows contain a pause between frames": 1}


def test_a_pause_before_the_last_frame_of_a_row_counts():
    timeline = join([shown([0, 0.1, 0.2, 0.3, 1.3, 1.4])], None)
    trials, left_out = cut_by_table(timeline, np.array([0.0]), np.array([1.35]), None)
    assert trials == []
    assert left_out == {"rows contain a pause between frames": 1}


def test_rows_that_share_frames_are_refused():
    timeline = join([shown(np.arange(40) / 10)], None)
    starts, stops = np.array([2.0, 0.0, 1.0]), np.array([3.0, 1.0, 2.5])
    with pytest.raises(DataError, match=r"rows 2 and 0 of the trials overlap: 1 to 2.5 s and 2 to"):
        cut_by_table(timeline, starts, stops, None)
    trials, _ = cut_by_table(timeline, starts, np.array([3.0, 1.0, 2.0]), None)
    assert len(trials) == 3


def test_trials_shorter_than_a_frame_are_refused():
    with pytest.raises(DataError, match=r"frames last 33\.3 s, .* check that times are in seconds"):
        cut_evenly(join([shown(np.arange(90) * 33.3)], None), 10, None)
    with pytest.raises(DataError, match=r"longer than --trial-seconds 0\.01"):
        cut_evenly(join([shown(np.arange(90) / 30)], None), 0.01, None)


def test_cuts_at_pauses_restarts_and_other_stimuli():
    a = shown(np.arange(12) / 10, [*range(6), *range(6)], "a")
    b = shown(1.2 + np.arange(10) / 10, name="b")
    trials, _ = cut_evenly(join([a, b], None), 0.5, None)
    # movie a is 0.6 s long: one piece; b is 1 s long: two.
    assert positions(trials) == [[*range(6)], [*range(6)], [*range(5)], [*range(5, 10)]]
    assert [trial.stimulus.tolist() for trial in trials[1:3]] == [[0] * 6, [1] * 5]
    np.testing.assert_allclose(trials[1].edges[-1], 1.2)


def test_images_in_random_order_do_not_count_as_a_restarted_movie():
    order = np.random.default_rng(0).permutation(40)
    trials, _ = cut_evenly(join([shown(np.arange(40) / 4, order)], None), 5.0, None)
    assert positions(trials) == [order[:20].tolist(), order[20:].tolist()]


def test_every_frame_is_used_and_repeats_are_cut_alike():
    trials, _ = cut_evenly(
        join([shown(np.arange(94) / 10, [*range(47), *range(47)])], None), 1.0, None
    )
    assert [k for trial in positions(trials) for k in trial] == [*range(47), *range(47)]
    assert positions(trials)[:5] == positions(trials)[5:]
    assert {len(trial.position) for trial in trials} == {9, 10}


def test_bins_of_another_rate():
    trials, _ = cut_evenly(join([shown(3 + np.arange(10) / 10)], 20.0), 10.0, 20.0)
    assert positions(trials) == [[k // 2 for k in range(20)]]
    np.testing.assert_array_equal(trials[0].edges, 3 + np.arange(21) / 20)


def test_stimuli_shown_at_once_are_refused():
    onsets = np.arange(10) / 10
    for other in (onsets + 0.05, onsets, onsets[4:8] + 0.0001):
        with pytest.raises(DataError, match="overlap at"):
            join([shown(onsets), shown(other, name="b")], None)


def test_stimuli_of_other_rates_need_a_rate():
    both = [shown(np.arange(10) / 10), shown(5 + np.arange(10) / 30, name="b")]
    with pytest.raises(
        DataError, match=r"a at 10 Hz, b at 30 Hz\); set the rate of bins by --rate"
    ):
        join(both, None)
    # Even bins of another rate hold every stimulus's frame.
    trials, _ = cut_evenly(join(both, 30.0), 10.0, 30.0)
    assert positions(trials) == [[k // 3 for k in range(30)], [*range(10)]]


def test_grey_stays_with_the_picture_before_it():
    """Grey gaps of varying length do not change how repeats are cut into trials."""
    repeats = [[*range(10), -1, -1], [*range(10), -1, -1, -1], [*range(10)]]
    order = [k for repeat in repeats for k in repeat]
    trials, _ = cut_evenly(join([shown(np.arange(35) / 10, order)], None), 0.5, None)
    halves = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]
    assert positions(trials) == [
        halves[0], [*halves[1], -1, -1], halves[0], [*halves[1], -1, -1, -1], *halves,
    ]  # fmt: skip
    alone = join([shown(np.arange(5) / 10, [-1] * 5)], None)
    assert cut_evenly(alone, 1.0, None) == ([], {})


def test_single_frames_are_left_out_and_counted():
    trials, left_out = cut_evenly(join([shown([0, 0.1, 0.2, 5, 9, 9.1])], None), 1.0, None)
    assert positions(trials) == [[0, 1, 2], [4, 5]]
    assert left_out == {"pieces of the stimulus are a single frame": 1}
