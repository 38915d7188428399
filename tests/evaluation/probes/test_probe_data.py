"""Folders of videos, labelled folders, and the training and test parts of probes."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep.clevrer.packing import pack
from ssl_vivit.data.provenance import pretraining_data
from ssl_vivit.data.video.clips import ClipConfig, too_short
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.loader import DataConfig, split_keys
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.video_folder import VideoFolder
from ssl_vivit.data.video.videos import CentralWindows, Chosen
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.probes.data import Part, Parts, ProbeData, not_unseen, open_parts
from ssl_vivit.evaluation.probes.labelled_videos import FolderLabels

ASSETS = Path(__file__).parents[2] / "assets"
CLIPS = sorted((ASSETS / "collision_clips").glob("*.mp4"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for i, clip in enumerate(CLIPS):
        folder = root / ("hit", "miss")[i % 2] / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)
    return root


def test_a_folder_lists_what_can_be_read_and_names_what_cannot():
    found = VideoFolder(ASSETS / "awkward_videos")
    assert found.keys == sorted(found.keys)
    assert "av1_video.mkv" in found.keys + list(found.broken)
    i = found.keys.index("h264_10bits.mp4")
    direct = decode_frames(ASSETS / "awkward_videos" / "h264_10bits.mp4", [0, 3])
    assert np.array_equal(found.frames(i, [0, 3]), direct)
    assert (found.heights[i], found.widths[i]) == direct.shape[1:3]


@pytest.mark.parametrize("short_videos", ["skip", "pad"])
def test_videos_too_short_for_any_of_the_clips_are_left_out_if_asked(short_videos):
    videos = SimpleNamespace(
        keys=["nine", *"abcde", "twelve"],
        num_frames=np.array([9, 30, 30, 30, 30, 30, 12]),
        fps=np.full(7, 25.0),
    )
    part = Part(videos, np.arange(7), None, 9, ProbeData(shards="a", short_videos=short_videos))
    clips = [ClipConfig(10, views=1), ClipConfig(4, frame_stride=4, views=1)]  # 10 and 13 frames
    parts, short = Parts(part, part._replace(indices=np.array([1, 6]))).long_enough(clips)
    assert short == ["nine", "twelve"]
    skipped = short_videos == "skip"
    assert parts.train.indices.tolist() == list(range(1, 6) if skipped else range(7))
    assert parts.test.indices.tolist() == ([1] if skipped else [1, 6])


def test_a_part_that_lacks_a_class_is_named(classes, caplog):
    parts = open_parts(ProbeData(folder=str(classes), held_out=0.4))
    keys = parts.test.videos.keys
    hits = np.array([i for i in range(len(keys)) if keys[i].startswith("hit/")])
    everything = parts.train._replace(indices=np.arange(len(keys)))
    Parts(everything, parts.test._replace(indices=hits)).long_enough([ClipConfig(8, views=1)])
    (line,) = caplog.messages
    assert line.startswith("the 4 test videos contain no video of the classes miss, so scores")


def test_too_few_training_videos_are_refused_before_features_are_computed():
    videos = SimpleNamespace(keys=list("abcde"), num_frames=np.full(5, 30), fps=np.full(5, 25.0))
    part = Part(videos, np.arange(4), None, 9, ProbeData(shards="a"))
    test = part._replace(indices=np.arange(4, 5))
    with pytest.raises(DataError, match="at least 5 training videos, but there are 4; give more"):
        Parts(part, test).long_enough([ClipConfig(8, views=1)])
    Parts(part._replace(indices=np.arange(5)), test).long_enough([ClipConfig(8, views=1)])


def test_classes_are_folder_names(classes):
    videos = VideoFolder(classes)
    labels = FolderLabels(videos)
    assert labels.classes == ["hit", "miss"]
    keys = [videos.keys[-1], videos.keys[0]]
    assert torch.equal(labels({"key": keys})["class"], torch.tensor([1, 0]))


def test_folders_without_classes_are_refused(tmp_path):
    shutil.copy(CLIPS[0], tmp_path)
    with pytest.raises(DataError, match=f"{CLIPS[0].name} is in no such folder"):
        FolderLabels(VideoFolder(tmp_path))
    (tmp_path / "one").mkdir()
    (tmp_path / CLIPS[0].name).rename(tmp_path / "one" / CLIPS[0].name)
    with pytest.raises(DataError, match="it has 1"):
        FolderLabels(VideoFolder(tmp_path))


@pytest.mark.parametrize("content", [None, "text", "broken"])
def test_folders_without_videos_are_refused(tmp_path, content):
    folder = tmp_path / "folder"
    if content:
        folder.mkdir()
        (folder / {"text": "a.txt", "broken": "a.mp4"}[content]).write_text("no video")
    message = {
        None: "is not a folder",
        "text": "contains no videos",
        "broken": "none of the 1 videos",
    }
    with pytest.raises(DataError, match=message[content]):
        VideoFolder(folder)


def test_parts_are_disjoint_and_draws_depend_on_the_seed(classes):
    parts = open_parts(ProbeData(folder=str(classes), held_out=0.5), 2, 2)
    assert not set(parts.train.indices) & set(parts.test.indices)
    assert len(parts.train.indices) + len(parts.test.indices) == len(CLIPS)
    drawn = [tuple(parts.train.drawn(seed, "train videos")) for seed in (0, 0, 1, 4, 5)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert all(list(d) == sorted(d) and len(d) <= 2 for d in drawn)


def test_other_files_in_a_folder_of_videos_are_counted(classes, tmp_path, caplog):
    shutil.copytree(classes, tmp_path / "classes")
    for name in ("a.txt", "b.txt", "c.jpg"):
        (tmp_path / "classes" / name).write_text("no video")
    open_parts(ProbeData(folder=str(tmp_path / "classes"), held_out=0.5))
    assert "passed over: 2 .txt files, 1 .jpg file" in caplog.messages


@pytest.mark.parametrize("held_out", [0.3, 0.5])
def test_a_folder_is_split_like_the_shards_packed_from_it(classes, tmp_path, held_out):
    """Pretraining on the shards held these videos out, so the probe may test on them."""
    pack(classes, tmp_path, size=(16, 16), workers=1, progress=False)
    shards = ShardSet(str(tmp_path / "*.tar"))
    kept, _ = split_keys(shards.keys, held_out)
    record = pretraining_data(DataConfig(shards=str(tmp_path), held_out=held_out), shards, kept, 0)
    parts = open_parts(ProbeData(folder=str(classes), held_out=held_out))
    trained = {shards.source(i) for i in kept}
    assert {parts.train.videos.source(i) for i in parts.train.indices} == trained
    assert not_unseen("e", {"data": record}, parts.test) is None
    less = open_parts(ProbeData(folder=str(classes), held_out=0.9))
    warning = not_unseen("e", {"data": record}, less.test)
    assert f"set --data.held_out {held_out} as in its pretraining" in warning
    assert warning.endswith("or give other videos by --data.folder")
    # If pretraining held out no video, no fraction selects videos that it did not see.
    everything = pretraining_data(
        DataConfig(shards=str(tmp_path), held_out=1e-6), shards, np.arange(len(shards)), 0
    )
    warning = not_unseen("e", {"data": everything}, less.test)
    assert "--data.held_out" not in warning
    assert warning.endswith("train e: give other videos by --data.folder")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--data.shards is not set"),
        ({"shards": "x", "folder": "y"}, "--data.folder and --data.shards are both set"),
        ({"test_shards": "x", "folder": "y"}, "--data.folder and --data.test_shards are both set"),
        ({"folder": "here", "held_out": 0.0}, "0 test videos; choose another fraction"),
    ],
)
def test_mistakes(classes, settings, message):
    settings = {k: str(classes) if v == "here" else v for k, v in settings.items()}
    with pytest.raises(DataError, match=message):
        open_parts(ProbeData(**settings))


def test_shards_without_annotations_name_the_command_that_adds_them(tmp_path):
    pack(ASSETS / "collision_clips", tmp_path, size=(16, 16), workers=1, progress=False)
    pattern = str(tmp_path / "*.tar")
    with pytest.raises(DataError, match=r"data_prep\.clevrer pack --annotations"):
        open_parts(ProbeData(shards=pattern))
    assert not ShardSet(pattern).has_annotation.any()


def test_one_video_in_training_and_test_shards_is_refused(tmp_path):
    """The video has another name and storage in the second shard."""
    for name, note in (("video_00001", "annotation_00001"), ("video_00002", "annotation_00002")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(CLIPS[0], folder / f"{name}.mp4")
        (folder / f"{note}.json").write_text("{}")
    pack(tmp_path / "video_00001", tmp_path / "a", tmp_path / "video_00001", frames=125,
         storage="original", workers=1, progress=False)  # fmt: skip
    pack(tmp_path / "video_00002", tmp_path / "b", tmp_path / "video_00002", frames=125,
         storage="h264", size=(32, 32), workers=1, progress=False)  # fmt: skip
    with pytest.raises(DataError, match="have 1 common videos, such as video_00002; give other"):
        open_parts(ProbeData(shards=str(tmp_path / "a"), test_shards=str(tmp_path / "b")))


class Uneven:
    """A wide and a tall video whose pixels encode their place."""

    def __init__(self):
        self.keys = ["wide", "tall"]
        self.num_frames, self.fps = np.array([9, 30]), np.array([10.0, 10.0])
        self.heights, self.widths = np.array([20, 80]), np.array([60, 30])
        self.has_annotation = np.zeros(2, bool)

    def __len__(self):
        return 2

    def frames(self, i, indices, size=None):
        height, width = size
        rows = np.linspace(0, 200, height)[:, None, None]
        return (
            np.broadcast_to(rows, (height, width, 3)).astype(np.uint8)[None].repeat(len(indices), 0)
        )


def test_windows_are_central_and_of_one_size():
    windows = CentralWindows(Uneven(), (10, 10))
    wide, tall = windows.frames(0, [0, 1]), windows.frames(1, [0])
    assert wide.shape == (2, 10, 10, 3)
    # The whole height of the wide one; of the tall one, scaled to 27×10, the middle ten rows.
    assert (wide[0, 0, 0, 0], wide[0, -1, 0, 0]) == (0, 200)
    assert (tall[0, 0, 0, 0], tall[0, -1, 0, 0]) == tuple(
        np.linspace(0, 200, 27)[[8, 17]].astype(np.uint8)
    )


def test_short_videos_are_named_and_left_out():
    videos = Uneven()
    assert list(too_short(videos, ClipConfig(num_frames=5, frame_stride=2, views=1))) == []
    short = too_short(videos, ClipConfig(num_frames=5, frame_stride=2, views=2))
    assert list(short) == [0]
    assert "has 9 frames" in short[0]
    rest = Chosen(videos, np.array([1]))
    assert (rest.keys, rest.num_frames.tolist()) == (["tall"], [30])
