"""The index of a shard and the shard's measures, compared with the members of the shard."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.shards.build import build_index
from ssl_vivit.data.video.shards.index import parse_index, save_index
from ssl_vivit.errors import DataError, DecodingError

LEVELS = 251  # a prime, so that numbers in the order of text differ from those in order


def jpeg(level, size=(8, 8)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def pictures(key, total, digits=4, start=0, **changes):
    """Return the members of a JPEG sample in the order of their names, as webdataset writes them."""
    levels = [jpeg(level) for level in range(LEVELS)]
    members = {f"{key}.{i:0{digits}d}.jpg": levels[(start + i) % LEVELS] for i in range(total)}
    measures = {"num_frames": total, "height": 8, "width": 8, "fps": 25, "storage": "jpeg"}
    members[f"{key}.video.json"] = json.dumps(measures | changes).encode()
    return sorted(members.items())


def written_before(path):
    """Return the index that earlier versions wrote."""
    samples = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            key, _, extension = entry.name.partition(".")
            sample = samples.setdefault(key, {"key": key, "members": {}})
            content = tar.extractfile(entry).read()
            sample["members"][extension] = [entry.offset_data, entry.size, zlib.crc32(content)]
            if extension == "video.json":
                sample.update(json.loads(content))
    return {
        "format": "ssl_vivit.shard_index",
        "version": 1,
        "bytes": path.stat().st_size,
        "samples": list(samples.values()),
        "left_out": {},
    }


@pytest.mark.parametrize("make", [build_index, written_before])
@pytest.mark.parametrize(("total", "digits"), [(12, 1), (10_002, 4)])
def test_frames_come_by_their_number(tmp_path, make, total, digits):
    """Frame numbers with different numbers of digits are not in the order of names."""
    tar = tmp_path / "s.tar"
    write_tar(tar, pictures("long", total, digits))
    save_index(make(tar), tar.with_suffix(".json"))
    levels = ShardSet(str(tar)).frames(0, range(total))[:, 4, 4, 0].astype(int)
    assert np.abs(levels - np.arange(total) % LEVELS).max() <= 2


@pytest.fixture
def two(tmp_path):
    """Return a shard with two JPEG samples, a and b, of 5 frames each."""
    tar = tmp_path / "two.tar"
    write_tar(tar, [*pictures("a", 5), *pictures("b", 5, start=100)])
    save_index(build_index(tar), tar.with_suffix(".json"))
    return tar


def changed(tar, change):
    """Change the index of a shard by hand."""
    path = tar.with_suffix(".json")
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    return path


def set_in_a(**values):
    return lambda index: index["samples"][0].update(values)


def set_member(name, place):
    return lambda index: index["samples"][0]["members"].update({name: place})


def take_frame_of_b(index):
    a, b = (sample["members"] for sample in index["samples"])
    a["0004.jpg"] = b["0000.jpg"]


def take_part_of_b(index):
    a, b = (sample["members"] for sample in index["samples"])
    a["0004.jpg"][1] = b["0000.jpg"][0] + 10 - a["0004.jpg"][0]


def drop_frame(index):
    del index["samples"][0]["members"]["0002.jpg"]


def renumber(index):
    members = index["samples"][0]["members"]
    members["7.jpg"] = members.pop("0002.jpg")


CLAIMS = {
    "more frames than members": (
        set_in_a(num_frames=9),
        "num_frames is 9, but the sample contains 5",
    ),
    "fewer frames than members": (
        set_in_a(num_frames=3),
        "num_frames is 3, but the sample contains 5",
    ),
    "a frame fewer": (drop_frame, "num_frames is 5, but the sample contains 4"),
    "a gap": (renumber, "the 5 frames are not numbered from 0 to 4"),
    "another's frame": (take_frame_of_b, "members of a and b overlap"),
    "a part of another": (take_part_of_b, "members of a overlap"),
    "beyond the tar": (set_member("0001.jpg", [10**9, 9, 9]), "beyond the .* bytes of the tar"),
    "past any tar": (set_member("0001.jpg", [2**63 - 1, 9, 9]), "beyond the .* bytes of the tar"),
    "a negative offset": (set_member("0001.jpg", [-5, 9, 9]), "out of range"),
    "a CRC of 33 bits": (set_member("0001.jpg", [512, 9, 2**32]), "out of range"),
    "an offset in words": (set_member("0001.jpg", ["x", 9, 9]), "members is not a mapping"),
    "an offset of 100 digits": (set_member("0001.jpg", [10**99, 9, 9]), "members is not a mapping"),
    "half an offset": (set_member("0001.jpg", [0.5, 9, 9]), "members is not a mapping"),
    "a pair": (set_member("0001.jpg", [512, 9]), "members is not a mapping"),
    "members in a list": (set_in_a(members=[]), "members is not a mapping"),
    "no members": (set_in_a(members={}), "members is not a mapping"),
    "frames in words": (set_in_a(num_frames="5"), "num_frames is '5', not a whole number"),
    "frames yes": (set_in_a(num_frames=True), "num_frames is True, not a whole number"),
    "no frames": (set_in_a(num_frames=0), "num_frames is 0, not a whole number"),
    "no height": (set_in_a(height=None), "height is None, not a whole number"),
    "a height of a billion": (set_in_a(height=10**9), "height is 1000000000, not a whole number"),
    "no rate": (set_in_a(fps=float("nan")), "fps is nan, not a number"),
    "a rate backward": (set_in_a(fps=-1), "fps is -1, not a number"),
    "a rate of 400 digits": (set_in_a(fps=10**400), "fps is 10+…, not a number"),
    "unknown storage": (set_in_a(storage=["jpeg"]), "storage is .*, not one of original, h264"),
    "a video that is none": (set_in_a(storage="h264"), "the sample contains no video file"),
    "two videos": (
        set_in_a(storage="original", members={"01.mp4": [512, 99, 1], "02.mp4": [1024, 99, 1]}),
        r"the sample contains 2 video files \(01.mp4, 02.mp4\)",
    ),
    "a number as source": (set_in_a(source=7), "source is 7, not a string"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_index_that_its_members_do_not_bear_out_is_refused(two, claim):
    change, message = CLAIMS[claim]
    changed(two, change)
    with pytest.raises(
        DataError, match=rf"two\.json: (sample a.*)?{message}.*clevrer index"
    ) as told:
        ShardSet(str(two))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["samples"][1].update(key=""), "the key of sample 1 is '', not a name"),
        (lambda i: i["samples"][1].pop("key"), "the key of sample 1 is None, not a name"),
        (lambda i: i.update(samples={}), "samples is not a list"),
        (lambda i: i.update(samples=[1]), "samples is not a list"),
        (lambda i: i.pop("bytes"), "bytes is None, not the size"),
        (
            lambda i: i.update(bytes=10**30),
            "bytes is 1000000000000000000000000000000, not the size",
        ),
        (lambda i: i.update(left_out=[]), "left_out is not a mapping"),
        (lambda i: i["samples"][1].update(key="a"), "sample a is in .*two.* and again in"),
    ],
)
def test_fields_of_the_index_itself(two, change, message):
    changed(two, change)
    with pytest.raises(DataError, match=message):
        ShardSet(str(two))


def test_fields_that_are_not_known_pass(two):
    changed(two, lambda index: (index.update(made_by="x"), set_in_a(mood="calm")(index)))
    assert len(ShardSet(str(two))) == 2


@pytest.mark.parametrize("text", [b"[1]", b"[" * 100_000, b"\xff\xfe", b"", b"null", b"7"])
def test_texts_that_are_not_an_index(text):
    with pytest.raises(DataError, match=r"x\.json is not a shard index; make the index with"):
        parse_index(text, "x.json")


def test_pictures_of_another_size_than_the_index_states(two):
    """Pictures are not resized to the stated size, and no memory is allocated for it."""
    changed(two, set_in_a(height=60_000, width=60_000))
    shards = ShardSet(str(two))
    with pytest.raises(DecodingError, match=r"a in .*8×8 pixels, but the index says 60000×60000"):
        shards.frames(0, [0])
    assert shards.frames(0, [0, 1], (4, 4)).shape == (2, 4, 4, 3)
    assert shards.frames(1, [], None).shape == (0, 8, 8, 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_frames": 7}, "num_frames is 7, but the sample contains 5 frames"),
        ({"num_frames": "5"}, "num_frames is '5'"),
        ({"num_frames": 5.0}, "num_frames is 5.0"),
        ({"width": 9}, "its frames have 8×8 pixels, but its video.json says 8×9"),
        ({"storage": "h264"}, "the sample contains no video file"),
        ({"fps": None}, "fps is None"),
    ],
)
def test_measures_in_a_tar_are_compared_with_the_frames(tmp_path, changes, reason):
    tar = tmp_path / "s.tar"
    write_tar(tar, [*pictures("good", 5), *pictures("wrong", 5, **changes)])
    index = build_index(tar)
    assert [sample["key"] for sample in index["samples"]] == ["good"]
    ((name, why),) = index["left_out"].items()
    assert name == "wrong.video.json"
    assert reason in why


@pytest.mark.parametrize("measures", [b"[]", b"{", b"null", b"\xff", b"[" * 100_000])
def test_measures_that_are_none(tmp_path, measures):
    tar = tmp_path / "s.tar"
    members = dict(pictures("wrong", 5)) | {"wrong.video.json": measures}
    write_tar(tar, [*pictures("good", 5), *members.items()])
    index = build_index(tar)
    assert [sample["key"] for sample in index["samples"]] == ["good"]
    assert list(index["left_out"]) == ["wrong.video.json"]


def test_only_an_index_is_replaced(two):
    path = two.with_suffix(".json")
    index = build_index(two)
    save_index(index, path)
    for text in ('{"caption": "mine"}', "", "[]", "not JSON"):
        path.write_text(text)
        with pytest.raises(
            DataError, match=r"two\.json is not a shard index and is not overwritten"
        ):
            save_index(index, path)
        assert path.read_text() == text
    path.unlink()
    Path(path).mkdir()
    with pytest.raises(DataError, match="is not overwritten"):
        save_index(index, path)
