"""python -m ssl_vivit.encoders.imports: conversion of checkpoints to directories that can be loaded."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from parity_files import PARITY, ScenicCase
from safetensors.torch import load_file, save_file

from ssl_vivit import VideoClassifier
from ssl_vivit.encoders import load_encoder
from ssl_vivit.encoders.imports import config_from_timm, from_hf_vivit, from_timm
from ssl_vivit.encoders.imports.__main__ import main

SCENIC = PARITY / "scenic_ckpt_model2_token_newparams.msgpack"
BACKBONE = json.dumps(
    {"t": 4, "h": 8, "w": 12, "patch_t": 2, "patch_h": 4, "patch_w": 4, "heads": 3, "dim_head": 8}
)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    """Return the one line of an error, and check that no files are left."""
    out = arguments[1]
    before = sorted(out.parent.rglob("*"))
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert sorted(out.parent.rglob("*")) == before
    return lines[0]


def vivit_directory(path):
    path.mkdir()
    known = json.loads((PARITY / "hf_vivit.json").read_text())
    shutil.copy(PARITY / "hf_vivit.v5.safetensors", path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(known["config"] | {"model_type": "vivit"}))
    return path


def backbone_file(path):
    state = load_file(PARITY / "drv_agwl_model3_tiny.safetensors")
    state["pos_embedding"] = state.pop("_pos_embedding_not_in_state_dict")
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def test_a_scenic_checkpoint(tmp_path, capsys):
    out = tmp_path / "made" / "encoder"
    assert run(SCENIC, out, "--video-shape", 8, 8, 12) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "factorized_encoder of 2 + 2 blocks" in line
    assert "7 classes" in line
    case = ScenicCase("model2_token")
    with torch.no_grad():
        logits = VideoClassifier.from_pretrained(out).double()(case.video)
        pooled = load_encoder(out).double()(case.video).pooled
    torch.testing.assert_close(logits, case.expected("logits_f64"), rtol=0, atol=1e-10)
    torch.testing.assert_close(pooled, case.expected("prelogits_f64"), rtol=0, atol=1e-10)
    # Scenic's pixels are in [−1, 1].
    assert load_encoder(out).preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert load_encoder(out).preprocessing["std"] == [0.5, 0.5, 0.5]


def test_a_scenic_checkpoint_with_its_config_in_a_file(tmp_path):
    case = ScenicCase("model2_token")
    file = tmp_path / "model.json"
    file.write_text(json.dumps(case.model_config))
    assert run(SCENIC, tmp_path / "e", "--config", file, "--video-shape", 8, 8, 12) == 0
    file.write_text(json.dumps(case.model_config | {"hidden_size": 96}))
    assert run(SCENIC, tmp_path / "f", "--config", file, "--video-shape", 8, 8, 12) == 2


@pytest.mark.parametrize("of_file", [True, False])
def test_a_directory_of_transformers(tmp_path, of_file):
    source = vivit_directory(tmp_path / "source")
    assert run(source / "model.safetensors" if of_file else source, tmp_path / "out") == 0
    arrays = np.load(PARITY / "hf_vivit.npz")
    video = torch.from_numpy(arrays["pixel_values"]).transpose(1, 2)
    with torch.no_grad():
        out = VideoClassifier.from_pretrained(tmp_path / "out")(video)
    torch.testing.assert_close(out, torch.from_numpy(arrays["pooler_output"]), rtol=0, atol=1e-5)


def test_sharded_weights_and_preprocessing_of_transformers(tmp_path):
    source = vivit_directory(tmp_path / "source")
    state = load_file(source / "model.safetensors")
    expected = from_hf_vivit(state, json.loads((source / "config.json").read_text()))
    names = sorted(state)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for part, inside in parts.items():
        save_file({name: state[name] for name in inside}, source / part)
    weight_map = {name: part for part, inside in parts.items() for name in inside}
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    processor = {
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "offset": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.25, 0.5],
    }
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    assert run(source, tmp_path / "out") == 0
    loaded = VideoClassifier.from_pretrained(tmp_path / "out")
    for (name, ours), theirs in zip(loaded.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    # As transformers computes it: pixel / 127.5 − 1, then minus mean, over std.
    pixel = np.array([0.0, 100.0, 255.0])
    theirs = (pixel / 127.5 - 1 - processor["image_mean"]) / processor["image_std"]
    known = loaded.encoder.preprocessing
    ours = (pixel / 255 - known["mean"]) / known["std"]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_timm_model_in_a_safetensors_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224")
    file = tmp_path / "vit.safetensors"
    save_file({name: value.clone() for name, value in model.state_dict().items()}, file)
    settings = ("--set", "variant=joint", "--set", "image_size=[32, 48]", "--set", "depth=2")
    named = ("--timm-architecture", "vit_tiny_patch16_224")
    assert run(file, tmp_path / "out", *named, *settings) == 0
    overrides = {"variant": "joint", "image_size": (32, 48), "depth": 2}
    expected = from_timm(model, config_from_timm(model, **overrides))
    loaded = load_encoder(tmp_path / "out")
    assert loaded.config == expected.config
    assert loaded.preprocessing["mean"] == [0.5, 0.5, 0.5]
    for name in ("tubelets.weight", "trunk.blocks.1.mlp.fc2.weight", "trunk.class_token"):
        assert torch.equal(loaded.state_dict()[name], expected.state_dict()[name])


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_backbone(tmp_path, suffix):
    file = backbone_file(tmp_path / f"backbone.{suffix}")
    assert run(file, tmp_path / "out", "--config", BACKBONE) == 0
    arrays = np.load(PARITY / "drv_agwl_model3_tiny.npz")
    with torch.no_grad():
        out = VideoClassifier.from_pretrained(tmp_path / "out")(torch.from_numpy(arrays["input"]))
    torch.testing.assert_close(out, torch.from_numpy(arrays["output"]), rtol=0, atol=1e-6)


def test_the_same_command_writes_the_same_bytes(tmp_path):
    backbone = load_file(backbone_file(tmp_path / "backbone.safetensors"))
    del backbone["pos_embedding"]
    save_file(backbone, tmp_path / "backbone.safetensors")
    for out in ("a", "b"):
        assert run(tmp_path / "backbone.safetensors", tmp_path / out, "--config", BACKBONE) == 0
    files = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("a", "b")]
    assert files[0] == files[1]


def test_an_exported_encoder_is_replaced_and_anything_else_is_not(tmp_path, capsys):
    out = tmp_path / "out"
    shape = ("--video-shape", 8, 8, 12)
    assert run(SCENIC, out, *shape) == 0
    assert run(vivit_directory(tmp_path / "source"), out) == 0
    assert load_encoder(out).config.variant == "joint"
    capsys.readouterr()
    assert "exists and is no exported encoder" in refused(
        capsys, SCENIC, tmp_path / "source", *shape
    )
    (tmp_path / "file").write_text("precious")
    assert "is no exported encoder" in refused(capsys, SCENIC, tmp_path / "file", *shape)
    assert (tmp_path / "file").read_text() == "precious"
    # A failed import leaves what was there.
    refused(capsys, SCENIC, out)
    assert load_encoder(out).config.variant == "joint"


def test_mistakes_get_one_line(tmp_path, capsys):
    out = tmp_path / "out"
    source = vivit_directory(tmp_path / "source")
    weights = source / "model.safetensors"
    bare = tmp_path / "bare.safetensors"
    shutil.copy(weights, bare)
    text = tmp_path / "notes.txt"
    text.write_text("no checkpoint")
    empty = tmp_path / "empty"
    empty.mkdir()
    backbone = backbone_file(tmp_path / "backbone.safetensors")
    exported = tmp_path / "exported"
    assert run(source, exported) == 0
    capsys.readouterr()
    cases = [
        ((tmp_path / "none", out), "neither a file or directory nor the name of a timm model"),
        (("org/name", out), "run `hf download org/name --local-dir DIR` and give DIR"),
        ((exported, out), "exported is already an exported encoder; load it with load_encoder"),
        ((exported / "model.safetensors", out), "is already an exported encoder"),
        (
            (source, text / "out"),
            f"cannot be created: {text} is not writable; choose another directory",
        ),
        ((text, out), "truncated or not a flax msgpack checkpoint"),
        ((empty, out), "contains no model.safetensors"),
        (
            (SCENIC, out),
            "6 spatial positions do not form a square grid; give the shape (T, H, W)",
        ),
        (
            (SCENIC, out, "--video-shape", 8, 8, 16),
            "pos_embedding has shape (1, 7, 48) instead of (1, 9, 48)",
        ),
        ((SCENIC, out, "--set", "depth=2"), "--set does not apply to a Scenic checkpoint"),
        ((bare, out), "cannot be recognised from its weights; give --config"),
        ((bare, out, "--config", '{"model_type": "bert"}'), "its config is for model_type bert"),
        ((bare, out, "--config", "{broken"), "--config {broken is not valid JSON"),
        ((bare, out, "--config", '{"hidden_size": "wide"}'), "value of the wrong type"),
        ((SCENIC, out, "--config", '{"attention_config": 3}'), "value of the wrong type"),
        ((bare, out, "--config", "[1]"), "neither a file nor JSON text in braces"),
        ((bare, out, "--video-shape", 1, 2, 3, "--config", '{"num_frames": 8}'), "--video-shape"),
        ((source, out, "--set", "depth=2"), "--set does not apply to a vivit of transformers"),
        ((backbone, out), "give --config with t, h, w"),
        ((bare, out, "--timm-architecture", "no_vit"), "timm cannot load 'no_vit'"),
        ((bare, out, "--timm-architecture", "vit_tiny_patch16_224"), "cls_token missing"),
        ((bare, out, "--timm-architecture", "vit_tiny_patch16_224", "--set", "x"), "NAME=VALUE"),
    ]
    for arguments, message in cases:
        line = refused(capsys, *arguments)
        assert message in line


def test_unknown_options_get_one_line(capsys):
    with pytest.raises(SystemExit) as status:
        run("source", "out", "--confg", "{}")
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown option --confg (did you mean --config?); see python ")
    assert error.count("\n") == 1


def test_an_import_that_is_interrupted_leaves_nothing(tmp_path, capsys, monkeypatch):
    source, out = vivit_directory(tmp_path / "source"), tmp_path / "made" / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    # The last step before the directory gets its name.
    monkeypatch.setattr(os, "rename", interrupted)
    assert run(source, out) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was written\n"
    assert list(out.parent.iterdir()) == []


def test_damaged_files_get_one_line(tmp_path, capsys):
    out = tmp_path / "out"
    source = vivit_directory(tmp_path / "source")
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert "truncated or not a safetensors file" in refused(capsys, source, out)
    weights.write_bytes(whole)
    (source / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refused(capsys, source, out)
    torch_file = backbone_file(tmp_path / "backbone.pt")
    torch_file.write_bytes(torch_file.read_bytes()[:2000])
    line = refused(capsys, torch_file, out, "--config", BACKBONE)
    assert "truncated or contains objects other than tensors" in line


class Executed:
    """Code that a pickle would run when it is opened."""

    def __reduce__(self):
        return os.mkdir, (os.environ["EXECUTED_MARK"],)


def test_a_torch_file_executes_nothing(tmp_path, capsys, monkeypatch):
    mark = tmp_path / "executed"
    monkeypatch.setenv("EXECUTED_MARK", str(mark))
    for name, write in (("zip.pt", torch.save), ("plain.pt", None)):
        file = tmp_path / name
        content = {"to_tubelet_embedding.1.weight": Executed()}
        if write is None:
            file.write_bytes(pickle.dumps(content))
        else:
            write(content, file)
        refused(capsys, file, tmp_path / "out", "--config", BACKBONE)
        assert not mark.exists()


def test_a_name_without_a_network_gives_one_line(tmp_path):
    command = [sys.executable, "-m", "ssl_vivit.encoders.imports", "timm:vit_tiny_patch16_224"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [*command, str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: timm cannot load 'vit_tiny_patch16_224'")
    assert "checkpoint" in lines[0]
    assert not (tmp_path / "out").exists()


def test_wrong_usage_has_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["only_a_source"])
    assert caught.value.code == 2
    assert "OUT_DIR" in capsys.readouterr().err
