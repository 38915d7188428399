"""Which test videos a recorded run may have trained on."""

import json
import shutil

import numpy as np
import pytest

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render
from ssl_vivit.data.provenance import pretraining_data, trained_on
from ssl_vivit.data.video.loader import DataConfig, split_keys
from ssl_vivit.data.video.shards import ShardSet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same twelve videos packed twice in three shards, others of the same names, and bare ones."""
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


def test_it_says_what_was_given(folder):
    made = record(folder, "packed", 0.3)
    assert (made["held_out"], made["seed"]) == (0.3, 3)
    assert made["shards"].endswith("packed/*.tar")
    assert made["videos"] == len(split_keys(opened(folder, "packed").keys, 0.3)[0])
    assert len(made["contents"]) == 3


@pytest.mark.parametrize("name", ["packed", "smaller", "bare"])
def test_videos_that_were_not_held_out_may_have_been_seen(folder, name):
    """However they are packed; where a shard has no annotations its name alone tells."""
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


def test_shards_of_other_names_were_not_seen(folder, tmp_path):
    pack(folder / "ours", tmp_path, folder / "ours", frames=16, workers=1, progress=False,
         prefix="clevrer-test")  # fmt: skip
    assert trained_on(record(folder, "packed", 0.0), ShardSet(str(tmp_path)), range(12)) == 0


def test_a_digest_is_of_the_contents_wherever_they_lie(folder, tmp_path):
    packed = opened(folder, "packed")
    shutil.copytree(folder / "packed", tmp_path / "moved")
    names = sorted(str(path) for path in (tmp_path / "moved").glob("*.tar"))
    assert ShardSet(names).digest() == packed.digest()
    # Fewer shards, another order, the videos in another size, others of the same names, no annotations.
    for others in (names[:2], names[::-1]):
        assert ShardSet(others).digest() != packed.digest()
    for name in ("smaller", "namesakes", "bare"):
        assert opened(folder, name).digest() != packed.digest()
