"""Exported encoders: whole, loadable elsewhere bit for bit, and refused in one line when damaged."""

import json
import subprocess
import sys

import pytest
import torch

from ssl_vivit import create_encoder, load_encoder

SETTINGS = {"num_frames": 8, "image_size": (32, 48), "tubelet_size": (4, 16, 16)}
PREPROCESSING = {"mean": [0.5], "std": [0.2], "fps": 25.0, "frame_stride": 2}


@pytest.fixture
def exported(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder("vivit_tiny", **SETTINGS).eval()
    encoder.save_pretrained(
        tmp_path / "encoder",
        preprocessing=PREPROCESSING,
        card={"objective": "SimCLR", "versions": {"torch": "2.0", "timm": "1.0"}},
    )
    return encoder, tmp_path / "encoder"


def test_the_directory_holds_safetensors_json_and_the_card_only(exported):
    _, path = exported
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert [file.name for file in path.parent.iterdir()] == ["encoder"]
    card = (path / "README.md").read_text()
    assert "| objective | SimCLR |" in card
    assert "| versions | torch 2.0, timm 1.0 |" in card
    assert "torch.rand(1, 3, 8, 32, 48)" in card


def test_another_process_gives_the_same_features_bit_for_bit(exported, tmp_path):
    encoder, path = exported
    video = torch.rand(2, 3, 8, 32, 48, generator=torch.Generator().manual_seed(3))
    script = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from ssl_vivit import load_encoder\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "video = torch.rand(2, 3, 8, 32, 48, generator=torch.Generator().manual_seed(3))\n"
        "with torch.no_grad():\n"
        "    out = load_encoder(sys.argv[1])(video)\n"
        "save_file({'pooled': out.pooled.contiguous(), 'tokens': out.tokens.contiguous()}, sys.argv[2])\n"
    )
    target = tmp_path / "features.safetensors"
    subprocess.run([sys.executable, "-c", script, path, target], check=True, cwd=tmp_path)
    from safetensors.torch import load_file

    features = load_file(target)
    with torch.no_grad():
        expected = encoder(video)
    assert torch.equal(features["pooled"], expected.pooled)
    assert torch.equal(features["tokens"], expected.tokens)


def test_preprocessing_and_config_travel_with_the_weights(exported):
    encoder, path = exported
    loaded = load_encoder(path)
    assert loaded.config == encoder.config
    assert loaded.preprocessing == PREPROCESSING
    assert not loaded.training
    assert load_encoder(path, drop_path=0.1).config.drop_path == 0.1


def test_a_second_export_replaces_the_first(exported):
    _, path = exported
    other = create_encoder("vivit_tiny", **SETTINGS)
    other.save_pretrained(path)
    assert torch.equal(load_encoder(path).tubelets.weight, other.tubelets.weight)
    assert [file.name for file in path.parent.iterdir()] == ["encoder"]


def test_a_failed_export_leaves_the_old_one(exported):
    encoder, path = exported
    before = (path / "model.safetensors").read_bytes()
    with pytest.raises(TypeError):
        encoder.save_pretrained(path, preprocessing={"mean": object()})
    assert (path / "model.safetensors").read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["encoder"]


def test_rotary_encoders_load_at_another_length(tmp_path):
    encoder = create_encoder("vivit_neural_small").eval()
    encoder.save_pretrained(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder", num_frames=32)
    video = torch.rand(1, 1, 32, 36, 64)
    with torch.no_grad():
        assert torch.equal(loaded(video).tokens, encoder(video).tokens)


def damage(path, what):
    if what == "missing":
        (path / "model.safetensors").unlink()
    elif what == "truncated":
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif what == "json":
        (path / "config.json").write_text("{")
    else:
        config = json.loads((path / "config.json").read_text())
        if what == "format":
            config["format"] = 99
        else:
            config["encoder"][what] = 5
        (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "model.safetensors is missing; give the directory"),
        ("truncated", "is damaged"),
        ("json", "not readable as JSON"),
        ("format", "not of encoder format 1"),
        ("spatial_depth", "does not fit the encoder of config.json.* and .* more"),
        ("hidden_size", "encoder setting 'hidden_size' is unknown"),
    ],
)
def test_damaged_directories_are_refused_in_one_line(exported, what, message):
    _, path = exported
    damage(path, what)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        load_encoder(path)
    assert "\n" not in str(refusal.value)


def test_overrides_that_the_weights_do_not_fit_are_named(exported):
    _, path = exported
    with pytest.raises(ValueError, match=r"with image_size overridden: positions\.spatial"):
        load_encoder(path, image_size=(64, 64))
