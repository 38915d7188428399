"""verify, info, index and the contact sheet, on intact, damaged and foreign shards."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.clevrer import channel_statistics, contact_sheet, info, pack, verify
from data_prep.clevrer.__main__ import main
from data_prep.clevrer.storage import encode_h264
from recipes.simclr_clevrer import SimCLRRecipe
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.training import parse

ASSETS = Path(__file__).parents[2] / "assets"


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    y, x = np.mgrid[:32, :48]
    for number in range(4):
        frames = np.stack(
            [np.stack([x * 5, y * 8, x * 0 + 8 * (t + number)], -1) for t in range(10)]
        )
        (folder / f"clip{number}.mp4").write_bytes(encode_h264(frames.astype(np.uint8), 20))
    return folder


def packed(videos, storage):
    out = videos.parent / storage
    pack(videos, out, storage=storage, samples_per_shard=2, workers=1, progress=False)
    return out


def flip_a_byte(shards, key, extension):
    for index in shards.glob("*-0*.json"):
        for sample in json.loads(index.read_text())["samples"]:
            if sample["key"] == key:
                offset, size, _ = sample["members"][extension]
                tar = index.with_suffix(".tar")
                content = bytearray(tar.read_bytes())
                content[offset + size // 2] ^= 1
                tar.write_bytes(content)


@pytest.mark.parametrize(
    ("storage", "extension"), [("original", "mp4"), ("h264", "mp4"), ("jpeg", "0004.jpg")]
)
def test_verify_names_what_is_broken(videos, capsys, storage, extension):
    shards = packed(videos, storage)
    assert verify(str(shards), progress=False) == {}
    assert main(["verify", str(shards)]) == 0
    flip_a_byte(shards, "clip1", extension)
    flip_a_byte(shards, "clip2", extension)
    assert list(verify(str(shards), progress=False, workers=2)) == ["clip1", "clip2"]
    capsys.readouterr()
    assert main(["verify", str(shards)]) == 1
    errors = capsys.readouterr().err
    assert "broken: 2" in errors
    assert errors.count("CRC") == 2


def test_verify_decodes_every_frame(videos):
    """verify reports a truncated video whose bytes agree with the index."""
    shards = videos.parent / "foreign"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        tar.add(videos / "clip0.mp4", "good.mp4")
        tar.add(ASSETS / "awkward_videos/corrupted.mp4", "broken.mp4")
    assert main(["index", str(shards / "a.tar")]) == 0
    failures = verify(str(shards), progress=False)
    assert list(failures) == ["broken"]
    assert "breaks after 28 of 50 frames" in failures["broken"]


def test_info_counts(videos, capsys):
    shards = packed(videos, "jpeg")
    facts = info(str(shards))
    assert facts.pop("megabytes") > 0
    assert facts == {
        "shards": 2,
        "samples": 4,
        "annotated": 0,
        "hours": round(4 * 10 / 20 / 3600, 3),
        "storage": {"jpeg": 4},
        "size": {"32x48": 4},
        "frames": {10: 4},
        "fps": {20.0: 4},
    }
    assert main(["info", str(shards)]) == 0
    assert "32x48 (4)" in capsys.readouterr().out


def test_statistics_equal_a_loop_over_pixels(videos, capsys):
    shards = packed(videos, "original")
    values: list[list[float]] = [[], [], []]
    for video in (0, 2, 3):  # of 4 videos 0, 1.5 and 3
        for frame in decode_frames(videos / f"clip{video}.mp4", [0, 3, 6, 9]):
            for row in frame.tolist():
                for pixel in row:
                    for channel, value in enumerate(pixel):
                        values[channel].append(value / 255)
    found = channel_statistics(str(shards), videos=3, frames=4)
    assert (found.videos, found.frames) == (3, 12)
    for channel, numbers in enumerate(values):
        mean = sum(numbers) / len(numbers)
        variance = sum((value - mean) ** 2 for value in numbers) / len(numbers)
        assert found.mean[channel] == pytest.approx(mean, rel=1e-9)
        assert found.std[channel] == pytest.approx(variance**0.5, rel=1e-9)
    assert len({round(value, 3) for value in (*found.mean, *found.std)}) == 6

    # The printed options are read by the recipes.
    assert main(["info", str(shards), "--statistics"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    name, *options = line.partition(" (")[0].split()
    assert name == "statistics"
    assert line.endswith("(16 frames of 4 videos)")
    data = parse(SimCLRRecipe, options).data
    whole = channel_statistics(str(shards))
    assert data.mean == pytest.approx(whole.mean, abs=1e-4)
    assert data.std == pytest.approx(whole.std, abs=1e-4)


def test_statistics_weigh_frames_of_all_sizes_equally(tmp_path):
    (tmp_path / "v").mkdir()
    for name, size, value in (("a", 16, 0), ("b", 64, 255)):
        frames = np.full((2, size, size, 3), value, np.uint8)
        (tmp_path / "v" / f"{name}.mp4").write_bytes(encode_h264(frames, 25))
    pack(tmp_path / "v", tmp_path / "s", workers=1, progress=False)
    found = channel_statistics(str(tmp_path / "s"))
    assert (found.videos, found.frames) == (2, 4)
    assert found.mean == pytest.approx([0.5] * 3, abs=0.005)
    assert found.std == pytest.approx([0.5] * 3, abs=0.005)


def test_contact_sheet_shows_the_frames(videos, tmp_path):
    shards = packed(videos, "original")
    sheet = tmp_path / "sheet.png"
    contact_sheet(str(shards), sheet, videos=3, frames=4)
    picture = np.asarray(Image.open(sheet))
    # Two lines of text above frames of 32x48 that are resized to a quarter of the page, less a gap.
    assert picture.shape == (3 * (32 + 147), 900, 3)
    # Of 4 videos rows 0, 1.5 and 3, of 10 frames columns 0, 3, 6 and 9.
    for row, video in enumerate((0, 2, 3)):
        expected = decode_frames(videos / f"clip{video}.mp4", [0, 3, 6, 9], (32, 48))
        name, numbers, shown = np.split(picture[row * 179 : (row + 1) * 179], (16, 32))
        assert name[:, :225].min() == 0
        for column in range(4):
            place = slice(column * 225, (column + 1) * 225)
            assert numbers[:, place].min() == 0
            frame = Image.fromarray(expected[column]).resize((221, 147), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(shown[:, place][:, :221], np.asarray(frame))
            assert (shown[:, place][:, 221:] == 255).all()
    assert main(["info", str(shards), "--contact-sheet", str(sheet / "s.png")]) == 2


def test_index_makes_foreign_tars_readable(videos, tmp_path, capsys):
    tar = tmp_path / "foreign.tar"
    with tarfile.open(tar, "w") as made:
        for name in ("folder/a.left.mp4", "b.mp4"):
            made.add(videos / "clip0.mp4", name)
        made.add(ASSETS / "awkward_videos/h265_video.mp4", "c.mp4")
        junk = tmp_path / "junk"
        junk.write_bytes(b"junk")
        for name in ("d.mp4", "e.txt", "README"):
            made.add(junk, name)
    before = tar.read_bytes()
    assert main(["index", str(tar)]) == 0
    assert tar.read_bytes() == before
    captured = capsys.readouterr()
    assert "indexed 1 shard\n" in captured.out
    assert f"d.mp4 in {tar}: no readable video" in captured.err
    assert f"*.txt in {tar}: e.txt belongs to no sample" in captured.err
    assert f"no ending in {tar}: README belongs to no sample" in captured.err
    shards = ShardSet(str(tar))
    assert shards.keys == ["folder/a.left", "b", "c"]
    assert shards.num_frames.tolist() == [10, 10, 10]
    np.testing.assert_array_equal(
        shards.frames(2, [9, 1]),
        decode_frames(ASSETS / "awkward_videos/h265_video.mp4", [9, 1]),
    )


@pytest.mark.parametrize("storage", ["original", "h264", "jpeg"])
def test_index_again_gives_the_packed_index(videos, storage):
    shards = packed(videos, storage)
    before = {p.name: p.read_bytes() for p in shards.glob("*.json")}
    assert main(["index", f"{shards}/*.tar"]) == 0
    assert {p.name: p.read_bytes() for p in shards.glob("*.json")} == before


def test_index_refuses_incomplete_tars(videos, tmp_path, capsys):
    shards = packed(videos, "original")
    (tar, _) = sorted(shards.glob("*.tar"))
    index = tar.with_suffix(".json").read_bytes()
    os.truncate(tar, 3000)
    assert main(["index", str(tar)]) == 2
    assert "is not a complete, uncompressed tar" in capsys.readouterr().err
    assert tar.with_suffix(".json").read_bytes() == index
    packed_small = tmp_path / "small.tar"
    with tarfile.open(packed_small, "w:gz") as made:
        made.add(videos / "clip0.mp4", "a.mp4")
    assert main(["index", str(packed_small)]) == 2
    assert "is not a complete, uncompressed tar" in capsys.readouterr().err
