"""Archives and annotations of unknown origin, including malicious ones."""

from __future__ import annotations

import json
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.clevrer import pack, video_sources
from data_prep.clevrer.__main__ import main
from data_prep.clevrer.annotations import renumbered
from data_prep.clevrer.storage import encode_h264
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.errors import DataError, DecodingError


@pytest.fixture(scope="module")
def video() -> bytes:
    draw = np.random.default_rng(0)
    return encode_h264(draw.integers(256, size=(8, 32, 48, 3)).astype(np.uint8), 25)


def zip_of(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in members:
            archive.writestr(name, content)
    return path


def claim(path: Path, name: bytes, size: int) -> None:
    """Change the unpacked size of a member in the archive's directory."""
    content = bytearray(path.read_bytes())
    at = content.rindex(name) - 46
    assert content[at : at + 4] == b"PK\1\2"
    content[at + 24 : at + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)


def packed(path: Path, out: Path) -> dict[str, str]:
    report = pack(path, out, storage="original", workers=1, progress=False)
    assert report.packed == 1
    assert ShardSet(str(out)).keys == ["good"]
    return report.skipped


def test_a_member_that_unpacks_to_gigabytes_is_skipped_and_named(
    video, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(video_sources, "_SMALL", 1 << 20)
    path = zip_of(tmp_path / "v.zip", ("bomb.mp4", bytes(32 << 20)), ("good.mp4", video))
    tracemalloc.start()
    skipped = packed(path, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "to 33,554,432 bytes, too much for a video" in skipped["bomb.mp4"]
    assert peak < 8 << 20


def test_a_member_that_claims_gigabytes_is_skipped_and_named(video, tmp_path) -> None:
    path = zip_of(tmp_path / "v.zip", ("bomb.mp4", b"small"), ("good.mp4", video))
    claim(path, b"bomb.mp4", 0xFFFFFFF0)
    assert "to 4,294,967,280 bytes" in packed(path, tmp_path / "out")["bomb.mp4"]


def test_a_member_that_claims_less_is_not_unpacked_beyond_it(video, tmp_path) -> None:
    path = zip_of(tmp_path / "v.zip", ("bomb.mp4", bytes(32 << 20)), ("good.mp4", video))
    claim(path, b"bomb.mp4", 100)
    tracemalloc.start()
    skipped = packed(path, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "Bad CRC" in skipped["bomb.mp4"]
    assert peak < 8 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_pieces_have_no_bound_are_refused(video, tmp_path, method) -> None:
    path = zip_of(tmp_path / "v.zip", ("good.mp4", video), method=method)
    with pytest.raises(DataError, match=r"good\.mp4: .*compression method is not deflate"):
        pack(path, tmp_path / "out", workers=1, progress=False)


def test_a_damaged_stream_is_skipped_and_named(video, tmp_path) -> None:
    path = zip_of(tmp_path / "v.zip", ("broken.mp4", b"0123456789" * 99), ("good.mp4", video))
    content = bytearray(path.read_bytes())
    content[content.index(b"broken.mp4") + 10] = 0xFF  # no kind of deflate's blocks
    path.write_bytes(content)
    assert "invalid" in packed(path, tmp_path / "out")["broken.mp4"]


def test_one_name_twice_is_refused(video, tmp_path) -> None:
    path = zip_of(tmp_path / "v.zip", ("a.mp4", video), ("a.mp4", video[:-1]))
    with pytest.raises(DataError, match=r"contains 2 files named a\.mp4"):
        pack(path, tmp_path / "out")


def test_what_is_passed_over_is_one_line(video, tmp_path, capsys) -> None:
    members = [
        (name, b"x") for name in ("a/x.TXT", "b.txt", ".c.mp4", "d", "annotation_00001.json")
    ]
    path = zip_of(tmp_path / "v.zip", ("video_00000.mp4", video), *members)
    assert main(["pack", "--videos", str(path), "--out", str(tmp_path / "o"), "--frames", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "passed over: 2 .txt files, 1 .json file, 1 hidden, 1 without ending"


def layout(root: Path, video: bytes, numbers: list[tuple[str, int]]) -> Path:
    for folder, number in numbers:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"video_{number:05d}.mp4").write_bytes(video)
        (root / folder / f"annotation_{number:05d}.json").write_text(json.dumps({"scene": folder}))
    return root


def test_annotations_that_are_read_are_not_passed_over(video, tmp_path) -> None:
    root = layout(tmp_path / "v", video, [("a", 0), ("b", 1)])
    (root / "a" / "annotation_00007.json").write_text("{}")
    (root / "other.json").write_text("{}")
    report = pack(root, tmp_path / "out", root, frames=8, workers=1, progress=False)
    assert (report.packed, report.annotated) == (2, 2)
    assert report.passed_over == {"annotations without a video": 1, ".json": 1}


def test_a_number_of_two_videos_is_refused_where_annotations_go_by_it(video, tmp_path) -> None:
    root = layout(tmp_path / "v", video, [("a", 0), ("b", 0)])
    with pytest.raises(
        DataError, match=r"contains a/annotation_00000\.json and b/annotation_00000"
    ):
        pack(root, tmp_path / "out", root)
    (root / "b" / "annotation_00000.json").unlink()
    with pytest.raises(DataError, match=r"contains a/video_00000\.mp4 and b/video_00000\.mp4"):
        pack(root, tmp_path / "out", root)
    assert pack(root, tmp_path / "out", workers=1, progress=False).packed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "the whole annotation is a list, not an object"),
        (b'{"motion_trajectory": null}', "motion_trajectory is null, not a list"),
        (b'{"motion_trajectory": [3]}', "motion_trajectory[0] is 3, not an object"),
        (b'{"motion_trajectory": [{"frame_id": NaN}]}', "[0].frame_id is NaN, not a finite"),
        (b'{"collision": [{"frame_id": 1e308}]}', "collision[0].frame_id is 1e+308, not"),
        (b'{"collision": [{"frame_id": "7"}]}', 'collision[0].frame_id is "7", not'),
        (b'{"collision": [{}]}', "collision[0].frame_id is missing"),
    ],
)
def test_annotations_that_cannot_be_renumbered_name_the_field(text, message) -> None:
    with pytest.raises(DecodingError) as caught:
        renumbered(text, [0, 2], 4)
    assert str(caught.value).startswith("its annotation")
    assert message in str(caught.value)
