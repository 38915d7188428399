"""Movies for simulated neurons: timing of frames, window, motion, split of the videos."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.camera import Camera
from data_prep.synthetic_clevrer.videos import write_video
from data_prep.synthetic_neural.stimuli import Movie, Screen
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.errors import DataError

LEVELS, SOURCE_RATE = 25, 25.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Write eight videos of one second at 25 Hz; frame k has the grey level 8·k + 10."""
    folder = tmp_path_factory.mktemp("videos")
    camera = Camera(48, 72)
    for number in range(8):
        frames = (np.full((48, 72, 3), 8 * k + 10, np.uint8) for k in range(LEVELS))
        write_video(folder / f"{number}.mp4", frames, camera, SOURCE_RATE)
    pack(folder, folder / "shards", prefix="grey", workers=1, progress=False)
    return ShardSet(str(folder / "shards" / "grey-*.tar"))


def screen(videos=None, frames=30, **options):
    return Screen((36, 64), frames, 30.0, videos=videos, **options)


def test_each_moment_shows_the_latest_frame_of_the_video(videos):
    movie = screen(videos).show(Movie(0, (3,)))
    assert movie.shape == (30, 36, 64)
    assert np.ptp(movie, axis=(1, 2)).max() <= 3
    level = movie.mean((1, 2))
    step = (level[-1] - level[0]) / (LEVELS - 1)
    shown = np.rint((level - level[0]) / step).astype(int)
    expected = [int(k * SOURCE_RATE / 30 + 1e-9) for k in range(30)]
    assert shown.tolist() == expected


def test_a_long_movie_shows_its_clips_one_after_another(videos):
    movie = screen(videos, 75).show(Movie(0, (3, 5, 2)))
    level = movie.mean((1, 2))
    assert len(movie) == 75
    np.testing.assert_allclose(level[30:60], level[:30], atol=2)
    np.testing.assert_allclose(level[60:], level[:15], atol=2)


def test_the_window_stays_within_the_frame_and_moves(videos):
    draw = np.random.default_rng(0)
    for _ in range(20):
        top, left, height, width = screen(videos)._window((48, 72), 90, draw)
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + height <= 48 + 1e-9).all()
        assert (left + width <= 72 + 1e-9).all()
        np.testing.assert_allclose(width / height, 64 / 36)
        assert np.ptp(top) > 0
        assert np.ptp(left) > 0


def test_movies_do_not_depend_on_order_and_differ_by_number_and_seed(videos):
    first = screen(videos)
    shown = {number: first.show(Movie(number)) for number in (0, 1)}
    again = screen()
    assert np.array_equal(again.show(Movie(1)), shown[1])
    assert np.array_equal(again.show(Movie(0)), shown[0])
    assert not np.array_equal(shown[0], shown[1])
    assert not np.array_equal(screen(seed=1).show(Movie(0)), shown[0])


def test_textures_have_one_mean_and_contrast():
    for number in range(4):
        movie = screen(frames=90).show(Movie(number))
        assert movie.dtype == np.uint8
        assert abs(movie.mean() - 127.5) < 1
        assert 45 < movie.std() < 51


def test_textures_move_in_one_direction():
    """The energy of a moving texture is at f = −v·k, on one side of each spatial frequency."""
    draw = np.random.default_rng(3)
    for _ in range(5):
        state = draw.bit_generator.state
        cloud = screen()._motion_cloud(32, draw)
        replay = np.random.default_rng(3)
        replay.bit_generator.state = state
        replay.uniform(np.log(0.07), np.log(0.2))
        direction = replay.uniform(0, 2 * np.pi)
        energy = np.abs(np.fft.fftn(cloud)) ** 2
        t = np.fft.fftfreq(32)[:, None, None]
        y, x = np.fft.fftfreq(36)[None, :, None], np.fft.fftfreq(64)[None, None, :]
        along = x * np.cos(direction) + y * np.sin(direction)
        forward, backward = (energy[(sign * t * along) < 0].sum() for sign in (1, -1))
        assert forward > 4 * backward


@pytest.mark.parametrize("kind", ["videos", "mix", "textures"])
def test_no_video_is_shown_in_training_and_elsewhere(videos, kind):
    train, held_out = screen(videos).plan(kind, 12, 4)
    numbers = [movie.number for movie in (*train, *held_out)]
    assert sorted(numbers) == list(range(16))
    clips = [[clip for movie in movies for clip in movie.clips] for movies in (train, held_out)]
    assert not set(clips[0]) & set(clips[1])
    assert len(set(clips[1])) == len(clips[1])
    textures = sum(not movie.clips for movie in train)
    assert textures == {"videos": 0, "mix": 6, "textures": 12}[kind]
    if kind != "textures":
        assert len(set(clips[0])) == min(8 - len(clips[1]), len(clips[0]))


def test_too_few_videos_are_counted(videos):
    with pytest.raises(
        DataError, match=r"--videos contain 8 videos, but 8 held-out movies .* up to 9"
    ):
        screen(videos).plan("videos", 1, 8)
    with pytest.raises(DataError, match="--stimuli mix needs --videos"):
        screen().plan("mix", 4, 4)
