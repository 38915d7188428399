"""Decoded frames, compared with a plain decode from the first frame."""

from __future__ import annotations

import io
import resource
import struct
import tarfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from ssl_vivit.data.video import decoding
from ssl_vivit.data.video.decoding import decode_frames, decode_jpegs, iterate_frames, probe_video
from ssl_vivit.data.video.shards.build import build_index
from ssl_vivit.data.video.video_folder import VideoFolder
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
    """Decode all frames in order with PyAV."""
    with av.open(source) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack([np.rot90(frame, turns) for frame in frames])


def moving_square(num_frames, height=48, width=64):
    """Return distinct frames: a bright square moves over a gradient."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        frames[i] = np.stack([x * 2, y * 3, np.full_like(x, (i * 5) % 256)], -1)
        top, left = (i * 3) % (height - 8), (i * 7) % (width - 8)
        frames[i, top : top + 8, left : left + 8] = 255
    return frames


def encode(frames, codec="libx264", container="mp4", rate=25, pix_fmt="yuv420p", **options):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
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
    """The eight orientations equal moving every pixel by the matrix."""
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


@pytest.mark.parametrize("size", [(96, 20), (20, 160), (96, 160)])
def test_sizes_that_shrink_one_side_at_most_are_bicubic(size):
    frames = moving_square(3)
    video = encode(frames, crf=1, pix_fmt="yuv444p")
    own = torch.from_numpy(decode_frames(video, [2])[0].astype(np.float32)).permute(2, 0, 1)[None]
    found = decode_frames(video, [2], size)[0].astype(np.float32)

    def distance(mode):
        expected = torch.nn.functional.interpolate(own, size, mode=mode, antialias=True)
        return np.abs(found - expected[0].permute(1, 2, 0).clamp(0, 255).numpy()).mean()

    assert found.shape == (*size, 3)
    # Area averaging gives what is nearer to linear interpolation.
    assert distance("bicubic") < 0.5
    assert distance("bicubic") < 0.8 * distance("bilinear")


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


def test_files_that_are_not_videos_or_name_other_files_are_refused(tmp_path):
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


def remuxed(video, container, *, shift=0, skip=0):
    """Write the packets to another container, some seconds later and without the first packets."""
    file = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"}
    with (
        av.open(io.BytesIO(video)) as source,
        av.open(file, "w", format=container, options=options) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux(video=0) if p.size]
        for packet in packets[skip:]:
            packet.pts += int(shift / packet.time_base)
            packet.dts += int(shift / packet.time_base)
            packet.stream = stream
            out.mux(packet)
    return file.getvalue()


def b_frames(codec="libx264", container="mp4", **options):
    return encode(
        moving_square(40), codec, container, **{"bf": 2, "g": 12, "sc_threshold": 0, **options}
    )


FILMS = {
    "edit list hides ten frames": lambda: remuxed(b_frames(), "mp4", shift=-0.4),
    "edit list begins within a group": lambda: remuxed(b_frames(), "mov", shift=-0.62),
    "starts later": lambda: remuxed(b_frames(), "mp4", shift=2),
    "cut before a key frame": lambda: remuxed(b_frames(), "matroska", skip=3),
    "cut before a key frame, ts": lambda: remuxed(b_frames(), "mpegts", skip=3),
    "open group first": lambda: remuxed(b_frames("mpeg2video", "mpegts"), "matroska", skip=12),
    "avi holds no order": lambda: b_frames(container="avi"),
    "raw h264": lambda: b_frames(container="h264"),
    "raw mpeg1": lambda: b_frames("mpeg1video", "mpeg1video"),
    "raw mpeg2": lambda: b_frames("mpeg2video", "mpeg2video"),
    "gxf": lambda: encode(moving_square(12, 576, 720), "mpeg2video", "gxf", bf=2),
    "wtv": lambda: b_frames("mpeg2video", "wtv"),
    "transport stream": lambda: b_frames(container="mpegts"),
}


@pytest.mark.parametrize("name", FILMS)
def test_a_frame_has_one_number_whichever_way_it_is_reached(name):
    video = FILMS[name]()
    expected = plain_decode(io.BytesIO(video))
    total = len(expected)
    assert probe_video(video).num_frames == total
    assert probe_video(video).fps == pytest.approx(25, rel=0.05)
    np.testing.assert_array_equal(np.stack(list(iterate_frames(video))), expected)
    order = np.random.default_rng(0).permutation(total).tolist()
    np.testing.assert_array_equal(decode_frames(video, order, decoder="pyav"), expected[order])
    for i in order:
        alone = decode_frames(video, [i], decoder="pyav")[0]
        np.testing.assert_array_equal(alone, expected[i])
    for i in (-1, total):
        with pytest.raises(DecodingError, match=f"frame {i}.* is missing"):
            decode_frames(video, [0, i], decoder="pyav")


@pytest.mark.parametrize("late", [0, 1])
def test_torchcodec_is_believed_where_it_numbers_frames_alike(monkeypatch, late):
    video = remuxed(b_frames(), "mp4", shift=-0.4)
    with av.open(io.BytesIO(video)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]

    class Fake:
        def __init__(self, data, **options):
            assert options["stream_index"] == 0

        def __len__(self):
            return len(times)

        def get_frames_at(self, indices):
            seconds = [times[i + late] for i in indices]
            pixels = torch.full((len(indices), 48, 64, 3), 7, dtype=torch.uint8)
            return SimpleNamespace(pts_seconds=torch.tensor(seconds).double(), data=pixels)

    monkeypatch.setattr(decoding, "_torchcodec", lambda: Fake)
    decoded = decode_frames(video, [3, 0, 9], decoder="torchcodec")
    by_pyav = decode_frames(video, [3, 0, 9], decoder="pyav")
    np.testing.assert_array_equal(decoded, by_pyav if late else np.full_like(by_pyav, 7))


def changing(**other):
    """Encode forty frames, then forty frames of another size or format, in one elementary stream."""
    first = b_frames(container="mpegts", bf=0)
    shape = other.pop("shape", (48, 64))
    return first + encode(moving_square(40, *shape), container="mpegts", bf=0, g=12, **other)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"shape": (32, 48)}, "from 48×64 yuv420p to 32×48 yuv420p"),
        ({"pix_fmt": "yuv444p"}, "from 48×64 yuv420p to 48×64 yuv444p"),
    ],
)
def test_a_film_that_changes_is_broken(other, told):
    video = changing(**other)
    with pytest.raises(DecodingError, match=told):
        list(iterate_frames(video))
    for size in (None, (24, 32)):
        with pytest.raises(DecodingError, match=told):
            decode_frames(video, [60], size, decoder="pyav")


def test_an_unknown_codec_is_named():
    video = b_frames()
    at = video.index(b"avc1", video.index(b"stsd"))
    video = video[:at] + b"zzzz" + video[at + 4 :]
    for read in (probe_video, lambda v: decode_frames(v, [0]), lambda v: list(iterate_frames(v))):
        with pytest.raises(DecodingError, match="its codec is unknown"):
            read(video)


def with_sound(cover, film=None):
    """Write an mp4 of one second of silence, optionally with a cover picture and a video."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        if cover:
            picture = out.add_stream("mjpeg", rate=1)
            picture.height, picture.width, picture.pix_fmt = 48, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic.value
        sound = out.add_stream("aac", rate=16000)
        if film is not None:
            source = av.open(io.BytesIO(film))
            stream = out.add_stream_from_template(source.streams.video[0])
        if cover:
            frame = av.VideoFrame.from_ndarray(moving_square(1)[0], format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1)
            out.mux(picture.encode(frame.reformat(format="yuvj420p")))
            out.mux(picture.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.rate, silence.pts = 16000, 0
        out.mux(sound.encode(silence))
        out.mux(sound.encode())
        if film is not None:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("cover", [False, True])
def test_sound_without_a_film_is_refused(cover):
    with pytest.raises(DecodingError, match="holds no video stream"):
        probe_video(with_sound(cover))


def test_a_cover_is_not_the_film():
    film = b_frames()
    video = with_sound(cover=True, film=film)
    assert probe_video(video).num_frames == 40
    frames = decode_frames(video, [0, 30], decoder="pyav")
    np.testing.assert_array_equal(frames, plain_decode(io.BytesIO(film))[[0, 30]])


def absurd_gif():
    video = bytearray(encode(moving_square(3), "gif", "gif", pix_fmt="rgb8"))
    video[6:10] = struct.pack("<HH", 9000, 9000)
    return bytes(video)


def absurd_vp8():
    video = bytearray(encode(moving_square(3), "libvpx", "ivf"))
    at = video.index(b"\x9d\x01\x2a") + 3
    video[at : at + 4] = struct.pack("<HH", 16383, 16383)
    return bytes(video)


def absurd_later():
    """Return a motion JPEG video whose third picture claims a larger size than the others."""
    video = bytearray(encode(moving_square(3), "mjpeg", "mov", pix_fmt="yuvj420p"))
    at = video.rindex(b"\xff\xc0") + 5
    video[at : at + 4] = struct.pack(">HH", 16000, 16000)
    return bytes(video)


@pytest.mark.parametrize("make", [absurd_gif, absurd_vp8, absurd_later])
def test_claimed_pixels_take_no_memory(make):
    video = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DecodingError):
        list(iterate_frames(video))
    with pytest.raises(DecodingError):
        decode_frames(video, [2], (48, 64), decoder="pyav")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_claimed_pixels_of_a_jpeg_are_refused():
    file = io.BytesIO()
    Image.fromarray(moving_square(1)[0]).save(file, "JPEG")
    picture = bytearray(file.getvalue())
    at = picture.index(b"\xff\xc0") + 5
    picture[at : at + 4] = struct.pack(">HH", 16000, 16000)
    with pytest.raises(DecodingError, match="broken JPEG"):
        decode_jpegs([bytes(picture)], (48, 64))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_a_picture_is_not_a_video(kind):
    file = io.BytesIO()
    Image.fromarray(moving_square(1)[0]).save(file, kind)
    with pytest.raises(DecodingError, match="no readable video"):
        probe_video(file.getvalue())


def test_text_is_not_a_video():
    for text in ("plain words\n" * 200, "1\n00:00:01,000 --> 00:00:02,000\nwords\n\n" * 9):
        with pytest.raises(DecodingError, match="no readable video"):
            probe_video(text.encode())


def test_a_damaged_film_is_called_so_and_said_what_to_do_with():
    damaged = bytearray(b_frames())
    damaged[:64] = bytes(64)
    said = "^no readable video: the data are damaged or are not a video; replace the file or leave it out$"
    with pytest.raises(DecodingError, match=said):
        probe_video(bytes(damaged))


def test_unreadable_videos_do_not_stop_folders_and_indexes(tmp_path):
    film = b_frames()
    at = film.index(b"avc1", film.index(b"stsd"))
    odd = {
        "a.mp4": film,
        "codec.mp4": film[:at] + b"zzzz" + film[at + 4 :],
        "huge.gif": absurd_gif(),
        "sound.mp4": with_sound(cover=True),
        "words.mp4": b"plain words\n" * 200,
    }
    with tarfile.open(tmp_path / "films.tar", "w") as tar:
        for name, content in odd.items():
            (tmp_path / name).write_bytes(content)
            tar.add(tmp_path / name, name)
    folder = VideoFolder(tmp_path)
    assert folder.keys == ["a.mp4"]
    assert folder.broken.keys() == odd.keys() - {"a.mp4"}
    index = build_index(tmp_path / "films.tar")
    assert [sample["key"] for sample in index["samples"]] == ["a"]
    assert index["left_out"].keys() == odd.keys() - {"a.mp4"}
    for told in (folder.broken.values(), index["left_out"].values()):
        assert all("readable video" in reason or "too many pixels" in reason for reason in told)
