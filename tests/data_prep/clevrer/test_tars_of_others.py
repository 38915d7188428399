"""Tars of other tools: each member is read, or named with the reason why it is not."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from data_prep.clevrer import pack, verify
from data_prep.clevrer.__main__ import main
from data_prep.clevrer.storage import encode_h264
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.shards.build import build_index


def film(number):
    """Encode a distinct video of 4 + ``number`` frames."""
    frames = np.full((4 + number, 16, 24, 3), 40 + 20 * number, np.uint8)
    return encode_h264(frames, 10)


FILMS = [film(number) for number in range(4)]


def note(number):
    return json.dumps({"number": number}).encode()


def write_tar(path, members, **options):
    """Write (name, content) in this order; a string as content makes a link to it."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def indexed(path):
    """Return key → frames and annotation of each sample, and the members that were left out."""
    assert main(["index", str(path)]) == 0
    shards = ShardSet(str(path))
    assert verify(str(path), progress=False) == {}
    found = {}
    for i, key in enumerate(shards.keys):
        number = int(shards.num_frames[i]) - 4
        np.testing.assert_array_equal(
            shards.frames(i, [0, 3]), decode_frames(FILMS[number], [0, 3])
        )
        annotation = shards.annotation(i)
        found[key] = (number, annotation and annotation["number"])
    return found, json.loads(path.with_suffix(".json").read_text())["left_out"]


def test_names_with_dots(tmp_path):
    names = ["2023.01.01.mp4", "2023.01.02.mp4", "clip_0.5_1.MP4", "v1.2/clip.mp4"]
    found, left_out = indexed(write_tar(tmp_path / "s.tar", zip(names, FILMS, strict=True)))
    assert found == {name[:-4]: (i, None) for i, name in enumerate(names)}
    assert left_out == {}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    names = ["x" * 120 + ".mp4", "ü" * 80 + "/a.mp4"]
    path = write_tar(tmp_path / "s.tar", zip(names, FILMS, strict=False), format=form)
    assert indexed(path) == ({name[:-4]: (i, None) for i, name in enumerate(names)}, {})


def test_separated_members_of_a_sample_are_joined(tmp_path):
    members = [("q.json", note(1)), ("p.mp4", FILMS[0]), ("q.mp4", FILMS[1]), ("p.json", note(0))]
    assert indexed(write_tar(tmp_path / "s.tar", members)) == ({"p": (0, 0), "q": (1, 1)}, {})


def test_two_videos_under_one_webdataset_key(tmp_path):
    """An annotation belongs to the video of its name, or to the only video of webdataset's key."""
    members = [
        ("k.left.mp4", FILMS[0]),
        ("k.right.mp4", FILMS[1]),
        ("k.right.json", note(1)),
        ("k.json", note(9)),
        ("single.video.mp4", FILMS[2]),
        ("single.json", note(2)),
    ]
    found, left_out = indexed(write_tar(tmp_path / "s.tar", members))
    assert found == {"k.left": (0, None), "k.right": (1, 1), "single.video": (2, 2)}
    assert left_out == {"*.json": "k.json belongs to no sample"}


def test_a_name_twice_is_read_as_tar_unpacks_it(tmp_path):
    members = [("k.mp4", FILMS[0]), ("k.json", note(0)), ("j.mp4", FILMS[2]), ("k.mp4", FILMS[1])]
    path = write_tar(tmp_path / "s.tar", members)
    subprocess.run(["tar", "-xf", path, "k.mp4"], cwd=tmp_path, check=True)
    assert (tmp_path / "k.mp4").read_bytes() == FILMS[1]
    found, left_out = indexed(path)
    assert found == {"k": (1, 0), "j": (2, None)}
    assert list(left_out) == ["k.mp4"]
    assert "more than once; the last copy is read" in left_out["k.mp4"]


def test_one_name_with_two_endings(tmp_path):
    members = [("a.mp4", FILMS[0]), ("a.mkv", FILMS[1])]
    found, left_out = indexed(write_tar(tmp_path / "s.tar", members))
    assert found == {"a": (0, None)}
    assert left_out == {"a.mkv": "a.mp4 has the same key and is used instead"}


def test_links_and_holes(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(FILMS[0])
    os.link(folder / "a.mp4", folder / "b.mp4")
    os.symlink("a.mp4", folder / "c.mp4")
    os.symlink("/nowhere.mp4", folder / "d.mp4")
    with open(folder / "e.mp4", "wb") as file:
        file.write(FILMS[1])
        file.truncate(10 << 20)
    os.mkfifo(folder / "f.mp4")
    tar = tmp_path / "s.tar"
    subprocess.run(["tar", "--sort=name", "-Scf", tar, "."], cwd=folder, check=True)
    found, left_out = indexed(tar)
    assert found == {"./a": (0, None)}
    assert left_out.keys() == {f"./{name}.mp4" for name in "bcdef"}
    assert left_out["./b.mp4"].startswith("is a link to ./a.mp4; to store the file")
    assert left_out["./e.mp4"] == left_out["./f.mp4"] == "is a sparse or special file"


def test_other_files_are_counted_by_their_ending(tmp_path, capsys):
    members = [
        ("a.mp4", FILMS[0]),
        ("a.txt", b"x"),
        ("b.txt", b"x"),
        ("v.npy", b"x"),
        ("LICENSE", b""),
    ]
    members += [(f"v.{i}.jpg", b"x") for i in range(12)]
    tar = write_tar(tmp_path / "s.tar", members)
    found, left_out = indexed(tar)
    assert found == {"a": (0, None)}
    assert left_out == {
        "*.txt": "2 files with this ending, such as a.txt, belong to no sample",
        "*.npy": "v.npy belongs to no sample",
        "no ending": "LICENSE belongs to no sample",
        "*.jpg": "12 files with this ending, such as v.0.jpg, belong to no sample",
    }
    assert f"*.jpg in {tar}: 12 files with this ending" in capsys.readouterr().err
    bare = write_tar(tmp_path / "bare.tar", members[5:])
    assert main(["index", str(bare)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "bare.tar contains no readable video: *.jpg: 12 files with this ending, such as v.0.jpg"
        in line
    )


def test_names_that_are_not_utf8(tmp_path, capsys):
    members = [("\xe9.mp4", FILMS[0]), ("\xe8.mp4", b"junk")]
    options = {"format": tarfile.GNU_FORMAT, "encoding": "latin-1"}
    found, left_out = indexed(write_tar(tmp_path / "s.tar", members, **options))
    assert found == {r"\xe9": (0, None)}
    assert list(left_out) == [r"\xe8.mp4"]
    assert r"\xe8.mp4 in" in capsys.readouterr().err


def test_a_tar_that_is_damaged_between_members(tmp_path, capsys):
    """tarfile treats an unreadable header as the end of the archive."""
    tar = write_tar(tmp_path / "s.tar", [("a.mp4", FILMS[0]), ("b.mp4", FILMS[1])])
    content = bytearray(tar.read_bytes())
    content[content.index(b"b.mp4")] ^= 1
    tar.write_bytes(content)
    with tarfile.open(tar) as opened:
        assert opened.getnames() == ["a.mp4"]
    assert main(["index", str(tar)]) == 2
    assert "not a complete, uncompressed tar: the bytes after" in capsys.readouterr().err


def test_tars_joined_without_tar(tmp_path, capsys):
    one, other = (write_tar(tmp_path / f"{i}.tar", [(f"{i}.mp4", FILMS[i])]) for i in range(2))
    (tmp_path / "cat.tar").write_bytes(one.read_bytes() + other.read_bytes())
    assert main(["index", str(tmp_path / "cat.tar")]) == 2
    assert "tars were joined without tar -A" in capsys.readouterr().err
    subprocess.run(["tar", "-Af", one, other], check=True)
    assert indexed(one) == ({"0": (0, None), "1": (1, None)}, {})


def test_a_tar_cut_off_between_members(tmp_path):
    tar = write_tar(tmp_path / "s.tar", [("a.mp4", FILMS[0]), ("b.mp4", FILMS[1])])
    os.truncate(tar, tar.read_bytes().index(b"b.mp4"))
    found, left_out = indexed(tar)
    assert found == {"a": (0, None)}
    assert left_out == {
        "s.tar": "the tar has no end mark; it may be truncated after its last member"
    }


def test_a_file_of_the_user_with_the_name_of_the_index_stays(tmp_path, capsys):
    tar = write_tar(tmp_path / "s.tar", [("a.mp4", FILMS[0])])
    (tmp_path / "s.json").write_text('{"captions": []}')
    assert main(["index", str(tar)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "s.json is not a shard index and is not overwritten; move it elsewhere" in line
    assert (tmp_path / "s.json").read_text() == '{"captions": []}'


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "films"
    made.mkdir()
    for number, content in enumerate(FILMS):
        (made / f"film{number}.mp4").write_bytes(content)
    return made


def test_packing_leaves_a_file_of_the_user_too(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "films-000000.json").write_text("[]")
    words = ["pack", "--videos", str(folder), "--out", str(out), "--workers", "1"]
    assert main(words) == 2
    assert (
        "films-000000.json is not a shard index and is not overwritten" in capsys.readouterr().err
    )
    assert (out / "films-000000.json").read_text() == "[]"


@pytest.mark.parametrize("storage", ["original", "h264", "jpeg"])
def test_verify_compares_the_index_with_the_tar(folder, tmp_path, storage):
    """One of three samples states too few frames, and two have exchanged bytes."""
    pack(folder, tmp_path / "out", storage=storage, workers=1, progress=False)
    (path,) = (tmp_path / "out").glob("*0.json")
    whole = json.loads(path.read_text())
    first, second, third, _ = whole["samples"]
    first["num_frames"] = 3
    if storage == "jpeg":
        first["members"] = {
            name: place for name, place in first["members"].items() if name != "0003.jpg"
        }
    second["key"], third["key"] = third["key"], second["key"]
    path.write_text(json.dumps(whole))
    failures = verify(str(tmp_path / "out"), progress=False)
    assert failures.keys() == {"film0", "film1", "film2"}
    assert failures["film0"] == "the tar has 4 frames of the sample, but the index entry says 3"
    assert "the index entry points to film1." in failures["film2"]
    assert "the index entry points to film2." in failures["film1"]


def test_verify_distinguishes_a_longer_name_of_another_video(tmp_path):
    tar = tmp_path / "t.tar"
    write_tar(tar, [("a.mp4", film(1)), ("a.b.mp4", film(2))])
    index = build_index(tar)
    first, second = index["samples"]
    first["members"] = second["members"]
    index["samples"] = [first]
    tar.with_suffix(".json").write_text(json.dumps(index))
    assert verify(str(tar), progress=False) == {"a": "the index entry points to a.b.mp4"}


def test_the_source_is_a_hash_of_the_file(folder, tmp_path):
    """The source is the start of the file's SHA-256, in each storage and in plain tars."""
    printed = subprocess.run(
        ["sha256sum", *sorted(folder.iterdir())], capture_output=True, text=True, check=True
    )
    expected = [line[:16] for line in printed.stdout.splitlines()]
    for storage in ("original", "h264", "jpeg"):
        pack(folder, tmp_path / storage, storage=storage, workers=1, progress=False)
        shards = ShardSet(str(tmp_path / storage))
        assert [shards.source(i) for i in range(4)] == expected
    subprocess.run(["tar", "--sort=name", "-cf", "../plain.tar", "."], cwd=folder, check=True)
    plain = build_index(tmp_path / "plain.tar")
    assert [sample["source"] for sample in plain["samples"]] == expected


def test_shards_stay_readable_without_the_project(folder, tmp_path):
    """The tar contains the hash too, so the index can be rebuilt from it."""
    pack(folder, tmp_path / "out", storage="h264", workers=1, progress=False)
    (tar,) = (tmp_path / "out").glob("*.tar")
    shutil.move(tar, tmp_path / "moved.tar")
    found, left_out = indexed_keys(tmp_path / "moved.tar")
    assert found == [f"film{i}" for i in range(4)]
    assert left_out == {}


def indexed_keys(path):
    assert main(["index", str(path)]) == 0
    return ShardSet(str(path)).keys, json.loads(path.with_suffix(".json").read_text())["left_out"]
