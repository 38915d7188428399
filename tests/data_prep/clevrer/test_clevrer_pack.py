"""Packing of archives in CLEVRER's published layout and of folders of real videos."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep.clevrer import pack
from data_prep.clevrer.__main__ import main
from data_prep.clevrer.storage import encode_h264, kept_frames
from ssl_vivit.data.video.decoding import VideoInfo, decode_frames, iterate_frames
from ssl_vivit.data.video.shards import STORAGES, ShardSet
from ssl_vivit.errors import DataError

ASSETS = Path(__file__).parents[2] / "assets"
NUM_VIDEOS = 7


def video(number, num_frames=128, size=(32, 48)):
    draw = np.random.default_rng(number)
    coarse = draw.integers(256, size=(num_frames, size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    return encode_h264(coarse.repeat(8, 1).repeat(8, 2), 25)


def note(number):
    return {
        "scene_index": number,
        "motion_trajectory": [{"frame_id": i, "objects": []} for i in range(128)],
        "collision": [{"frame_id": 41, "object_ids": [0, 1]}],
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Write video_train.zip and annotation_train.zip in the published layout."""
    folder = tmp_path_factory.mktemp("archives")
    with zipfile.ZipFile(folder / "video_train.zip", "w") as archive:
        for number in range(NUM_VIDEOS):
            archive.writestr(f"video_00000-01000/video_{number:05d}.mp4", video(number))
    with zipfile.ZipFile(folder / "annotation_train.zip", "w") as archive:
        for number in reversed(range(NUM_VIDEOS)):
            name = f"annotation_00000-01000/annotation_{number:05d}.json"
            archive.writestr(name, json.dumps(note(number)))
    return folder


def run(archives, out, **options):
    options = {"storage": "original", "samples_per_shard": 3, "workers": 1, **options}
    return pack(
        archives / "video_train.zip",
        out,
        archives / "annotation_train.zip",
        progress=False,
        **options,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_published_layout(archives, tmp_path):
    report = run(archives, tmp_path)
    assert [p.name for p in report.shards] == [f"clevrer-train-{i:06d}.tar" for i in range(3)]
    assert (report.packed, report.annotated, report.skipped) == (NUM_VIDEOS, NUM_VIDEOS, {})
    shards = ShardSet(f"{tmp_path}/clevrer-train-*.tar")
    assert shards.keys == [f"video_{i:05d}" for i in range(NUM_VIDEOS)]
    for i in range(NUM_VIDEOS):
        assert shards.annotation(i) == note(i)
        np.testing.assert_array_equal(
            shards.frames(i, [0, 127, 63]), decode_frames(video(i), [0, 127, 63])
        )


def test_webdataset_reads_the_shards(archives, tmp_path):
    report = run(archives, tmp_path)
    dataset = webdataset.WebDataset([str(p) for p in report.shards], shardshuffle=False)
    samples = list(dataset)
    assert [s["__key__"] for s in samples] == [f"video_{i:05d}" for i in range(NUM_VIDEOS)]
    assert samples[4]["mp4"] == video(4)
    assert json.loads(samples[4]["json"]) == note(4)


@pytest.mark.parametrize("storage", ["h264", "jpeg"])
def test_size_and_rate(archives, tmp_path, storage):
    run(archives, tmp_path, storage=storage, size=(16, 24), fps=10)
    shards = ShardSet(str(tmp_path))
    # At 10 of 25 frames a second, what is shown at frames 0, 2.5, 5 … of 128 stays.
    kept = [int(2.5 * k) for k in range(52)]
    assert set(shards.num_frames) == {len(kept)} == {52}
    assert set(shards.fps) == {10}
    assert {STORAGES[s] for s in shards.storages} == {storage}
    every = shards.frames(2, range(52)).astype(int)
    expected = decode_frames(video(2), kept, (16, 24)).astype(int)
    assert every.shape == (52, 16, 24, 3)
    assert np.abs(every - expected).mean() < 12
    assert np.abs(np.roll(every, 1, axis=0) - expected).mean() > 40
    annotation = shards.annotation(2)
    assert [e["frame_id"] for e in annotation["motion_trajectory"]] == list(range(52))
    # Frame 41 went; 40 stays, as the 16th.
    assert annotation["collision"] == [{"frame_id": 16, "object_ids": [0, 1]}]


@pytest.mark.parametrize("fps", [None, 25, 60])
def test_all_frames_stay_at_the_own_rate_or_above(fps):
    assert kept_frames(VideoInfo(7, 8, 8, 25.0), fps) == list(range(7))


@pytest.mark.parametrize("storage", ["original", "h264", "jpeg"])
def test_same_bytes_for_any_number_of_workers(archives, tmp_path, storage):
    options = {"storage": storage, "samples_per_shard": 4}
    run(archives, tmp_path / "a", **options)
    run(archives, tmp_path / "b", workers=2 if storage == "h264" else 1, **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_encoding_again_gives_the_same_bytes():
    """Decoding between the two encodings changes the memory addresses of frames."""
    sources = [video(number) for number in range(4)]
    first = [encode_h264(iterate_frames(source), 25) for source in sources]
    for _ in range(12):
        assert [encode_h264(iterate_frames(source), 25) for source in sources] == first


def test_running_again_makes_what_is_missing_and_keeps_the_rest(archives, tmp_path):
    run(archives, tmp_path)
    before = contents(tmp_path)
    ages = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "clevrer-train-000001.tar").unlink()
    os.truncate(tmp_path / "clevrer-train-000002.tar", 2000)
    run(archives, tmp_path)
    assert contents(tmp_path) == before
    for name in ("clevrer-train-000000.tar", "clevrer-train-000000.json"):
        assert (tmp_path / name).stat().st_mtime_ns == ages[name]


def test_another_process_may_stop_anywhere(archives, tmp_path, monkeypatch):
    """After a kill before any rename, no incomplete file has the name of a shard."""
    run(archives, tmp_path / "whole")
    replace = os.replace
    for allowed in range(7):
        out = tmp_path / f"stopped-{allowed}"
        done = []

        def stop(source, target, done=done, allowed=allowed):
            if len(done) == allowed:
                raise KeyboardInterrupt
            done.append(target)
            replace(source, target)

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run(archives, out)
        monkeypatch.setattr(os, "replace", replace)
        if tars := sorted(out.glob("*.tar")):
            assert len(ShardSet(str(out))) == 3 * len(tars)
        run(archives, out)
        assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "jpeg"}, "packed with --storage original, but it is now jpeg"),
        ({"samples_per_shard": 2}, "packed with --samples-per-shard 3, but it is now 2"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(archives, tmp_path, options, message):
    run(archives, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=message):
        run(archives, tmp_path, **options)
    assert contents(tmp_path) == before
    run(archives, tmp_path, prefix="other", **options)


def test_other_videos_in_the_same_folder_are_refused(archives, tmp_path):
    run(archives, tmp_path)
    with pytest.raises(DataError, match="shards of other videos"):
        pack(archives / "video_train.zip", tmp_path, storage="original", samples_per_shard=3)


def fill(folder, **videos):
    folder.mkdir()
    for name, content in videos.items():
        (folder / f"{name}.mp4").write_bytes(content)
    return folder


def test_odd_videos_of_clevrer_are_left_out_and_named(tmp_path, capsys):
    folder = fill(
        tmp_path / "video_validation",
        video_10000=video(0),
        video_10001=video(1, num_frames=60),
        video_10002=video(2, size=(40, 48)),
        video_10003=video(3)[:2000],
    )
    assert main(["pack", "--videos", str(folder), "--out", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "skipped: 3" in errors
    assert "video_10001.mp4: 60 frames, but 128 are asked for" in errors
    assert "video_10002.mp4: has 40×48 pixels, but the other videos have 32×48" in errors
    assert "video_10003.mp4: " in errors
    assert "more than 1 %" in errors
    assert ShardSet(f"{tmp_path}/out/clevrer-validation-*.tar").keys == ["video_10000"]


def test_a_video_with_60_frames_where_128_are_asked_for(tmp_path, capsys):
    folder = fill(tmp_path / "own", short=video(1, num_frames=60))
    arguments = ["pack", "--videos", str(folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--frames", "128"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert line.startswith("error: nothing was packed: short.mp4: 60 frames, but 128 are asked")
    assert "--frames" in line
    assert not list((tmp_path / "out").glob("*.tar"))
    assert main([*arguments[:-1], str(tmp_path / "out2"), "--frames", "60"]) == 0


def one_line(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert not captured.out
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--videos", "none.zip"], "--videos none.zip does not exist"),
        (["--videos", "bad.zip"], "--videos bad.zip is neither a folder nor a complete zip"),
        (["--videos", "empty"], "--videos empty contains no videos"),
        (["--videos", "own", "--annotations", "empty"], "contains no annotation of a video"),
        (["--videos", "own", "--fps", "5", "--storage", "original"], "--storage h264 or jpeg"),
        (["--videos", "own", "--fps", "0"], "--fps 0.0 must be above 0"),
        (["--videos", "own", "--size", "15", "20", "--storage", "h264"], "needs an even height"),
        (["--videos", "own", "--workers", "0"], "--workers 0 must be at least 1"),
        (["--videos", "own", "--samples-per-shard", "0"], "must be at least 1"),
        (["--videos", "own", "--prefix", "../x"], "may contain only letters"),
        (["--videos", "own", "--out", "bad.zip"], "--out bad.zip is a file"),
    ],
)
def test_mistakes_get_one_line(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    fill(Path("own"), clip=video(0, num_frames=8))
    Path("empty").mkdir()
    Path("bad.zip").write_text("<html>not found</html>")
    assert message in one_line(["pack", "--out", "shards", *options], capsys)


def test_a_zip_cut_off_and_a_member_damaged(archives, tmp_path, capsys):
    whole = (archives / "video_train.zip").read_bytes()
    cut = tmp_path / "video_train.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    line = one_line(["pack", "--videos", str(cut), "--out", str(tmp_path / "x")], capsys)
    assert "nor a complete zip archive" in line
    damaged = bytearray(whole)
    damaged[whole.index(b"video_00002.mp4") + 500] ^= 1
    cut.write_bytes(damaged)
    report = pack(cut, tmp_path / "out", storage="original", workers=1, progress=False)
    assert report.packed == NUM_VIDEOS - 1
    ((name, reason),) = report.skipped.items()
    assert name.endswith("video_00002.mp4")
    assert "Bad CRC" in reason


def test_names_that_point_out_of_the_folder_stay_in_the_shard(tmp_path):
    content = video(0, num_frames=4)
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for name in ("../../up.mp4", "/etc/up.mp4", "a/b.c d.mp4", "a b.mp4", "a.b.mp4"):
            archive.writestr(name, content)
        archive.writestr("__MACOSX/._x.mp4", b"junk")
    before = {p for p in tmp_path.parent.rglob("*") if "out" not in p.parts}
    report = pack(tmp_path / "own.zip", tmp_path / "out", workers=1, progress=False)
    assert report.packed == 5
    keys = ShardSet(str(tmp_path / "out")).keys
    assert len(set(keys)) == 5
    assert all(key.replace("_", "").isalnum() for key in keys)
    assert {p for p in tmp_path.parent.rglob("*") if "out" not in p.parts} == before


@pytest.mark.parametrize("storage", ["original", "h264", "jpeg"])
def test_real_collisions(tmp_path, storage):
    source = Path(shutil.copytree(ASSETS / "collision_clips", tmp_path / "clips"))
    for path in sorted(source.glob("*.mp4"))[2:]:
        path.unlink()
    size = None if storage == "original" else (128, 128)
    report = pack(source, tmp_path / "out", storage=storage, size=size, workers=1, progress=False)
    assert (report.packed, report.skipped) == (2, {})
    shards = ShardSet(str(tmp_path / "out"))
    assert set(shards.num_frames) == {125}
    assert set(shards.fps) == {25}
    for i, key in enumerate(shards.keys):
        expected = decode_frames(source / f"{key}.mp4", [0, 60, 124], size).astype(int)
        difference = shards.frames(i, [0, 60, 124]).astype(int) - expected
        assert np.abs(difference).mean() < (1e-9 if storage == "original" else 2)


@pytest.mark.parametrize("storage", ["original", "jpeg"])
def test_real_awkward_files(tmp_path, capsys, storage):
    folder = ASSETS / "awkward_videos"
    arguments = ["pack", "--videos", str(folder), "--out", str(tmp_path), "--storage", storage]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "packed 5 videos, 0 with annotation, in 1 shard: " in captured.out
    assert "skipped: 1" in captured.err
    assert "corrupted.mp4: breaks after 28 of 50 frames" in captured.err
    shards = ShardSet(str(tmp_path))
    for i, key in enumerate(shards.keys):
        (path,) = folder.glob(f"{key}.*")
        last = int(shards.num_frames[i]) - 1
        expected = decode_frames(path, [0, last]).astype(int)
        assert (shards.heights[i], shards.widths[i]) == expected.shape[1:3]
        difference = shards.frames(i, [0, last]).astype(int) - expected
        assert np.abs(difference).mean() < (1e-9 if storage == "original" else 3)


def test_videos_of_several_sizes_and_rates_are_noted(tmp_path, capsys):
    folder, out = tmp_path / "v", ["--out", str(tmp_path / "s"), "--workers", "1"]
    folder.mkdir()
    for name, fps, size in (("a", 10, (16, 24)), ("b", 30, (24, 16)), ("c", 25, (16, 16))):
        frames = np.zeros((4, *size, 3), np.uint8)
        (folder / f"{name}.mp4").write_bytes(encode_h264(frames, fps))
    notes = [
        "note: the videos have 3 frame sizes, from 16×16 to 24×16 (H×W), but training needs one; "
        "set --data.frame_size H W for training, or pack again with --size H W",
        "note: the videos have frame rates from 10 to 30 frames/s, but --data.clip.frame_stride "
        "counts frames; set --data.clip.fps for training, or pack again with --fps 10 or lower",
    ]
    for _ in range(2):  # packed, then found complete
        assert main(["pack", "--videos", str(folder), *out]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == notes
    # Both remedies; a rate above the lowest leaves the slower videos as they are.
    for remedy, left in ((["--fps", "10"], []), (["--fps", "15"], ["from 10 to 15 frames/s"])):
        out[1] = str(tmp_path / remedy[1])
        assert main(["pack", "--videos", str(folder), *out, "--size", "16", "16", *remedy]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        assert len(lines) == len(left)
        assert all(words in line for words, line in zip(left, lines, strict=True))


def test_rates_that_hardly_differ_are_not_noted(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    for name, fps in (("a", 29.97), ("b", 30)):
        frames = np.zeros((4, 16, 16, 3), np.uint8)
        (tmp_path / "v" / f"{name}.mp4").write_bytes(encode_h264(frames, fps))
    report = pack(tmp_path / "v", tmp_path / "s", workers=1, progress=False)
    assert report.rates == pytest.approx([29.97, 30], abs=1e-3)
    assert report.sizes == [(16, 16)]
    assert main(["pack", "--videos", str(tmp_path / "v"), "--out", str(tmp_path / "s")]) == 0
    assert "note" not in capsys.readouterr().out


def test_a_video_that_changed_since_is_packed_again(tmp_path):
    """A video of equal size with other contents is packed again; other shards are kept."""
    (tmp_path / "raw").mkdir()
    films = [video(number, num_frames=8) for number in range(2)]
    padded = max(map(len, films))
    for name, film in zip("ab", films, strict=True):
        (tmp_path / "raw" / f"{name}.mp4").write_bytes(film.ljust(padded, b"\0"))

    def packed():
        pack(tmp_path / "raw", tmp_path / "out", storage="original", samples_per_shard=1,
             workers=1, progress=False)  # fmt: skip
        return {path: path.stat().st_ino for path in sorted((tmp_path / "out").glob("*.tar"))}

    first = packed()
    later = time.time_ns() + 10**9
    os.utime(tmp_path / "raw" / "a.mp4", ns=(later, later))
    assert packed() == first
    (tmp_path / "raw" / "a.mp4").write_bytes(films[1].ljust(padded, b"\0"))
    os.utime(tmp_path / "raw" / "a.mp4", ns=(later, later))
    second = packed()
    assert [second[path] == inode for path, inode in first.items()] == [False, True]
    shards = ShardSet(str(tmp_path / "out" / "*.tar"))
    np.testing.assert_array_equal(shards.frames(0, range(8)), shards.frames(1, range(8)))


def test_sources_that_are_broken_touched_or_repaired(tmp_path):
    """A broken link stays out, an annotation with a new time stamp is kept, repaired files are packed."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(2):
        (raw / f"video_0000{number}.mp4").write_bytes(video(number, num_frames=8))
        notes = note(number) | {"motion_trajectory": note(number)["motion_trajectory"][:8]}
        (raw / f"annotation_0000{number}.json").write_text(json.dumps(notes))
    (raw / "video_00002.mp4").symlink_to(tmp_path / "nowhere.mp4")

    def packed(**options):
        report = pack(raw, tmp_path / "out", raw, storage="original", samples_per_shard=3,
                      frames=8, workers=1, progress=False, **options)  # fmt: skip
        return report, (tmp_path / "out" / "clevrer-000000.tar").stat().st_ino

    report, inode = packed()
    assert [*report.skipped] == ["video_00002.mp4"]
    assert packed()[1] == inode
    later = time.time_ns() + 10**9
    first = raw / "annotation_00000.json"
    os.utime(first, ns=(later, later))
    assert packed()[1] == inode
    first.write_text(first.read_text().replace('"frame_id": 41', '"frame_id": 42'))
    os.utime(first, ns=(later, later))
    report, changed = packed()
    assert changed != inode
    shards = ShardSet(str(tmp_path / "out" / "*.tar"))
    assert shards.annotation(0)["collision"][0]["frame_id"] == 42
    later = time.time_ns() + 10**9
    mended = tmp_path / "nowhere.mp4"
    mended.write_bytes(b"")
    os.utime(mended, ns=(later, later))
    assert packed()[0].skipped.keys() == {"video_00002.mp4"}
