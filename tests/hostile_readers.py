"""All functions of the package that read files of unknown origin, each with a small valid folder."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import torch
from hostile_files import Reader
from run_folders import pretraining_run
from safetensors.torch import save_file
from session_folders import folder as session_folder

from data_prep.clevrer.__main__ import main as clevrer_command
from data_prep.clevrer.annotations import renumbered
from data_prep.synthetic_clevrer.videos import render
from recipes.simclr_clevrer import SimCLRRecipe
from ssl_vivit import VideoClassifier, create_encoder, load_encoder
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.data.video.clevrer import clip_labels
from ssl_vivit.data.video.decoding import decode_frames, probe_video
from ssl_vivit.data.video.shards import ShardSet
from ssl_vivit.data.video.shards.build import build_index
from ssl_vivit.encoders.imports.sources import Request, open_source
from ssl_vivit.errors import UserError
from ssl_vivit.evaluation.features.files import FeatureFiles, load_features
from ssl_vivit.evaluation.features.parts import read_index, write_index
from ssl_vivit.evaluation.neurons.best_model import best_score
from ssl_vivit.evaluation.report.run_files import RunFiles
from ssl_vivit.files import write_json
from ssl_vivit.nested_text import read_json_text
from ssl_vivit.neural.adapters import AdapterConfig
from ssl_vivit.neural.building import build_neural_model
from ssl_vivit.neural.checkpoint import load_neural_model, save_neural_model
from ssl_vivit.neural.config import BaselineConfig, NeuralEncoderChoice, NeuralModelConfig
from ssl_vivit.pretrained import load_pretrained
from ssl_vivit.training import TrainingConfig, parse
from ssl_vivit.training.checkpoints.files import (
    MANIFEST,
    file_fingerprint,
    read_checkpoint,
    read_generators,
    write_checkpoint,
)
from ssl_vivit.training.checkpoints.state import TrainingState
from ssl_vivit.training.metrics.tracking import cut_off, read_metrics
from ssl_vivit.training.run_directory import open_run

ROOT = Path(__file__).parents[1]
PARITY = Path(__file__).parent / "encoders" / "parity"
FRAMES = 6


def shards(folder: Path) -> None:
    videos = folder / "source"
    render(videos, 2, size=(16, 24), num_frames=FRAMES, workers=1, progress=False)
    words = ["--videos", str(videos), "--annotations", str(videos), "--frames", str(FRAMES)]
    for storage in ("original", "jpeg"):
        out = ["--out", str(folder), "--workers", "1", "--storage", storage, "--prefix", storage]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert clevrer_command(["pack", *words, *out]) == 0
    shutil.rmtree(videos)


def read_shards(folder: Path) -> None:
    for storage in ("original", "jpeg"):
        found = ShardSet(str(folder / f"{storage}-*.tar"))
        for i in range(len(found)):
            found.frames(i, [0, int(found.num_frames[i]) - 1])
            found.annotation(i)
            found.times(i)


def video(folder: Path) -> None:
    render(folder, 1, size=(16, 24), num_frames=FRAMES, workers=1, progress=False)
    next(folder.rglob("*.mp4")).rename(folder / "video.mp4")


def read_video(folder: Path) -> None:
    content = (folder / "video.mp4").read_bytes()
    info = probe_video(content)
    decode_frames(content, [0, min(info.num_frames, 1000) - 1], (8, 8))


def annotation(folder: Path) -> None:
    render(folder, 1, size=(16, 24), num_frames=FRAMES, workers=1, progress=False)
    next(folder.rglob("annotation_*.json")).rename(folder / "annotation.json")


def read_annotation(folder: Path) -> None:
    content = (folder / "annotation.json").read_bytes()
    kept = renumbered(content, [0, 2, 4], FRAMES)
    clip_labels(read_json_text(renumbered(content, list(range(FRAMES)), FRAMES)), [0, 3])
    clip_labels(read_json_text(kept), [0, 2])


def settings(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(ROOT / "recipes" / "configs" / "simclr_vivit_cpu.yaml", folder / "settings.yaml")


def read_settings(folder: Path) -> None:
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            parse(SimCLRRecipe, ["--config", str(folder / "settings.yaml")])
    except SystemExit as end:
        line = told.getvalue()
        if end.code != 2 or line.count("\n") != 1:
            raise AssertionError(f"status {end.code}: {line}") from end
        raise UserError(line) from None


SMALL = {"num_frames": 4, "image_size": (16, 24), "tubelet_size": (2, 8, 8)}


def encoder(folder: Path, **changes: object) -> None:
    sizes = {"embed_dim": 8, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1}
    made = create_encoder("vivit_tiny", **{**SMALL, **sizes, **changes})
    made.save_pretrained(folder, preprocessing={"mean": [0.5] * 3, "std": [0.1] * 3, "fps": 25.0})


def classifier(folder: Path) -> None:
    sizes = {"embed_dim": 8, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1}
    VideoClassifier(create_encoder("vivit_tiny", **SMALL, **sizes), 3).save_pretrained(folder)


def neural_model(core: str):
    def make(folder: Path) -> None:
        session = session_folder(folder / "session", size=(16, 24))
        facts = build_sessions(NeuralDataConfig(sessions=[str(session)])).facts
        small = {"embed_dim": 8, "num_heads": 2, "head_dim": 4, "spatial_depth": 1,
                 "temporal_depth": 1}  # fmt: skip
        built = build_neural_model(
            core, NeuralEncoderChoice(overrides=small), NeuralModelConfig(adapter=AdapterConfig()),
            BaselineConfig(), facts, longest=12,
        )  # fmt: skip
        save_neural_model(built.model, folder / "model", facts)
        shutil.rmtree(folder / "session")

    return make


def read_neural_model(folder: Path) -> None:
    load_neural_model(folder / "model")


def checkpoint(folder: Path) -> None:
    weights = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2)}
    moments = {f"{name}/exp_avg": value for name, value in weights.items()}
    groups = {"groups": [{"lr": 0.1, "params": list(weights)}], "state": {}}
    state = {"world_size": 1, "seed": 0, "total_batch_size": 64, "precision": "fp32"}
    generators = [{"tensors": {"torch": [1, 2, 3]}, "values": {"python": [3, [1, 2], None]}}]
    write_checkpoint(
        folder / "checkpoints", 8, TrainingState(weights, moments, groups), state, generators,
        lambda place: save_file(weights, place.mkdir() or place / "model.safetensors"),
    )  # fmt: skip
    (folder / "config.yaml").write_text("training: {steps: 9}\n")
    write_json(folder / "contents.json", {"data.shards": "abc"})


def read_run(folder: Path) -> None:
    loop = TrainingConfig(run_dir=str(folder), resume="auto")
    found = open_run(loop, {"training": {"steps": 9}}, lambda line: None, {"data.shards": "abc"})
    if found is not None:
        read_checkpoint(found)
        read_generators(found, 0)


def seal(folder: Path) -> None:
    """Update the manifest after a change of the files, as an attacker would."""
    place = folder / "checkpoints" / "step_00000008"
    manifest = json.loads((place / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = file_fingerprint(place / name)
    (place / MANIFEST).write_text(json.dumps(manifest))


def scenic(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(PARITY / "scenic_ckpt_model2_token_newparams.msgpack", folder / "checkpoint")


def read_scenic(folder: Path) -> None:
    open_source(str(folder / "checkpoint"), Request(video_shape=(8, 8, 12)))


def transformers(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(PARITY / "hf_vivit.v5.safetensors", folder / "model.safetensors")
    config = json.loads((PARITY / "hf_vivit.json").read_text())["config"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vivit"}))
    processor = {"do_rescale": True, "rescale_factor": 1 / 127.5, "offset": True,
                 "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def read_transformers(folder: Path) -> None:
    open_source(str(folder), Request())


def session(folder: Path) -> None:
    facts = {"frames_per_second": 30.0, "responses": "spikes"}
    made = session_folder(folder.parent, folder.name, settings=facts)
    assert made == folder


def read_session(folder: Path) -> None:
    found = Session(folder)
    for trial in found.trials:
        found.video(trial)
        found.behaviour(trial)


def features(folder: Path) -> None:
    files = FeatureFiles(folder, {"features": "both", "part_size": 2}, 1)
    files.begin(print)
    tensors = {"frames": torch.arange(2).reshape(2, 1), "pooled": torch.ones(2, 4)}
    files.write(0, ["a", "b"], {**tensors, "tokens": torch.ones(2, 1, 2, 2, 4)}, {})
    files.finish({})


def renew_index(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index.pop("crc32", None)
    write_index(folder, index)


def read_features(folder: Path) -> None:
    read_index(folder)
    load_features(folder)


def lines(folder: Path) -> None:
    pretraining_run(folder.parent).rename(folder)
    (folder / "best").mkdir()
    write_json(folder / "best" / "score.json", {"step": 4, "name": "bps_mean", "score": 0.5})


def read_lines(folder: Path) -> None:
    read_metrics(folder / "metrics.jsonl")
    cut_off(folder / "metrics.jsonl", 10)
    found = RunFiles(folder)
    _ = found.metrics, found.config, found.setting("training.steps"), found.exported
    best_score(folder)


STEP = "checkpoints/step_00000008"
CHECKPOINT = ("model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json",
              "rng_0.json", "rng_0.safetensors")  # fmt: skip
WEIGHTS = ("config.json", "model.safetensors")
PARTS = ("data/videos/0.npy", "data/responses/0.npy", "data/behavior/0.npy",
         "data/pupil_center/0.npy", "meta/trials/tiers.npy", "meta/neurons/unit_ids.npy",
         "meta/neurons/cell_motor_coordinates.npy", "meta/session.json")  # fmt: skip

READERS = [
    Reader("tars", shards, ("original-000000.tar", "jpeg-000000.tar"), read_shards),
    Reader("shard indexes", shards, ("original-000000.json", "jpeg-000000.json"), read_shards),
    Reader(
        "tars without an index", shards, ("original-000000.tar", "jpeg-000000.tar"),
        lambda folder: [build_index(tar) for tar in sorted(folder.glob("*.tar"))],
    ),
    Reader("videos", video, ("video.mp4",), read_video),
    Reader("annotations", annotation, ("annotation.json",), read_annotation),
    Reader("command configs", settings, ("settings.yaml",), read_settings, 10),
    Reader("encoders", encoder, WEIGHTS, load_encoder),
    Reader("classifiers", classifier, WEIGHTS, load_pretrained),
    Reader(
        "models of neurons", neural_model("vivit"),
        ("model/config.json", "model/config.json", "model/model.safetensors",
         "model/encoder/config.json"),
        read_neural_model,
    ),
    *(
        Reader(
            f"models of neurons, {core}", neural_model(core), tuple(f"model/{n}" for n in WEIGHTS),
            read_neural_model, 20,
        )
        for core in ("ln", "energy", "resnet")
    ),
    Reader(
        "run directories", checkpoint,
        ("config.yaml", "contents.json", *(f"{STEP}/{n}" for n in (MANIFEST, *CHECKPOINT))),
        read_run,
    ),
    Reader(
        "sealed checkpoints", checkpoint, tuple(f"{STEP}/{n}" for n in CHECKPOINT), read_run,
        mend=seal,
    ),
    Reader("checkpoints of Scenic", scenic, ("checkpoint",), read_scenic),
    Reader(
        "directories of transformers", transformers, (*WEIGHTS, "preprocessor_config.json"),
        read_transformers,
    ),
    Reader("sessions", session, PARTS, read_session),
    Reader("features", features, ("index.json", "features-00000.safetensors"), read_features),
    Reader("sealed features", features, ("index.json",), read_features, mend=renew_index),
    Reader(
        "run logs", lines, ("metrics.jsonl", "config.yaml", "best/score.json"), read_lines
    ),
]  # fmt: skip
