"""Decoded frames against a plain decode from the first frame on."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vivit.data.video.decoding import decode_frames, decode_jpegs, iterate_frames, probe_video
from ssl_vivit.errors import DecodingError

ASSETS = Path(__file__).parents[2] / "assets"
AWKWARD = ASSETS / "awkward_videos"
# Quarter turns, counter-clockwise, that show the file upright.
TURNS = {
    "awkward_videos/av1_video.mkv": 0,
    "awkward_videos/h265_video.mp4": 0,
    "awkward_videos/h264_10bits.mp4": 0,
    "awkward_videos/unordered.mov": 0,
    "awkward_videos/video_90.mov": -1,
    "collision_clips/example_0_new.mp4": 0,
}


def plain_decode(source, turns=0):
    """Every frame, one after the other, as PyAV gives it."""
    with av.open(source) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack([np.rot90(frame, turns) for frame in frames])


def moving_square(num_frames, height=48, width=64):
    """Distinct frames: a bright square wanders over a gradient."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        frames[i] = np.stack([x * 2, y * 3, np.full_like(x, (i * 5) % 256)], -1)
        top, left = (i * 3) % (height - 8), (i * 7) % (width - 8)
        frames[i, top : top + 8, left : left + 8] = 255
    return frames


def encode(frames, codec="libx264", container="mp4", rate=25, **options):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_real_files_equal_plain_decode(name, as_bytes):
    path = ASSETS / name
    expected = plain_decode(str(path), TURNS[name])
    source = path.read_bytes() if as_bytes else path
    total = len(expected)
    for seed in range(3):
        indices = np.random.default_rng(seed).integers(total, size=6).tolist()
        decoded = decode_frames(source, indices, decoder="pyav")
        np.testing.assert_array_equal(decoded, expected[indices])
    np.testing.assert_array_equal(np.stack(list(iterate_frames(source))), expected)
    info = probe_video(source)
    assert (info.num_frames, info.height, info.width) == expected.shape[:3]


@pytest.mark.parametrize(
    ("name", "fps"), [("av1_video.mkv", 25), ("h265_video.mp4", 10), ("video_90.mov", 30)]
)
def test_frame_rate(name, fps):
    assert probe_video(AWKWARD / name).fps == fps


@pytest.mark.parametrize(
    "options",
    [
        {"g": 5, "bf": 0},
        {"g": 12, "bf": 3},
        {"g": 12, "bf": 3, "x264-params": "open-gop=1:b-pyramid=normal"},
        {"g": 250, "bf": 3},
        {"codec": "libx265", "x265-params": "keyint=8:min-keyint=8:open-gop=1:log-level=none"},
        {"codec": "libx264", "x264-params": "intra-refresh=1:keyint=10"},
        {"codec": "mpeg4", "container": "avi", "g": 6},
        # Millisecond timestamps at 3000 frames a second: several frames share one.
        {"codec": "mpeg4", "container": "matroska", "rate": 3000, "g": 6},
    ],
)
def test_any_group_structure_equals_plain_decode(options):
    video = encode(moving_square(40), **options)
    expected = plain_decode(io.BytesIO(video))
    assert len(expected) == 40
    for seed in range(8):
        indices = np.random.default_rng(seed).integers(40, size=seed + 1).tolist()
        decoded = decode_frames(video, indices, decoder="pyav")
        np.testing.assert_array_equal(decoded, expected[indices])


@pytest.mark.parametrize("b", [(0, 1), (0, -1), (1, 0), (-1, 0)], ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
def test_display_matrix(b, mirrored):
    """Each of the eight orientations, against moving every pixel by the matrix."""
    video = bytearray(encode(moving_square(2, 32, 48), g=1))
    upright = plain_decode(io.BytesIO(bytes(video)))[1]
    first = np.array([b[0], b[1]])
    second = np.array([-b[1], b[0]]) * (-1 if mirrored else 1)
    matrix = np.zeros(9, ">i4")
    matrix[[0, 1, 3, 4]] = np.concatenate([first, second]) * 65536
    matrix[8] = 1 << 30
    at = video.index(b"tkhd") + 4 + 40
    video[at : at + 36] = matrix.tobytes()
    places = [(x, y, *(x * first + y * second)) for y in range(32) for x in range(48)]
    left, top = min(p[2] for p in places), min(p[3] for p in places)
    shape = (48, 32) if b[0] == 0 else (32, 48)
    expected = np.empty((*shape, 3), np.uint8)
    for x, y, new_x, new_y in places:
        expected[new_y - top, new_x - left] = upright[y, x]
    np.testing.assert_array_equal(decode_frames(bytes(video), [1], decoder="pyav")[0], expected)
    assert probe_video(bytes(video))[1:3] == shape


def test_smaller_frames_are_area_averages():
    path = ASSETS / "collision_clips/example_0_new.mp4"
    indices = [3, 60]
    full = torch.from_numpy(decode_frames(path, indices).astype(np.float32))
    expected = torch.nn.functional.adaptive_avg_pool2d(full.permute(0, 3, 1, 2), (128, 64))
    small = decode_frames(path, indices, (128, 64))
    difference = np.abs(small - expected.permute(0, 2, 3, 1).numpy())
    assert small.shape == (2, 128, 64, 3)
    assert difference.mean() < 1.0
    assert np.quantile(difference, 0.999) < 4


def test_size_counts_after_rotation():
    full = decode_frames(AWKWARD / "video_90.mov", [0])[0]
    small = decode_frames(AWKWARD / "video_90.mov", [0], (142, 80))[0]
    expected = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(full.astype(np.float32)).permute(2, 0, 1), (142, 80)
    )
    assert np.abs(small - expected.permute(1, 2, 0).numpy()).mean() < 1.5


def test_full_range_colours_survive():
    grey = np.repeat(np.arange(256, dtype=np.uint8), 2)[None, None, :, None]
    frames = np.broadcast_to(grey, (1, 16, 512, 3)).copy()
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 16, 512, "yuvj420p"
        picture = av.VideoFrame.from_ndarray(frames[0], format="rgb24")
        out.mux(stream.encode(picture.reformat(format="yuvj420p")))
        out.mux(stream.encode())
    decoded = decode_frames(file.getvalue(), [0], decoder="pyav").astype(int)
    assert np.abs(decoded - frames).max() <= 4


def test_broken_file_gives_its_whole_frames_and_names_the_rest():
    path = AWKWARD / "corrupted.mp4"
    assert decode_frames(path, [0, 20]).shape == (2, 720, 1280, 3)
    with pytest.raises(DecodingError, match="after 28 of 50 frames"):
        decode_frames(path, [10, 40], decoder="pyav")
    with pytest.raises(DecodingError, match="after 28 of 50 frames"):
        list(iterate_frames(path))


def test_cut_off_file():
    video = encode(moving_square(40), movflags="frag_keyframe+empty_moov", g=10)
    with pytest.raises(DecodingError):
        decode_frames(video[: len(video) // 2], [39], decoder="pyav")


@pytest.mark.parametrize("index", [-1, 10])
def test_missing_frame_is_named(index):
    with pytest.raises(DecodingError, match=f"frame {index} of 10 is missing"):
        decode_frames(AWKWARD / "h265_video.mp4", [0, index])


def test_no_frames_asked_for():
    assert decode_frames(AWKWARD / "video_90.mov", [], decoder="pyav").shape == (0, 568, 320, 3)


def test_what_is_no_video_or_names_other_files_is_refused(tmp_path):
    secret = AWKWARD / "h265_video.mp4"
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{secret}'\n"
    for content in (b"", b"no video", playlist.encode(), concat.encode()):
        (tmp_path / "clip.mp4").write_bytes(content)
        for source in (content, tmp_path / "clip.mp4"):
            with pytest.raises(DecodingError, match="no readable video"):
                decode_frames(source, [0], decoder="pyav")
            with pytest.raises(DecodingError, match="no readable video"):
                probe_video(source)
    with pytest.raises(DecodingError, match="No such file"):
        probe_video(tmp_path / "none.mp4")


def test_jpegs_equal_another_decoder():
    frames = moving_square(3)
    pictures = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=95, subsampling=0)
        pictures.append(file.getvalue())
    decoded = decode_jpegs(pictures, (48, 64)).astype(int)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(p))) for p in pictures]).astype(int)
    assert np.abs(decoded - expected).max() <= 3
    assert decode_jpegs(pictures, (24, 32)).shape == (3, 24, 32, 3)
    with pytest.raises(DecodingError, match="broken JPEG"):
        decode_jpegs([b"no picture"], (48, 64))


@pytest.mark.parametrize("name", [n for n in TURNS if "10bits" not in n])
def test_torchcodec_gives_the_same_frames(name):
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        pytest.skip("torchcodec does not load")
    path = ASSETS / name
    indices = [2, 0, 1, 2]
    np.testing.assert_array_equal(
        decode_frames(path, indices, decoder="torchcodec"),
        decode_frames(path, indices, decoder="pyav"),
    )
    with pytest.raises(DecodingError, match="missing"):
        decode_frames(path, [10**6], decoder="torchcodec")
    with pytest.raises(DecodingError, match="no readable video"):
        decode_frames(b"#EXTM3U\n#EXTINF:1,\n/etc/hosts\n", [0], decoder="torchcodec")
