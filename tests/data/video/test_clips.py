"""Clip sampling, compared with brute-force enumeration and with CVRL's description."""

from __future__ import annotations

import itertools
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.video.clips import (
    ClipConfig,
    clip_frames,
    draw_starts,
    even_starts,
    shortage,
    start_counts,
    timeline_length,
    too_short,
)
from ssl_vivit.errors import DataError


def videos(num_frames: list[int], fps: float = 25.0) -> SimpleNamespace:
    return SimpleNamespace(
        keys=[f"video_{i:05d}" for i in range(len(num_frames))],
        num_frames=np.array(num_frames),
        fps=np.full(len(num_frames), fps),
        times=lambda i: None,
    )


def draws(count: int, views: int, gap: str, n: int = 20_000) -> np.ndarray:
    rng = named_generator(0, "draws", count, views, gap)
    return np.stack([draw_starts(rng, count, views, gap) for _ in range(n)])


@pytest.mark.parametrize("views", [2, 3, 4])
def test_near_gaps_fall_linearly_between_any_two_views(views: int) -> None:
    count = 12
    starts = draws(count, views, "near")
    expected = np.arange(count - 1, 0, -1) / (count * (count - 1) / 2)
    for i, j in itertools.combinations(range(views), 2):
        gaps = np.abs(starts[:, i] - starts[:, j])
        share = np.bincount(gaps, minlength=count)[1:] / len(gaps)
        assert not (gaps == 0).any()
        # Four standard deviations of a share estimated from 20,000 draws.
        assert np.abs(share - expected).max() < 4 * np.sqrt(expected.max() / len(gaps))


def test_near_is_cvrls_gap_first_procedure() -> None:
    """CVRL draws the gap with a linear density, then the first start uniformly, then swaps at random."""
    count, n = 8, 20_000
    rng = np.random.default_rng(1)
    gaps = rng.choice(np.arange(1, count), size=n, p=np.arange(count - 1, 0, -1) / 28)
    first = (rng.random(n) * (count - gaps)).astype(int)
    pairs = np.stack([first, first + gaps], 1)
    swap = rng.random(n) < 0.5
    pairs[swap] = pairs[swap][:, ::-1]
    ours = draws(count, 2, "near")

    def histogram(p: np.ndarray) -> np.ndarray:
        return np.bincount(p[:, 0] * count + p[:, 1], minlength=count**2) / n

    assert np.abs(histogram(pairs) - histogram(ours)).max() < 4 * np.sqrt(2 / 56 / n)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_uniform_gaps_are_flat_and_starts_distinct(views: int) -> None:
    count = 10
    starts = draws(count, views, "uniform")
    assert all(len(set(row)) == views for row in starts.tolist())
    spread = starts.max(1) - starts.min(1)
    share = np.bincount(spread, minlength=count)[views - 1 :] / len(spread)
    expected = 1 / (count - views + 1)
    assert np.abs(share - expected).max() < 4 * np.sqrt(expected / len(spread))
    first_is_earliest = (starts[:, 0] == starts.min(1)).mean()
    assert abs(first_is_earliest - 1 / views) < 4 * np.sqrt(0.25 / len(spread))


@pytest.mark.parametrize("gap", ["near", "uniform"])
def test_the_tightest_fit_uses_every_start(gap: str) -> None:
    rng = named_generator(0)
    assert sorted(draw_starts(rng, 3, 3, gap)) == [0, 1, 2]
    assert draw_starts(rng, 1, 1, gap).tolist() == [0]


@pytest.mark.parametrize("source", [Fraction(25), Fraction(30000, 1001), Fraction(50), Fraction(7)])
@pytest.mark.parametrize("target", [Fraction(30), Fraction(25), Fraction(12), Fraction(25, 2)])
def test_frames_are_those_shown_at_the_time_and_never_later(
    source: Fraction, target: Fraction
) -> None:
    num_frames, config = 61, ClipConfig(num_frames=5, frame_stride=2, fps=float(target))
    steps = int(timeline_length(np.array([num_frames]), np.array([float(source)]), config.fps)[0])
    covered = sum(1 for k in range(1000) if k / target * source < num_frames)
    assert steps == covered
    starts = np.arange(steps - config.span + 1)
    frames = clip_frames(starts, config, float(source))
    assert frames.max() <= num_frames - 1
    for start, row in zip(starts.tolist(), frames.tolist(), strict=True):
        for j, frame in enumerate(row):
            time = Fraction(start + 2 * j) / target
            assert frame == int(time * source)
            assert Fraction(frame) / source <= time


def test_25_to_30_hz_repeats_every_fifth_frame() -> None:
    frames = clip_frames(np.array([0]), ClipConfig(num_frames=12, fps=30.0), 25.0)
    assert frames.tolist() == [[0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]]


def test_without_a_rate_the_stride_counts_frames() -> None:
    frames = clip_frames(np.array([3, 0]), ClipConfig(num_frames=3, frame_stride=4), 25.0)
    assert frames.tolist() == [[3, 7, 11], [0, 4, 8]]


def test_even_starts_reach_from_end_to_end() -> None:
    assert even_starts(113, 3).tolist() == [0, 56, 112]
    assert even_starts(113, 1).tolist() == [56]
    assert even_starts(4, 4).tolist() == [0, 1, 2, 3]


def test_counts_of_starts() -> None:
    config = ClipConfig(num_frames=16, frame_stride=2, views=2)
    assert start_counts(videos([128, 32]), config).tolist() == [98, 2]


@pytest.mark.parametrize(
    ("lengths", "config", "words"),
    [
        (
            [128, 60],
            ClipConfig(num_frames=128, views=1),
            ["video_00001 has 60 frames", "num_frames 128", "frame_stride 1", "needs 128"],
        ),
        ([60, 50, 128], ClipConfig(num_frames=64), ["video_00001 (one of 2", "50 frames"]),
        ([128], ClipConfig(num_frames=128), ["1 place", "--data.clip.views 2"]),
        ([18, 40], ClipConfig(num_frames=16, views=4), ["video_00000", "3 places", "views 4"]),
        (
            [60],
            ClipConfig(num_frames=76, fps=30.0),
            ["60 frames, 72 at --data.clip.fps 30", "needs 76 steps (2.5 s)"],
        ),
    ],
)
def test_videos_that_do_not_fit_are_named(
    lengths: list[int], config: ClipConfig, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        start_counts(videos(lengths), config)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_message_for_a_short_video_uses_one_unit() -> None:
    clip = ClipConfig(num_frames=16, frame_stride=2, views=1, fps=25.0)
    assert too_short(videos([33, 37], fps=30.0), clip) == {
        0: "has 33 frames at 30 frames/s (1.1 s); a clip of 16 frames at 12.5 frames/s spans 1.2 s "
        "and needs 37 frames"
    }
    several = ClipConfig(num_frames=5, frame_stride=2, views=2)
    assert too_short(videos([9, 10]), several) == {
        0: "has 9 frames; 2 clips of 5 frames with different starts at stride 2 need 10 frames"
    }
    times = np.array([0.0, 0.1, 0.2, 0.6, 1.0])
    assert shortage(5, 4.0, times, clip) == (
        "has 5 frames at a varying rate (1.4 s); a clip of 16 frames at 12.5 frames/s spans 1.2 s"
    )


@pytest.mark.parametrize("source", [10.0, 23.976, 25.0, 29.97, 30.0, 60.0])
@pytest.mark.parametrize("rate", [5.0, 12.5, 25.0, 29.97, 30.0])
def test_the_number_of_frames_that_a_clip_needs_is_the_least(source: float, rate: float) -> None:
    for length in range(2, 40):
        clip = ClipConfig(num_frames=length, views=1, fps=rate)
        needed = int(shortage(1, source, None, clip).split(" needs ")[1].split()[0])
        assert not too_short(videos([needed], fps=source), clip)
        assert too_short(videos([needed - 1], fps=source), clip)


def test_a_video_without_a_rate_is_refused_where_one_is_needed() -> None:
    unknown = videos([60], fps=float("nan"))
    assert start_counts(unknown, ClipConfig(num_frames=16)).tolist() == [45]
    assert not too_short(unknown, ClipConfig(num_frames=16))
    for ask in (start_counts, too_short):
        with pytest.raises(DataError, match=r"video_00000 has no frame rate.*--data\.clip\.fps 30"):
            ask(unknown, ClipConfig(fps=30.0))


@pytest.mark.parametrize("name", ["num_frames", "frame_stride", "views", "fps"])
def test_settings_out_of_range_are_named(name: str) -> None:
    with pytest.raises(DataError, match=rf"--data\.clip\.{name} is 0"):
        ClipConfig(**{name: 0})


def test_named_generators_depend_only_on_names() -> None:
    """The expected numbers are fixed, because other machines and versions must give them too."""
    assert named_generator(0, 1, "video_00007").integers(2**32, size=3).tolist() == PINNED
    assert named_generator(1).random() != named_generator("1").random()
    assert named_generator("a", "b").random() != named_generator("ab").random()


PINNED = [361098701, 691085283, 1523197977]


def test_the_encoder_determines_the_length_of_a_clip():
    config = ClipConfig(frame_stride=3)
    assert config.for_encoder(5).span == 13
    assert ClipConfig(num_frames=5).for_encoder(5).length == 5
    with pytest.raises(DataError, match="num_frames is 8, but the encoder takes 5; set --encoder"):
        ClipConfig(num_frames=8).for_encoder(5)
    with pytest.raises(DataError, match="num_frames is null"):
        _ = config.span
