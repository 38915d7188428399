"""Videos with a variable frame rate, compared with the time stamps of a plain decode."""

from __future__ import annotations

import io
import json
from fractions import Fraction

import av
import numpy as np
import pytest
from small_encoders import MODEL2

from data_prep.clevrer import pack
from data_prep.synthetic_neural.stimuli import Screen
from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.clips import ClipConfig, timeline_lengths, too_short
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.decoding import VideoInfo, decode_frames, probe_video
from ssl_vivit.data.video.frame_times import check_times, rate_and_times
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.video_folder import VideoFolder
from ssl_vivit.data.video.videos import CentralWindows, Chosen
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.video_clip import clip_of_video

# Two seconds at 10 frames a second, then one at 30.
TICKS = [*range(0, 2000, 100), *(2000 + round(i * 1000 / 30) for i in range(30))]
BITS = 6


def film(ticks, container="mp4", codec="libx264", **options):
    """Encode frames at the given milliseconds that show their number as six bits."""
    file, base = io.BytesIO(), Fraction(1, 1000)
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=30, options={"crf": "8", **options})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        for number, tick in enumerate(ticks):
            bits = (number >> np.arange(BITS)) & 1
            pixels = np.broadcast_to(bits.repeat(8)[:, None, None] * 255, (48, 64, 3))
            pixels = np.ascontiguousarray(pixels, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def numbers_in(pixels):
    bands = pixels.reshape(len(pixels), BITS, -1).mean(-1) > 127
    return (bands @ (1 << np.arange(BITS))).tolist()


def plain_times(video):
    """Return the time of each frame after the first in seconds, by a plain decode."""
    with av.open(io.BytesIO(video)) as container:
        times = np.array([float(frame.time) for frame in container.decode(video=0)])
    return times - times[0]


def shown(times, seconds):
    """Return the last frame that has begun at each time."""
    return [max(i for i, begun in enumerate(times) if begun <= at + 1e-6) for at in seconds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    (root / "a.mp4").write_bytes(film(TICKS))
    (root / "b.mkv").write_bytes(film([round(k * 1000 / 25) for k in range(100)], "matroska"))
    return root


def packed(folder, out, storage, **options):
    pack(folder, out, storage=storage, workers=1, progress=False, **options)
    return ShardSet(str(out))


@pytest.mark.parametrize(
    ("container", "options"),
    [("mp4", {"bf": "2"}), ("mp4", {"bf": "0"}), ("matroska", {"bf": "2"}), ("mov", {}),
     ("flv", {}), ("mpegts", {})],
)  # fmt: skip
def test_times_are_those_of_a_plain_decode(container, options):
    video = film(TICKS, container, **options)
    info = probe_video(video)
    np.testing.assert_allclose(info.times, plain_times(video), atol=1e-6)
    assert info.num_frames == len(TICKS)
    assert info.fps == pytest.approx(49 / (TICKS[-1] / 1000), abs=0.01)


def test_constant_rates_need_no_times():
    assert probe_video(film([0, 33, 67, 100, 133, 167], "matroska")).times is None
    seconds = np.arange(2000) * 1001 / 30000
    assert rate_and_times(np.round(seconds, 3), 30000 / 1001) == (30000 / 1001, None)
    # A header that is wrong gives way to the stamps, also where it differs by little.
    for named in (0.0, 60000.0, 30.0):
        rate, times = rate_and_times(seconds, named)
        assert rate == pytest.approx(30000 / 1001)
        assert times is None
    assert rate_and_times(np.array([3.0]), 25.0) == (25.0, None)
    # One frame is missing.
    assert rate_and_times(np.delete(seconds, 7), 30000 / 1001)[1] is not None


@pytest.mark.parametrize("storage", [None, "original", "h264", "jpeg"])
@pytest.mark.parametrize("fps", [5.0, 12.0, 30.0, 60.0])
def test_clips_go_by_time_stamps_also_after_packing(folder, tmp_path, storage, fps):
    videos = VideoFolder(folder) if storage is None else packed(folder, tmp_path, storage)
    times = plain_times((folder / "a.mp4").read_bytes())
    np.testing.assert_allclose(videos.times(0), times, atol=1e-6)
    assert videos.times(1) is None
    assert videos.fps[0] == pytest.approx(49 / times[-1], rel=1e-3)
    for chosen in (Chosen(videos, np.array([1, 0])), CentralWindows(videos, (48, 48))):
        a = chosen.keys.index(videos.keys[0])
        np.testing.assert_array_equal(chosen.times(a), videos.times(0))
        assert chosen.times(1 - a) is None
    # The film lasts three seconds: its last frame ends 1/30 s after it began.
    assert timeline_lengths(videos, fps).tolist()[0] == round(3 * fps)
    clip = ClipConfig(num_frames=6, frame_stride=2, views=2, fps=fps)
    dataset = ClipDataset(videos, clip, Augment(AugmentConfig(), (48, 48)), 0, evaluation=True)
    sample = dataset.sample(0, 0)
    last = round(3 * fps) - 11
    expected = [shown(times, [(s + 2 * j) / fps for j in range(6)]) for s in (0, last)]
    assert sample["frames"].tolist() == expected
    assert [numbers_in(view) for view in sample["clips"].numpy()] == expected


def test_frames_count_as_they_come_without_a_rate(folder):
    clip = ClipConfig(num_frames=50, views=1)
    dataset = ClipDataset(VideoFolder(folder), clip, Augment(AugmentConfig(), (48, 48)), 0)
    assert dataset.sample(0, 0)["frames"].tolist() == [list(range(50))]


def test_a_film_can_be_long_in_frames_and_short_in_steps(folder):
    # At 5 a second, three seconds are 15 steps and the four of the other film are 20.
    clip = ClipConfig(num_frames=16, views=1, fps=5.0)
    assert list(too_short(VideoFolder(folder), clip)) == [0]


@pytest.mark.parametrize("storage", ["h264", "jpeg"])
@pytest.mark.parametrize("fps", [5, 24])
def test_packing_at_a_rate_keeps_what_is_shown_then(folder, tmp_path, storage, fps):
    shards = packed(folder, tmp_path, storage, fps=fps)
    times = plain_times((folder / "a.mp4").read_bytes())
    expected = shown(times, [k / fps for k in range(3 * fps)])
    assert shards.num_frames[0] == len(expected)
    assert shards.fps[0] == fps
    assert shards.times(0) is None
    assert numbers_in(shards.frames(0, range(len(expected)))) == expected


def test_annotations_follow_repeated_frames(folder, tmp_path):
    (tmp_path / "notes").mkdir()
    note = {
        "motion_trajectory": [{"frame_id": i, "objects": [i]} for i in range(50)],
        "collision": [{"frame_id": 3, "object_ids": [0, 1]}],
    }
    (tmp_path / "video_00000.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (tmp_path / "notes" / "annotation_00000.json").write_text(json.dumps(note))
    pack(tmp_path, tmp_path / "out", tmp_path / "notes", storage="jpeg", fps=20, frames=50,
         workers=1, progress=False)  # fmt: skip
    shards = ShardSet(str(tmp_path / "out"))
    annotation = shards.annotation(0)
    shown_in = numbers_in(shards.frames(0, range(60)))
    assert [e["frame_id"] for e in annotation["motion_trajectory"]] == list(range(60))
    assert [e["objects"] for e in annotation["motion_trajectory"]] == [[i] for i in shown_in]
    assert shown_in[annotation["collision"][0]["frame_id"]] == 3


def test_a_gap_of_days_is_not_filled_with_frames(tmp_path):
    (tmp_path / "ok.mp4").write_bytes(film(TICKS))
    (tmp_path / "gap.mkv").write_bytes(film([0, 40, 80, 200_000_000], "matroska"))
    report = pack(tmp_path, tmp_path / "out", storage="jpeg", fps=5, workers=1, progress=False)
    assert report.packed == 1
    assert "spread 4 frames over 200000 s; --fps 5 would repeat" in report.skipped["gap.mkv"]


def test_films_that_change_are_named_by_pack(tmp_path):
    (tmp_path / "ok.mp4").write_bytes(film(TICKS))
    small = io.BytesIO()
    with av.open(small, "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(20):
            pixels = np.zeros((32, 32, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    (tmp_path / "changes.ts").write_bytes(film(TICKS, "mpegts") + small.getvalue())
    for storage in ("original", "jpeg"):
        out = tmp_path / storage
        report = pack(tmp_path, out, storage=storage, workers=1, progress=False)
        assert report.packed == 1
        assert "from 48×64 yuv420p to 32×32 yuv420p at frame 50" in report.skipped["changes.ts"]


@pytest.mark.parametrize(
    "times",
    [[0.0], None, "none", [], [0.0] * 49 + [None], [0.0] * 49 + [float("nan")],
     [0.0] * 49 + [-1.0], [0.1] * 50, [[0.0]] * 50, {"0": 1}],
)  # fmt: skip
def test_wrong_times_in_an_index_are_named(folder, tmp_path, times):
    packed(folder, tmp_path, "jpeg")
    (path,) = (p for p in tmp_path.glob("*.json") if "manifest" not in p.name)
    index = json.loads(path.read_text())
    index["samples"][0]["times"] = times
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=rf"{path.name}: sample a: times must be 50 ascending"):
        ShardSet(str(tmp_path))
    # Indexes of constant rates have no such field, nor had any before.
    del index["samples"][0]["times"]
    path.write_text(json.dumps(index))
    assert ShardSet(str(tmp_path)).times(0) is None


def test_checked_times():
    assert check_times([0, 0.5, 0.5], 3).tolist() == [0.0, 0.5, 0.5]
    assert VideoInfo(3, 4, 5, 6.0).times is None


@pytest.mark.parametrize("fps", [None, 10.0])
def test_a_clip_of_a_file_starts_at_its_time(folder, fps):
    size = {"image_size": (48, 64), "tubelet_size": (2, 24, 32)}
    encoder = ViViT(ViViTConfig(**MODEL2 | size)).eval()
    encoder.preprocessing = {"mean": [0.0] * 3, "std": [1.0] * 3, "fps": fps}
    video = clip_of_video(encoder, folder / "a.mp4", start=2.1)
    times = plain_times((folder / "a.mp4").read_bytes())
    if fps is None:
        (first,) = shown(times, [2.1])
        expected = [first + j for j in range(8)]
    else:
        expected = shown(times, [2.1 + 0.1 * j for j in range(8)])
    assert numbers_in(video[0].permute(1, 2, 3, 0).numpy() * 255) == expected


def test_a_screen_shows_the_latest_frame(folder, monkeypatch):
    videos = VideoFolder(folder)
    screen = Screen((12, 16), 200, 60.0, videos=videos)
    asked = []
    frames = videos.frames
    monkeypatch.setattr(
        videos, "frames", lambda i, numbers, size: asked.append(numbers) or frames(i, numbers, size)
    )
    assert screen._length(0) == 180
    shown_frames = screen._clip(0, 20, np.random.default_rng(0))
    times = plain_times((folder / "a.mp4").read_bytes())
    assert len(shown_frames) == 20
    assert asked == [sorted(set(shown(times, np.arange(20) / 60)))]


def test_films_joined_by_cat_have_the_rate_of_their_header():
    """The time stamps restart, so they do not determine the times of frames."""
    once = film(range(0, 1600, 40), "mpegts")
    info = probe_video(once + once)
    assert (info.num_frames, info.times) == (80, None)
    assert info.fps == pytest.approx(25, rel=0.01)
    pixels = decode_frames(once + once, range(80))
    assert numbers_in(pixels) == [*range(40)] * 2
