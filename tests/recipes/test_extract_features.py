"""Feature extraction: contents of the files, resuming after a kill, and mistakes on the command line."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import options

from data_prep.clevrer.packing import pack
from data_prep.clevrer.storage import encode_h264
from data_prep.synthetic_clevrer.videos import render
from recipes import extract_features
from ssl_vivit import load_encoder
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.encoders import create_encoder, save_pretrained
from ssl_vivit.evaluation import encode_video
from ssl_vivit.evaluation.features.files import load_features
from ssl_vivit.training import run

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rendered_to_extract")
    render(folder, 9, size=(24, 36), num_frames=32, workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    made = create_encoder(
        "vivit_tiny", num_frames=4, image_size=(16, 24), tubelet_size=(2, 8, 8), embed_dim=24,
        num_heads=2, spatial_depth=1, temporal_depth=1,
    )  # fmt: skip
    prepared = {"mean": [0.5] * 3, "std": [0.1] * 3, "fps": 25.0, "frame_stride": 3}
    directory = tmp_path_factory.mktemp("exported_to_extract") / "encoder"
    save_pretrained(made, directory, preprocessing=prepared)
    return str(directory)


def words(encoder: str, out: Path, **settings) -> list[str]:
    given = {"encoder": encoder, "out": str(out), "data.workers": 0, "part_size": 4}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    return options(given)


@pytest.fixture
def call(monkeypatch, tmp_path):
    def _call(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["extract_features.py", *arguments])
        monkeypatch.chdir(tmp_path)
        run(extract_features.main)

    return _call


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_features_are_those_of_the_encoder_on_the_frames_that_are_named(
    videos, encoder, tmp_path, call
):
    call(words(encoder, tmp_path / "f", videos=str(videos), features="both", clips=2))
    found = load_features(tmp_path / "f")
    names = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.mp4"))
    assert found.keys == names
    assert found.frames.shape == (9, 2, 4)
    assert found.frames[0].tolist() == [[0, 3, 6, 9], [22, 25, 28, 31]]
    loaded = load_encoder(encoder)
    augment = Augment(AugmentConfig(strength="none"), (16, 24), 3, (0.5,), (0.1,))
    for i in (0, 5):
        outs = []
        for view in range(2):
            pixels = decode_frames(videos / names[i], found.frames[i, view].tolist())
            params = augment.draw(np.random.default_rng(0), 24, 36)
            clip = augment(torch.from_numpy(pixels)[None], {k: v[None] for k, v in params.items()})
            with torch.no_grad():
                outs.append(loaded(clip))
        pooled = (outs[0].pooled + outs[1].pooled)[0] / 2
        torch.testing.assert_close(found.pooled[i], pooled, rtol=1e-4, atol=1e-5)
        for view in range(2):
            tokens = found.tokens[i, view].float()
            torch.testing.assert_close(tokens, outs[view].tokens[0], rtol=2e-3, atol=2e-3)
    assert load_features(tmp_path / "f", "pooled").tokens is None
    call(words(encoder, tmp_path / "middle", videos=str(videos), data__image_size=24))
    square = load_encoder(encoder, image_size=24)
    for name, pooled in zip(names, load_features(tmp_path / "middle").pooled, strict=True):
        middle = encode_video(videos / name, square).pooled[0]
        torch.testing.assert_close(pooled, middle, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("features", ["pooled", "both"])
def test_a_vector_is_the_mean_of_patch_tokens_where_that_is_asked_for(
    videos, encoder, tmp_path, call, features
):
    found = {}
    for summary in ("pooled", "mean", "both"):
        out = tmp_path / summary
        call(words(encoder, out, videos=str(videos), features=features, summary=summary, clips=2))
        found[summary] = load_features(out)
        assert (found[summary].tokens is None) == (features == "pooled")
    both = torch.cat((found["pooled"].pooled, found["mean"].pooled), 1)
    torch.testing.assert_close(found["both"].pooled, both)
    assert not torch.allclose(found["mean"].pooled, found["pooled"].pooled, atol=1e-2)
    if features == "both":
        tokens = found["mean"].tokens.float().mean((1, 2, 3))
        torch.testing.assert_close(found["mean"].pooled, tokens, rtol=1e-2, atol=2e-3)


def test_features_that_are_not_there_are_reported_in_one_line(videos, encoder, tmp_path, call):
    call(words(encoder, tmp_path / "f", videos=str(videos), part_size=9))
    with pytest.raises(
        ValueError, match=r"f holds only pooled features, not tokens; .* --features both"
    ):
        load_features(tmp_path / "f", "both")
    path = tmp_path / "f" / "features-00000.safetensors"
    save_file(load_file(path), path, metadata={"part": '{"keys": [], "skipped": {"a": "cut"}}'})
    index = tmp_path / "f" / "index.json"
    edited = json.loads(index.read_text()) | {"skipped": {"a": "cut"}}
    index.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"index\.json is damaged \(wrong checksum\)"):
        load_features(tmp_path / "f")
    index.write_text(json.dumps({name: edited[name] for name in edited if name != "crc32"}))
    with pytest.raises(ValueError, match=r"f holds features of no video: all 1 were skipped"):
        load_features(tmp_path / "f")


def test_a_killed_extraction_continues_to_the_same_bytes(videos, encoder, tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "extract_features.py")]
    settings = {"videos": str(videos), "features": "tokens", "part_size": 1, "clips": 3}
    whole = subprocess.run(
        command + words(encoder, tmp_path / "whole", **settings), capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command + words(encoder, killed, **settings),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (killed / "features-00001.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = sorted(killed.glob("features-*.safetensors"))
    if len(parts) < 9:
        with pytest.raises(ValueError, match="of 9 feature files; run recipes"):
            load_features(killed)
    before = {path: path.stat().st_mtime_ns for path in parts}
    again = subprocess.run(
        command + words(encoder, killed, **settings), capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert contents(killed) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == made for path, made in before.items())


def test_folder_and_shards_give_the_same_features(videos, encoder, tmp_path, call):
    pack(videos, tmp_path / "s", storage="original", frames=32, workers=1, progress=False)
    call(words(encoder, tmp_path / "a", videos=str(videos)))
    call(words(encoder, tmp_path / "b", shards=str(tmp_path / "s" / "*.tar"), part_size=9))
    folder, shards = load_features(tmp_path / "a"), load_features(tmp_path / "b")
    assert [Path(key).stem for key in folder.keys] == shards.keys
    torch.testing.assert_close(folder.pooled, shards.pooled, rtol=1e-4, atol=1e-5)


def test_videos_of_any_kind_and_broken_ones(encoder, tmp_path, call, capsys):
    """Videos have several sizes, codecs and lengths; unreadable ones are named and skipped."""
    call(words(encoder, tmp_path / "f", videos=str(ASSETS), clips=2, data__clip__frame_stride=1))
    found = load_features(tmp_path / "f")
    assert len(found.keys) + len(found.skipped) == 14
    assert "awkward_videos/corrupted.mp4" in found.skipped
    assert "has 3 frames" in found.skipped["awkward_videos/video_90.mov"]
    assert "skipped awkward_videos/corrupted.mp4" in capsys.readouterr().out
    assert found.pooled.isfinite().all()


def test_many_broken_videos_stop_it(videos, encoder, tmp_path, call, capsys):
    shutil.copytree(videos, tmp_path / "v")
    for i in range(6):
        (tmp_path / "v" / f"broken_{i}.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit):
        call(words(encoder, tmp_path / "f", videos=str(tmp_path / "v")))
    assert "6 of 15 videos cannot be used, more than 1% and more than 5" in capsys.readouterr().err
    (tmp_path / "v" / "broken_0.mp4").unlink()
    call(words(encoder, tmp_path / "f", videos=str(tmp_path / "v")))
    assert len(load_features(tmp_path / "f").keys) == 9


def test_any_number_of_short_videos_is_skipped_or_padded(videos, encoder, tmp_path, call, capsys):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "class_a").symlink_to(videos)
    (tmp_path / "v" / "notes.txt").touch()
    film = next(iter(sorted(videos.rglob("*.mp4"))))
    for i in range(7):
        content = encode_h264(decode_frames(film, range(4 + i)), 25)  # a clip spans ten frames
        (tmp_path / "v" / f"short_{i}.mp4").write_bytes(content)
    call(words(encoder, tmp_path / "f", videos=str(tmp_path / "v")))
    found = load_features(tmp_path / "f")
    assert len(found.keys) == 10
    assert sorted(found.skipped) == [f"short_{i}.mp4" for i in range(6)]
    said = capsys.readouterr().out
    assert (
        "skipped short_1.mp4: has 5 frames at 25 frames/s (0.2 s); a clip of 4 frames at "
        "8.333 frames/s spans 0.36 s and needs 10 frames"
    ) in said
    assert (
        "6 of 16 videos are too short for the clips, so they are left out (--data.short_videos "
        "skip; a clip of 4 frames at 8.333 frames/s spans 0.36 s): short_0.mp4"
    ) in said
    assert "passed over: 10 .json files, 1 .txt file" in said
    call(words(encoder, tmp_path / "g", videos=str(tmp_path / "v"), data__short_videos="pad"))
    found = load_features(tmp_path / "g")
    assert (len(found.keys), found.skipped) == (16, {})
    assert found.frames[found.keys.index("short_1.mp4")].tolist() == [[0, 3, 4, 4]]
    with pytest.raises(SystemExit):
        call(
            words(encoder, tmp_path / "h", videos=str(tmp_path / "v"), data__short_videos="refuse")
        )
    assert "short_0.mp4 (one of 6 such videos) has 4 frames" in capsys.readouterr().err


def test_other_settings_are_refused_and_other_files_kept(videos, encoder, tmp_path, call, capsys):
    call(words(encoder, tmp_path / "f", videos=str(videos)))
    before = contents(tmp_path / "f")
    changed = {"features": "tokens", "clips": 2, "data__clip__frame_stride": 2}
    with pytest.raises(SystemExit):
        call(words(encoder, tmp_path / "f", videos=str(videos), **changed))
    told = "--features (pooled → tokens), --data.clip.frame_stride (3 → 2), --clips (1 → 2)"
    said = capsys.readouterr().err
    assert f"other settings: {told}; restore" in said
    call(words(encoder, tmp_path / "f", videos=str(videos)))
    assert contents(tmp_path / "f") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(SystemExit):
        call(words(encoder, tmp_path / "mine", videos=str(videos)))
    assert "holds other files" in capsys.readouterr().err
    assert contents(tmp_path / "mine") == {"notes.txt": b"keep"}


def test_damaged_parts_are_recomputed_and_a_damaged_index_is_named(
    videos, encoder, tmp_path, call, capsys
):
    out = tmp_path / "f"
    call(words(encoder, out, videos=str(videos), features="both"))
    before = contents(out)
    flipped = bytearray(before["features-00001.safetensors"])
    flipped[-1] ^= 1
    (out / "features-00001.safetensors").write_bytes(flipped)
    (out / "features-00002.safetensors").write_bytes(before["features-00002.safetensors"][:200])
    call(words(encoder, out, videos=str(videos), features="both"))
    assert contents(out) == before
    told = capsys.readouterr().out
    assert "features-00001.safetensors is missing or damaged (the checksum of tokens" in told
    assert "features-00002.safetensors is missing or damaged" in told
    (out / "index.json").write_bytes(before["index.json"][:-20])
    with pytest.raises(SystemExit):
        call(words(encoder, out, videos=str(videos), features="both"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {out / 'index.json'} is damaged (")


def test_a_second_extraction_into_the_folder_is_refused(videos, encoder, tmp_path, call, capsys):
    out = tmp_path / "f"
    code = f"from ssl_vivit.run_lock import *\nwith locked(Path({str(out)!r}), '', print): input(1)"
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.read(1) == b"1"
    with pytest.raises(SystemExit):
        call(words(encoder, out, videos=str(videos)))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --out {out} is in use: process {first.pid} on host ")
    first.communicate(b"\n")
    assert not out.exists()


MISTAKES = {
    "nothing to read": ({}, "give either --videos FOLDER or --shards PATTERN"),
    "two things to read": ({"videos": "a", "shards": "b"}, "give either --videos FOLDER or"),
    "no folder": ({"videos": "nowhere"}, "--videos nowhere is not a folder"),
    "no encoder": ({"videos": "HERE", "encoder": "a/b/c"}, "a/b/c is no exported encoder"),
    "no clips": ({"videos": "HERE", "clips": 0}, "--clips is 0"),
    "clips too long": ({"videos": "HERE", "data__clip__frame_stride": 30}, "has 32 frames"),
    "unknown features": ({"videos": "HERE", "features": "all"}, "features"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(videos, encoder, tmp_path, call, capsys, name):
    settings, message = MISTAKES[name]
    settings = {k: str(videos) if v == "HERE" else v for k, v in settings.items()}
    with pytest.raises(SystemExit) as end:
        call(words(settings.pop("encoder", encoder), tmp_path / "f", **settings))
    assert end.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "f").exists()
