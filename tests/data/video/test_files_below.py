"""Folders with links, loops, pipes, hidden files and many file name endings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.clevrer.packing import pack
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.files_below import files_below, passed_over_line
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.video_folder import VideoFolder
from ssl_vivit.errors import DataError

CLIP = Path(__file__).parents[2] / "assets" / "collision_clips" / "example_0_new.mp4"


def linked(folder: Path) -> Path:
    """Make a data set of links, as on clusters, with a loop and a broken link."""
    real, root = folder / "elsewhere" / "inner", folder / "root"
    for path in (real, root / "own"):
        path.mkdir(parents=True)
    for i in range(3):
        shutil.copy(CLIP, real / f"v{i}.mp4")
    shutil.copy(CLIP, root / "own" / "here.mp4")
    (root / "class_a").symlink_to(folder / "elsewhere")
    (real / "back").symlink_to(root)
    (real / "round").symlink_to(real)
    (root / "lost.mp4").symlink_to(folder / "nowhere.mp4")
    (root / "notes.txt").write_text("mine")
    (root / "README").write_text("mine")
    (root / ".hidden.mp4").write_bytes(b"")
    os.mkfifo(root / "pipe.mp4")
    return root


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = linked(tmp_path)
    sizes, passed_over = files_below(root)
    videos = [f"class_a/inner/v{i}.mp4" for i in range(3)]
    assert sorted(sizes) == ["README", *videos, "lost.mp4", "notes.txt", "own/here.mp4"]
    assert sizes["own/here.mp4"] == CLIP.stat().st_size
    assert passed_over == {"hidden": 1, "pipes or devices": 1, "folders linked twice": 2}


def test_a_folder_keeps_its_own_name_where_it_is_linked_too(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.mp4").touch()
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert list(files_below(tmp_path)[0]) == ["z/a.mp4"]


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert files_below(tmp_path)[1] == {"unreadable folders": 1}


def test_folder_and_pack_read_the_linked_videos_and_count_the_rest(tmp_path: Path) -> None:
    root = linked(tmp_path)
    videos = VideoFolder(root)
    assert len(videos.keys) == 4
    assert "No such file" in videos.broken["lost.mp4"]
    assert passed_over_line(videos.passed_over) == (
        "passed over: 2 folders linked twice, 1 .txt file, 1 hidden, 1 pipe or device, "
        "1 without ending"
    )
    report = pack(root, tmp_path / "out", storage="original", workers=1, progress=False)
    assert report.packed == 4
    assert "No such file" in report.skipped["lost.mp4"]
    expected = {".txt": 1, "without ending": 1, "hidden": 1, "pipes or devices": 1}
    expected["folders linked twice"] = 2
    assert report.passed_over == videos.passed_over == expected


def test_a_folder_of_other_files_is_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("a.txt", "b.TXT", "c.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"contains no videos; passed over: 2 \.txt files, 1 \.jpg file"
    ):
        VideoFolder(tmp_path)
    with pytest.raises(
        DataError, match=r"contains no videos; passed over: 2 \.txt files, 1 \.jpg file"
    ):
        pack(tmp_path, tmp_path / "out")


CONTAINERS = {
    "3gp": ("3gp", "mpeg4"), "3g2": ("3g2", "mpeg4"), "asf": ("asf", "mpeg4"),
    "f4v": ("f4v", "libx264"), "m1v": ("mpeg1video", "mpeg1video"),
    "m2v": ("mpeg2video", "mpeg2video"), "m2ts": ("mpegts", "libx264"),
    "mts": ("mpegts", "libx264"), "mxf": ("mxf", "mpeg2video"), "vob": ("vob", "mpeg2video"),
    "divx": ("avi", "mpeg4"), "mjpeg": ("mjpeg", "mjpeg"), "y4m": ("yuv4mpegpipe", "wrapped_avframe"),
    "ogv": ("ogg", "libtheora"), "h264": ("h264", "libx264"), "ivf": ("ivf", "libvpx"),
    "nut": ("nut", "mpeg4"), "dv": ("dv", "dvvideo"), "wmv": ("asf", "wmv2"),
}  # fmt: skip


@pytest.mark.parametrize("ending", CONTAINERS)
def test_every_ending_of_a_film_is_a_video(tmp_path: Path, ending: str) -> None:
    container, codec = CONTAINERS[ending]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    height, width = (576, 720) if codec == "dvvideo" else (48, 64)
    path = tmp_path / f"film.{ending.upper()}"
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(6):
            picture = np.full((height, width, 3), 40 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    videos = VideoFolder(tmp_path)
    assert videos.keys == [path.name]
    pack(tmp_path, tmp_path / "out", storage="original", workers=1, progress=False)
    shards = ShardSet(str(tmp_path / "out"))
    frames = decode_frames(path, [0, 3])
    np.testing.assert_array_equal(shards.frames(0, [0, 3]), frames)
    assert frames[1].mean() - frames[0].mean() > 60
