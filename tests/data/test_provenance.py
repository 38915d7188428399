"""Provenance: test videos on which a recorded run may have been trained."""

import json
import shutil

import numpy as np
import pytest

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from ssl_vivit.data.provenance import pretraining_data, trained_on
from ssl_vivit.data.video.loader import DataConfig, split_keys
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.video_folder import VideoFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of twelve videos, packed in two ways; other videos of equal names; videos without a source."""
    root = tmp_path_factory.mktemp("recorded")
    for name, seed in (("ours", 0), ("others", 1)):
        render(root / name, 12, size=(24, 36), num_frames=16, workers=1, progress=False, seed=seed)
    for name, videos, size, annotations in (
        ("packed", "ours", None, "ours"),
        ("smaller", "ours", (16, 24), "ours"),
        ("namesakes", "others", None, "others"),
        ("bare", "ours", None, None),
    ):
        pack(
            root / videos, root / name, annotations and root / annotations, frames=16, workers=1,
            progress=False, size=size, samples_per_shard=4,
        )  # fmt: skip
    return root


def opened(folder, name):
    return ShardSet(str(folder / name / "*.tar"))


def record(folder, name, held_out):
    videos = opened(folder, name)
    config = DataConfig(shards=str(folder / name / "*.tar"), held_out=held_out)
    made = pretraining_data(config, videos, split_keys(videos.keys, held_out)[0], seed=3)
    return json.loads(json.dumps(made))


def test_the_record_contains_the_given_settings(folder):
    made = record(folder, "packed", 0.3)
    assert (made["held_out"], made["seed"]) == (0.3, 3)
    assert made["shards"].endswith("packed/*.tar")
    assert made["videos"] == len(split_keys(opened(folder, "packed").keys, 0.3)[0])
    assert len(made["contents"]) == 3


@pytest.mark.parametrize("name", ["packed", "smaller", "bare"])
def test_videos_that_were_not_held_out_may_have_been_seen(folder, name):
    """The check does not depend on packing; without annotations it uses the name of the video."""
    made, videos = record(folder, "packed", 0.3), opened(folder, name)
    kept, held_out = split_keys(videos.keys, 0.3)
    assert 0 < len(held_out) < 12
    assert trained_on(made, videos, np.arange(12)) == len(kept)
    assert trained_on(made, videos, held_out) == 0
    _, more = split_keys(videos.keys, 0.8)
    assert trained_on(made, videos, more) == len(more) - len(held_out) > 0
    assert trained_on(record(folder, name, 0.3), opened(folder, "packed"), kept) == len(kept)


def test_other_videos_in_shards_of_the_same_names_were_not_seen(folder):
    assert trained_on(record(folder, "packed", 0.3), opened(folder, "namesakes"), range(12)) == 0


@pytest.mark.parametrize("storage", ["original", "h264", "jpeg"])
def test_copies_under_other_names_are_recognised_by_content(folder, tmp_path, storage):
    """The copies have other storage, shards and keys; some shards hold only a part of the videos."""
    for path in sorted((folder / "ours").rglob("*.mp4"))[3:9]:
        (tmp_path / "some").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "some" / f"renamed.{path.name}")
    pack(tmp_path / "some", tmp_path / "copies", storage=storage, workers=1, progress=False,
         samples_per_shard=5)  # fmt: skip
    copies = opened(tmp_path, "copies")
    original = opened(folder, "packed").keys
    assert not set(copies.keys) & set(original)
    kept = {original[i] for i in split_keys(original, 0.5)[0]}
    seen = sum(key.removeprefix("renamed_") in kept for key in copies.keys)
    assert 0 < seen < 6
    assert trained_on(record(folder, "packed", 0.5), copies, range(6)) == seen
    assert trained_on(record(folder, "packed", 0.0), copies, range(6)) == 6
    assert trained_on(record(folder, "packed", 0.0), VideoFolder(tmp_path / "some"), range(6)) == 6
    assert trained_on(record(folder, "namesakes", 0.0), copies, range(6)) == 0


def test_rendering_again_gives_videos_that_were_seen(folder, tmp_path):
    """The sample of the demo and a first rendering by a user have equal seeds."""
    render(tmp_path / "mine", 5, size=(24, 36), num_frames=16, workers=1, progress=False, seed=0)
    pack(tmp_path / "mine", tmp_path / "shards", frames=16, workers=1, progress=False,
         prefix="mine")  # fmt: skip
    assert trained_on(record(folder, "packed", 0.0), opened(tmp_path, "shards"), range(5)) == 5


def without_sources(folder, name, target):
    """Return a copy of shards with the indexes of earlier versions."""
    shutil.copytree(folder / name, target / name)
    for path in (target / name).glob("*-0*.json"):
        index = json.loads(path.read_text())
        for sample in index["samples"]:
            del sample["source"]
        path.write_text(json.dumps(index))
    return target


def test_names_identify_videos_without_hashes(folder, tmp_path):
    old = without_sources(folder, "packed", tmp_path)
    earlier, made = record(old, "packed", 0.3), record(folder, "packed", 0.3)
    assert made["sources"]
    assert not earlier.pop("sources")
    kept, _ = split_keys(opened(folder, "packed").keys, 0.3)
    for each, place in ((earlier, folder), (made, old), (earlier, old)):
        assert trained_on(each, opened(place, "packed"), range(12)) == len(kept)
        assert trained_on(each, opened(folder, "namesakes"), range(12)) == 0


def test_the_record_stays_small(folder):
    assert len(json.dumps(record(folder, "packed", 0.0)["sources"])) <= 20 * 12


def test_a_digest_depends_on_contents_and_not_on_the_path(folder, tmp_path):
    packed = opened(folder, "packed")
    shutil.copytree(folder / "packed", tmp_path / "moved")
    names = sorted(str(path) for path in (tmp_path / "moved").glob("*.tar"))
    assert ShardSet(names).digest() == packed.digest()
    # Fewer shards, another order, the videos in another size, others of the same names, no annotations.
    for others in (names[:2], names[::-1]):
        assert ShardSet(others).digest() != packed.digest()
    for name in ("smaller", "namesakes", "bare"):
        assert opened(folder, name).digest() != packed.digest()
