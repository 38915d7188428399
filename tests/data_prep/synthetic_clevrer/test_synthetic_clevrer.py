"""Files and command line of the renderer of CLEVRER-like videos."""

import json
import platform
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.synthetic_clevrer.__main__ import main
from data_prep.synthetic_clevrer.videos import (
    DataError,
    annotation_path,
    contact_sheet,
    render,
    video_path,
)

SMALL = {"size": (48, 72), "num_frames": 16, "progress": False}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    out = tmp_path_factory.mktemp("sample")
    render(out, 3, workers=1, **SMALL)
    return out


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_layout_is_clevrers(sample):
    assert sorted(contents(sample)) == [
        "annotation_00000-01000/annotation_00000.json",
        "annotation_00000-01000/annotation_00001.json",
        "annotation_00000-01000/annotation_00002.json",
        "synthetic_clevrer.json",
        "video_00000-01000/video_00000.mp4",
        "video_00000-01000/video_00001.mp4",
        "video_00000-01000/video_00002.mp4",
    ]
    assert str(video_path("x", 12345)) == "x/video_12000-13000/video_12345.mp4"
    assert str(annotation_path("x", 999)) == "x/annotation_00000-01000/annotation_00999.json"
    assert str(annotation_path("x", 12345)) == "x/annotation_12000-13000/annotation_12345.json"


def test_same_bytes_for_two_workers_and_for_any_start(sample, tmp_path):
    render(tmp_path / "parallel", 3, workers=2, **SMALL)
    assert contents(tmp_path / "parallel") == contents(sample)
    paths = render(tmp_path / "alone", 1, start_index=2, workers=1, **SMALL)
    assert paths == [video_path(tmp_path / "alone", 2)]
    assert paths[0].read_bytes() == video_path(sample, 2).read_bytes()
    assert (
        annotation_path(tmp_path / "alone", 2).read_bytes()
        == annotation_path(sample, 2).read_bytes()
    )


def test_another_seed_gives_other_videos(sample, tmp_path):
    render(tmp_path, 1, seed=1, workers=1, **SMALL)
    assert video_path(tmp_path, 0).read_bytes() != video_path(sample, 0).read_bytes()


def test_video_has_the_asked_form(sample):
    with av.open(str(video_path(sample, 0))) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.height, stream.width) == (48, 72)
        assert stream.average_rate == 25
        assert len(list(container.decode(stream))) == 16


def test_annotation_has_clevrers_schema(sample):
    made = json.loads(annotation_path(sample, 1).read_text())
    assert list(made) == [
        "scene_index",
        "video_filename",
        "object_property",
        "motion_trajectory",
        "collision",
    ]
    assert made["scene_index"] == 1
    assert made["video_filename"] == "video_00001.mp4"
    ids = [item["object_id"] for item in made["object_property"]]
    assert ids == list(range(len(ids)))
    for item in made["object_property"]:
        assert set(item) == {"object_id", "color", "material", "shape"}
    assert [f["frame_id"] for f in made["motion_trajectory"]] == list(range(16))
    for frame in made["motion_trajectory"]:
        assert [o["object_id"] for o in frame["objects"]] == ids
        for item in frame["objects"]:
            assert set(item) == {
                "object_id",
                "location",
                "orientation",
                "velocity",
                "angular_velocity",
                "inside_camera_view",
            }
            assert isinstance(item["inside_camera_view"], bool)
            for name in ("location", "orientation", "velocity", "angular_velocity"):
                assert [type(v) for v in item[name]] == [float] * 3


def test_collisions_are_annotated(tmp_path):
    render(tmp_path, 1, size=(16, 24), start_index=5, workers=1, progress=False)
    made = json.loads(annotation_path(tmp_path, 5).read_text())
    assert len(made["motion_trajectory"]) == 128
    assert len(made["collision"]) >= 2
    for hit in made["collision"]:
        assert set(hit) == {"frame_id", "object_ids", "location"}
        assert 0 <= hit["frame_id"] < 128
        assert hit["object_ids"] == sorted(set(hit["object_ids"]))
        assert len(hit["location"]) == 3


def test_only_a_missing_video_is_rendered_again(sample, tmp_path):
    render(tmp_path, 3, workers=1, **SMALL)
    before = contents(tmp_path)
    video_path(tmp_path, 1).unlink()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stray = f".video_00001.mp4.{platform.node()}-{gone.pid}-00000000.part"
    video_path(tmp_path, 1).with_name(stray).write_bytes(b"cut off")
    times = {i: video_path(tmp_path, i).stat().st_mtime_ns for i in (0, 2)}
    render(tmp_path, 3, workers=1, **SMALL)
    assert contents(tmp_path) == before
    assert times == {i: video_path(tmp_path, i).stat().st_mtime_ns for i in (0, 2)}


def test_failing_encoder_leaves_no_video(tmp_path):
    # A folder in the video's place cannot be replaced by a file.
    video_path(tmp_path, 0).mkdir(parents=True)
    annotation_path(tmp_path, 0).parent.mkdir(parents=True)
    (tmp_path / "synthetic_clevrer.json").write_text(
        '{"rendering": 1, "size": [48, 72], "num_frames": 16, "fps": 25.0, "seed": 0}'
    )
    with pytest.raises(DataError, match=r"video_00000.* cannot be written: Is a directory"):
        render(tmp_path, 1, workers=1, **SMALL)
    assert [p.name for p in tmp_path.rglob("*.part")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-videos", "0"], "--num-videos is 0; it must be at least 1"),
        (["--num-frames", "0"], "--num-frames is 0; it must be at least 1"),
        (["--fps", "0"], "--fps is 0; it must lie between 1 and 1000"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--start-index", "-1"], "--start-index is -1; it must be at least 0"),
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (
            ["--size", "49x72"],
            "--size 49 72 does not fit the video format (yuv420p): height and width must be even "
            "and at least 16; use --size 50 72",
        ),
    ],
)
def test_impossible_settings_get_one_line_and_leave_nothing(tmp_path, capsys, options, message):
    assert main(["--out", str(tmp_path / "new"), *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"size": (48, 64)}, "--size 48 72, but it is now 48 64"),
        ({"num_frames": 8}, "--num-frames 16, but it is now 8"),
        ({"seed": 1}, "--seed 0, but it is now 1"),
        ({"fps": 30}, "--fps 25, but it is now 30"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(sample, options, difference):
    before = contents(sample)
    with pytest.raises(DataError, match=f"rendered with {difference}; choose another --out"):
        render(sample, 5, **{**SMALL, **options})
    assert contents(sample) == before


def test_folder_with_foreign_videos_is_refused(tmp_path):
    (tmp_path / "video_00000-01000").mkdir()
    with pytest.raises(DataError, match="that this command did not make"):
        render(tmp_path, 1, **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; give a folder"):
        render(tmp_path / "file", 1, **SMALL)


def test_command_line_renders_and_saves_a_contact_sheet(sample, tmp_path, capsys):
    picture = tmp_path / "sheet.png"
    common = ["--num-videos", "1", "--num-frames", "16", "--workers", "1"]
    common += ["--out", str(tmp_path / "out"), "--contact-sheet", str(picture)]
    assert main([*common, "--size", "48", "72"]) == 0
    assert main([*common, "--size", "48x72"]) == 0
    assert video_path(tmp_path / "out", 0).read_bytes() == video_path(sample, 0).read_bytes()
    with Image.open(picture) as image:
        assert image.size == (900, 32 + 97)
        pixels = np.asarray(image)
    with av.open(str(video_path(sample, 0))) as container:
        frames = [f.to_image() for f in container.decode(video=0)]
    # The name and the frames' numbers stand above them, in two lines.
    for frame, place in ((frames[0], slice(0, 146)), (frames[-1], slice(750, 896))):
        expected = np.asarray(frame.resize((146, 97), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pixels[32:, place], expected)
        assert pixels[16:32, place].min() == 0
    assert pixels[:16, :146].min() == 0


def test_contact_sheet_of_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="contains no videos"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")
