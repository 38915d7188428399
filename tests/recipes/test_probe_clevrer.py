"""The probe recipe on a few rendered videos, and mistakes on its command line."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import options

from data_prep.clevrer.packing import pack
from data_prep.clevrer.storage import encode_h264
from data_prep.synthetic_clevrer.videos import render
from recipes import probe_clevrer
from recipes.probe_clevrer import ProbeRecipe
from ssl_vivit import load_encoder
from ssl_vivit.data.provenance import pretraining_data, trained_on
from ssl_vivit.data.video.augment import AugmentConfig, _random_window
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.loader import DataConfig, split_keys
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.encoders import create_encoder, save_pretrained
from ssl_vivit.evaluation.probes import full
from ssl_vivit.evaluation.probes.config import FinetuneConfig
from ssl_vivit.evaluation.probes.full import _training
from ssl_vivit.training import parse, run

ROOT = Path(__file__).parents[2]
COLLISIONS = ROOT / "tests" / "assets" / "collision_clips"
TARGETS = ["presence", "num_objects", "num_collisions", "has_collision", "mean_speed"]


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("rendered_for_probes")
    render(folder / "v", 16, size=(24, 36), num_frames=32, workers=1, progress=False)
    pack(folder / "v", folder / "s", folder / "v", frames=32, workers=1, progress=False)
    return str(folder / "s" / "*.tar")


def export(directory: Path, seed: int = 0, **overrides) -> str:
    torch.manual_seed(seed)
    settings = {
        "num_frames": 4, "image_size": (16, 24), "tubelet_size": (2, 8, 8), "embed_dim": 24,
        "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1,
    }  # fmt: skip
    encoder = create_encoder("vivit_tiny", **(settings | overrides))
    prepared = {"mean": [0.5] * 3, "std": [0.1] * 3, "fps": 25.0, "frame_stride": 2}
    save_pretrained(encoder, directory, preprocessing=prepared)
    return str(directory)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    return export(tmp_path_factory.mktemp("exported") / "demo" / "encoder")


def words(shards: str, *encoders: str, run_dir: Path, **changes) -> list[str]:
    settings = {
        "data.shards": shards, "data.workers": 0, "data.held_out": 0.4, "seeds": 2,
        "attentive.steps": 4, "run_dir": str(run_dir),
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    given = {name: value for name, value in settings.items() if value is not None}
    return ["--encoders", *encoders, *options(given)]


@pytest.fixture
def call(monkeypatch, tmp_path):
    def _call(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["probe_clevrer.py", *arguments])
        monkeypatch.chdir(tmp_path)
        run(probe_clevrer.main)

    return _call


def test_two_encoders_are_compared_with_their_baselines(shards, encoder, tmp_path, call, capsys):
    """Rows have several clips or one long clip; a grey encoder of another geometry has rows of its own."""
    grey = export(
        tmp_path / "grey" / "encoder", 1, in_channels=1, image_size=(24, 32), num_frames=2
    )
    # The mean of one channel goes with one channel.
    config = json.loads((tmp_path / "grey" / "encoder" / "config.json").read_text())
    config["preprocessing"] |= {"mean": [0.5], "std": [0.1], "channels": "luma"}
    (tmp_path / "grey" / "encoder" / "config.json").write_text(json.dumps(config))
    call(words(shards, encoder, grey, run_dir=tmp_path / "run", clips=2, long_clip=True))
    told = capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "probes.json").read_text())
    rows = {(r["subject"], r["clips"], r["probe"]) for r in saved["results"]}
    first, second = ("4×16×24, stride 2 at 25 frames/s", "2×24×32, stride 2 at 25 frames/s")
    subjects = {"demo/encoder", "grey/encoder"} | {
        f"{name} at {where}"
        for name in ("untrained", "raw pixels", "motion energy")
        for where in (first, second)
    }
    assert rows == {
        (subject, clips, probe)
        for subject in subjects
        for clips in ("1 clip", "2 clips", "1 long clip")
        for probe in ("knn", "linear", "attentive")
    }
    assert {r["target"] for r in saved["results"]} == set(TARGETS) == set(saved["chance"])
    assert all(len(r["scores"]) == 2 for r in saved["results"])
    facts = saved["facts"]
    assert facts["train_videos"] + facts["test_videos"] == 16
    assert "demo/encoder" in told
    assert "presence (mAP)" in told
    assert "1 long clip has their number of frames" in told
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"probes.json", "probes.png"}


def test_the_same_call_gives_the_same_bytes_and_nothing_is_overwritten(
    shards, encoder, tmp_path, call, capsys
):
    texts = []
    for name in ("a", "b"):
        torch.manual_seed(len(texts))  # what the process drew before has no part in it
        call(words(shards, encoder, run_dir=tmp_path / name, probes=["linear", "attentive"]))
        texts.append((tmp_path / name / "probes.json").read_text())
    assert texts[0] == texts[1].replace(str(tmp_path / "b"), str(tmp_path / "a"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call(words(shards, encoder, run_dir=tmp_path / "a"))
    assert end.value.code == 2
    assert "holds other results; choose another --run_dir" in capsys.readouterr().err
    assert (tmp_path / "a" / "probes.json").read_text() == texts[0]


def test_test_videos_used_in_pretraining_are_reported(shards, tmp_path, call, capsys):
    """There is a warning if pretraining held out fewer videos of these shards, and none for equal fractions."""
    path = Path(export(tmp_path / "seen" / "encoder"))
    saved = json.loads((path / "config.json").read_text())
    videos = ShardSet(shards)
    kept, tested = (split_keys(videos.keys, share) for share in (0.2, 0.4))
    record = pretraining_data(DataConfig(shards=shards, held_out=0.2), videos, kept[0], 0)
    (path / "config.json").write_text(json.dumps(saved | {"training": {"data": record}}))
    few = {"seeds": 1, "probes": ["knn"]}
    call(words(shards, str(path), run_dir=tmp_path / "a", **few))
    count = len(set(tested[1]) & set(kept[0]))
    assert count
    assert (
        f"warning: {count} of the {len(tested[1])} test videos may have been used to train "
        "seen/encoder: set --data.held_out 0.2 as in its pretraining, or give other videos"
    ) in capsys.readouterr().out
    call(words(shards, str(path), run_dir=tmp_path / "b", data__held_out=0.2, **few))
    assert "warning" not in capsys.readouterr().out


def test_copies_of_pretraining_videos_are_reported(shards, tmp_path, call, capsys):
    """The copies have other names, another storage and size, or are files in folders."""
    path = Path(export(tmp_path / "seen" / "encoder"))
    saved = json.loads((path / "config.json").read_text())
    videos = ShardSet(shards)
    record = pretraining_data(DataConfig(shards=shards, held_out=0.0), videos, range(16), 0)
    (path / "config.json").write_text(json.dumps(saved | {"training": {"data": record}}))
    source = Path(shards).parents[1] / "v"
    pack(source, tmp_path / "copies", source, frames=32, workers=1, progress=False, prefix="mine",
         storage="h264", size=(16, 24))  # fmt: skip
    few = {"seeds": 1, "probes": ["knn"]}
    copies = str(tmp_path / "copies" / "*.tar")
    call(words(copies, str(path), run_dir=tmp_path / "a", **few))
    tested = len(split_keys(videos.keys, 0.4)[1])
    told = capsys.readouterr().out
    assert f"warning: {tested} of the {tested} test videos may have been used to train" in told
    films = sorted(source.rglob("*.mp4"))
    for i, film in enumerate(films):
        target = tmp_path / "classes" / "ab"[i % 2] / f"{i}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, target)
    folder = str(tmp_path / "classes")
    call(words(None, str(path), run_dir=tmp_path / "b", data__folder=folder, **few))
    tested = len(split_keys([str(i) for i in range(len(films))], 0.4)[1])
    told = capsys.readouterr().out
    assert f"warning: {tested} of the {tested} test videos may have been used to train" in told


def test_finetuning_is_a_row_of_its_own(shards, encoder, tmp_path, call):
    before = load_encoder(encoder).tubelets.weight
    call(
        words(shards, encoder, run_dir=tmp_path / "run", seeds=1, probes=["linear"],
              finetune={"steps": 2, "total_batch_size": 4, "from_scratch": True})
    )  # fmt: skip
    saved = json.loads((tmp_path / "run" / "probes.json").read_text())
    facts = saved["facts"]
    rows = {(r["subject"], r["baseline"]) for r in saved["results"] if r["probe"] == "fine-tuned"}
    assert rows == {("demo/encoder", False), ("demo/encoder, trained from scratch", True)}
    tuned = load_encoder(tmp_path / "run" / "finetuned" / "demo_encoder_seed0" / "encoder")
    assert not torch.equal(tuned.tubelets.weight, before)
    assert (
        trained_on(tuned.provenance["data"], ShardSet(shards), range(16)) == facts["train_videos"]
    )
    assert torch.equal(load_encoder(encoder).tubelets.weight, before)
    assert {r["clips"] for r in saved["results"]} == {""}


def test_finetuning_continues_only_with_the_encoder_it_began_with(shards, tmp_path, call, capsys):
    """An encoder with other weights at this path is refused."""
    tune = {"finetune": {"steps": 1, "total_batch_size": 4}, "seeds": 1, "probes": ["knn"]}
    where = export(tmp_path / "it" / "encoder")
    call(words(shards, where, run_dir=tmp_path / "run", **tune))
    first = json.loads((tmp_path / "run" / "probes.json").read_text())
    (tmp_path / "run" / "probes.json").unlink()  # as if it had been killed before the probes
    call(words(shards, where, run_dir=tmp_path / "run", **tune))
    assert json.loads((tmp_path / "run" / "probes.json").read_text()) == first
    (tmp_path / "run" / "probes.json").unlink()
    shutil.rmtree(tmp_path / "it")
    export(tmp_path / "it" / "encoder", seed=1)
    with pytest.raises(SystemExit):
        call(words(shards, where, run_dir=tmp_path / "run", **tune))
    assert "had other settings: encoder (" in capsys.readouterr().err


def test_finetuning_sees_whole_frames_of_one_clip_a_video(monkeypatch):
    monkeypatch.setattr(
        full, "ClipDataset", lambda videos, clip, augment, *_, **__: (clip, augment)
    )
    prepared = SimpleNamespace(clip=ClipConfig(views=2), augment=lambda config: config)
    part = SimpleNamespace(
        videos=None, labels=SimpleNamespace(annotated=None),
        config=SimpleNamespace(frame_size=None, short_videos="skip"),
    )  # fmt: skip
    clip, augment = full._augmented(SimpleNamespace(prepared=prepared), part, 0)
    assert clip == replace(prepared.clip, views=1)
    # Shares of the frame's area, and aspects relative to the output's.
    assert augment == AugmentConfig(scale=(1, 1), ratio=(1, 1), blur_probability=0)
    windows = [
        _random_window(np.random.default_rng(seed).random((10, 4)), 16, 24, (16, 24), augment)
        for seed in range(5)
    ]
    assert windows == [(0, 0, 16, 24)] * 5


def test_layers_near_the_pixels_learn_slowly_unless_they_are_fresh(tmp_path):
    config = FinetuneConfig(steps=3, layer_decay=0.6)
    decays = [
        _training(config, 0, tmp_path, fresh).optimizer.layer_decay for fresh in (False, True)
    ]
    assert decays == [0.6, 1.0]


def test_a_labelled_folder_is_probed_and_finetuned(encoder, tmp_path, call):
    for i, clip in enumerate(sorted(COLLISIONS.glob("*.mp4"))):
        folder = tmp_path / "videos" / ("hit", "miss")[i // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)
    square = export(tmp_path / "square" / "encoder", image_size=(16, 16))
    call(
        words(None, square, run_dir=tmp_path / "run", seeds=1, probes=["knn", "linear"],
              data__folder=str(tmp_path / "videos"), data__held_out=0.195, data__frame_size=[32, 32],
              finetune={"steps": 2, "total_batch_size": 2})
    )  # fmt: skip
    saved = json.loads((tmp_path / "run" / "probes.json").read_text())
    assert {(r["target"], r["metric"]) for r in saved["results"]} == {("class", "accuracy")}
    assert {r["probe"] for r in saved["results"]} == {"knn", "linear", "fine-tuned"}


MISTAKES = {
    "no encoder there": ({}, ["a/b/encoder"], "a/b/encoder is no exported encoder"),
    "no shards there": ({"data__shards": "nowhere/*.tar"}, None, "nowhere/*.tar"),
    "clips too long": ({"data__clip__frame_stride": 11}, None, "has 32 frames"),
    "unknown probe": ({"probes": ["svm"]}, None, "probes"),
    "a long clip of one": ({"long_clip": True}, None, "set --clips to 2 or more"),
    "a long clip longer than the videos": (
        {"clips": 5, "long_clip": True},
        None,
        "spans 1.52 s; give longer videos, lower --clips or",
    ),
    "too few to fine-tune on": (
        {"finetune": {"steps": 1, "total_batch_size": 64}},
        None,
        "--finetune.total_batch_size 64",
    ),
    "steps below 0": (
        {"finetune": {"steps": -1}},
        None,
        "--finetune.steps is -1; it must be at least 0",
    ),
    "pattern of nothing": ({}, ["nowhere/*/encoder"], "nowhere/*/encoder matches no directory"),
    "no seeds": ({"seeds": 0}, None, "--seeds is 0"),
    "no videos to train on": ({"train_videos": 0}, None, "--train_videos is 0"),
    "square": ({"data__image_size": [16, 16]}, None, "--data.image_size '[16, 24]'"),
    "no tubelets": ({"data__image_size": [20, 24]}, None, "image_size height 20"),
    "unknown key": ({"data__shard": "x"}, None, "did you mean data.shards"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(shards, encoder, tmp_path, call, capsys, name):
    changes, encoders, message = MISTAKES[name]
    with pytest.raises(SystemExit) as end:
        call(words(shards, *(encoders or [encoder]), run_dir=tmp_path / "run", **changes))
    assert end.value.code in (1, 2)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_pattern_is_one_row_of_encoders_with_other_seeds(shards, tmp_path, call, capsys):
    for seed in range(2):
        export(tmp_path / f"mae_seed{seed}" / "encoder", seed)
    pattern = str(tmp_path / "mae_seed*" / "encoder")
    call(words(shards, pattern, run_dir=tmp_path / "run", probes=["linear"]))
    assert "mae_seed*/encoder: 2 encoders, used by the seeds in turn" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "probes.json").read_text())
    assert saved["facts"]["encoders_of"] == {"mae_seed*/encoder": 2}
    with pytest.raises(SystemExit):
        call(words(shards, pattern, run_dir=tmp_path / "other", seeds=3))
    assert "set --seeds to 2 or a multiple" in capsys.readouterr().err


def test_videos_without_labels_name_the_command_that_adds_them(encoder, tmp_path, call, capsys):
    pack(COLLISIONS, tmp_path / "s", size=(16, 24), workers=1, progress=False)
    with pytest.raises(SystemExit):
        call(words(str(tmp_path / "s" / "*.tar"), encoder, run_dir=tmp_path / "run"))
    assert "`python -m data_prep.clevrer pack --annotations …`" in capsys.readouterr().err


def test_encoders_are_words_or_a_json_list():
    for given in (["--encoders", "a", "b"], ["--encoders", '["a", "b"]'], ["--encoders=[a, b]"]):
        arguments = [*given, "--seeds", "4", "--probes", "knn", "linear"]
        config = parse(ProbeRecipe, arguments)
        assert (config.encoders, config.probes) == (["a", "b"], ["knn", "linear"])
        assert config.seeds == 4
    assert parse(ProbeRecipe, ["--encoders", "a"]).encoders == ["a"]
    assert parse(ProbeRecipe, []).encoders is None


def test_two_processes_print_one_table(shards, encoder, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    recipe = str(ROOT / "recipes" / "probe_clevrer.py")
    arguments = words(
        shards, encoder, run_dir=tmp_path / "run", seeds=1, probes=["linear"],
        finetune={"steps": 1, "total_batch_size": 2},
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, *launcher, recipe, *arguments], cwd=tmp_path, capture_output=True,
        text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("features of") == 1
    assert (tmp_path / "run" / "probes.json").exists()


def test_odd_annotations_and_short_videos_leave_their_videos_out(
    tmp_path, encoder, call, capsys, caplog
):
    """Annotations have NaN instead of a list, a missing field, another length, or a speed of 1e308."""
    render(tmp_path / "v", 16, size=(24, 36), num_frames=32, workers=1, progress=False)
    notes = sorted((tmp_path / "v").rglob("annotation_*.json"))
    facts = [json.loads(path.read_text()) for path in notes]
    notes[2].write_text(json.dumps(facts[2] | {"object_property": math.nan}))
    del facts[5]["collision"]
    notes[5].write_text(json.dumps(facts[5]))
    notes[8].write_text(json.dumps(facts[8] | {"motion_trajectory": []}))
    for frame in facts[11]["motion_trajectory"]:
        for thing in frame["objects"]:
            thing.update(velocity=[0.0, 1e308, 0.0], inside_camera_view=True)
    notes[11].write_text(json.dumps(facts[11]))
    (tmp_path / "few").mkdir()
    for path in sorted((tmp_path / "v").rglob("video_*.mp4"))[13:15]:
        short = encode_h264(decode_frames(path, range(5)), 25)
        path.unlink()
        (tmp_path / "few" / path.name).write_bytes(short)
    for folder, frames in (("v", 32), ("few", 5)):
        pack(tmp_path / folder, tmp_path / "s", tmp_path / "v", prefix=folder, frames=frames,
             workers=1, progress=False)  # fmt: skip
    pattern = str(tmp_path / "s" / "*.tar")
    call(
        words(pattern, encoder, run_dir=tmp_path / "run", seeds=1, probes=["knn", "linear"], clips=2,
              finetune={"steps": 2, "total_batch_size": 4})
    )  # fmt: skip
    line = "2 of 16 videos are too short for the clips, so they are left out (--data.short_videos skip; "
    needed = "2 clips of 4 frames with different starts at 12.5 frames/s span 0.28 s"
    assert f"{line}{needed}): video_00013, video_00014" in capsys.readouterr().out
    for number, field in (
        (2, "object_property is NaN, not a list"),
        (5, "collision is missing"),
        (8, " has 0 frames, but the video has 32"),
        (11, "].velocity[1] is 1e+308, not a finite number"),
    ):
        assert any(f"video_{number:05d}" in m and field in m for m in caplog.messages)
    saved = json.loads((tmp_path / "run" / "probes.json").read_text())
    assert saved["facts"]["train_videos"] + saved["facts"]["test_videos"] == 16 - 2 - 4
    speeds = [r["mean"] for r in saved["results"] if r["target"] == "mean_speed"]
    assert len(speeds) > 2
    assert all(abs(speed) < 1e3 for speed in speeds)
