"""Exported encoders: complete, loaded bit for bit, refused in one line if damaged."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_vivit import create_encoder, load_encoder
from ssl_vivit.encoders.adapt import adapt
from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.encoder_card import encoder_card
from ssl_vivit.errors import MissingError
from ssl_vivit.exported.directory import find_directory
from ssl_vivit.neural.prediction import MODEL_OF_NEURONS

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


def test_the_directory_contains_only_safetensors_json_and_the_card(exported):
    _, path = exported
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert [file.name for file in path.parent.iterdir()] == ["encoder"]
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1
    card = (path / "README.md").read_text()
    assert "| objective | SimCLR |" in card
    assert "| versions | torch 2.0, timm 1.0 |" in card
    assert "torch.rand(1, 3, 8, 32, 48)" in card
    assert "| causal in time | no |" in card
    causal = dataclasses.replace(exported[0].config, temporal_causal=True)
    assert "| causal in time | yes |" in encoder_card(causal, None, {})


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


def test_facts_of_the_run_travel_with_the_weights_and_those_of_the_run_before(exported, tmp_path):
    _, path = exported
    first = {"objective": "SimCLR", "versions": {"torch": "2.0", "timm": "1.0"}}
    loaded = load_encoder(path, num_frames=4)
    assert loaded.provenance == first
    loaded.save_pretrained(tmp_path / "same")
    assert load_encoder(tmp_path / "same").provenance == first
    assert "| versions | torch 2.0, timm 1.0 |" in (tmp_path / "same" / "README.md").read_text()
    model = VideoClassifier(loaded, 3)
    model.save_pretrained(tmp_path / "tuned", card={"data": {"videos": 2, "contents": ["a", "b"]}})
    tuned = load_encoder(tmp_path / "tuned").provenance
    assert tuned == {"data": {"videos": 2, "contents": ["a", "b"]}, "before": first}
    assert "| data | videos 2 |" in (tmp_path / "tuned" / "README.md").read_text()
    load_encoder(tmp_path / "tuned").save_pretrained(tmp_path / "copy")
    assert (
        "| before | objective SimCLR, versions (torch 2.0, timm 1.0) |"
        in (tmp_path / "copy" / "README.md").read_text()
    )
    assert create_encoder("vivit_tiny", **SETTINGS).provenance is None


def test_a_second_export_replaces_the_first(exported):
    _, path = exported
    other = create_encoder("vivit_tiny", **SETTINGS)
    other.save_pretrained(path)
    assert torch.equal(load_encoder(path).tubelets.weight, other.tubelets.weight)
    assert [file.name for file in path.parent.iterdir()] == ["encoder"]


def test_other_files_survive_the_replacement_of_an_export(exported):
    encoder, path = exported
    (path / "notes").mkdir()
    (path / "notes" / "a.txt").write_text("precious")
    VideoClassifier(encoder, 3).save_pretrained(path)
    encoder.save_pretrained(path)
    assert (path / "notes" / "a.txt").read_text() == "precious"
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "notes",
    ]  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["encoder"]


def test_nothing_but_an_export_is_ever_replaced(exported, monkeypatch):
    encoder, path = exported
    other = path.parent / "other"
    other.mkdir()
    encoder.save_pretrained(other)  # nothing in it, nothing to lose
    data, file, config = (path.parent / name for name in ("data", "file", "config"))
    data.mkdir()
    (data / "session.npy").write_text("precious")
    file.write_text("precious")
    config.mkdir()
    (config / "config.json").write_text('{"model_type": "vivit"}')
    before = sorted(path.parent.rglob("*"))
    for place in (data, file, config, path.parent, file / "encoder"):
        with pytest.raises(ValueError, match="choose another directory") as error:
            encoder.save_pretrained(place)
        assert str(error.value).startswith(str(place))
    monkeypatch.chdir(data)
    with pytest.raises(ValueError, match=r"^\. exists and is no exported encoder"):
        encoder.save_pretrained(".")
    assert sorted(path.parent.rglob("*")) == before
    assert file.read_text() == (data / "session.npy").read_text() == "precious"


def test_an_export_through_a_link_replaces_the_links_target(exported):
    encoder, path = exported
    link = path.parent / "latest"
    link.symlink_to(path)
    VideoClassifier(encoder, 3).save_pretrained(link)
    assert link.is_symlink()
    assert (path / "classifier.safetensors").exists()
    assert sorted(file.name for file in path.parent.iterdir()) == ["encoder", "latest"]


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
    elif what == "infinite":
        weights = load_file(path / "model.safetensors")
        weights["trunk.temporal_norm.weight"][3] = float("inf")
        save_file(weights, path / "model.safetensors")
    elif what == "json":
        (path / "config.json").write_text("{")
    else:
        config = json.loads((path / "config.json").read_text())
        if what == "format":
            config["format"] = 99
        elif what == "std":
            config["preprocessing"] = {"mean": [0.5], "std": [float("nan")]}
        else:
            config["encoder"][what] = 5
        (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "model.safetensors is missing; give the directory"),
        ("truncated", "is damaged"),
        ("json", "not valid JSON"),
        (
            "infinite",
            r"holds weights that are NaN or infinite: trunk\.temporal_norm\.weight; export",
        ),
        ("std", r"config\.json: preprocessing std is nan; it must be positive and finite"),
        ("format", "does not have exported encoder format 1"),
        (
            "spatial_depth",
            r"does not fit the encoder of config.json: trunk.spatial_blocks has 8 blocks instead of 5",
        ),
        ("hidden_size", "encoder setting 'hidden_size' is unknown"),
    ],
)
def test_damaged_directories_are_refused_in_one_line(exported, what, message):
    _, path = exported
    damage(path, what)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        load_encoder(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "vivit", "architectures": ["VivitModel"]},
            r"transformers \(model_type vivit\); convert .* `python -m ssl_vivit.encoders.imports`",
        ),
        ({"architecture": "vit_base_patch16_224", "num_classes": 0}, "by another program"),
        (["a", "list"], "by another program"),
    ],
)
def test_a_config_of_another_program_is_refused(exported, config, message):
    _, path = exported
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as refusal:
        load_encoder(path)
    assert "\n" not in str(refusal.value)


def test_overrides_that_the_weights_do_not_fit_are_named(exported):
    _, path = exported
    with pytest.raises(ValueError, match=r"encoder with embed_dim overridden: .* and \d+ more"):
        load_encoder(path, embed_dim=96)
    with pytest.raises(ValueError, match="'image_sise' is unknown; did you mean 'image_size'"):
        load_encoder(path, image_sise=(64, 64))
    with pytest.raises(ValueError, match="num_heads '3' must be a whole number"):
        load_encoder(path, num_heads="3")


def test_missing_and_extra_weights_are_named_at_most_ten(exported):
    _, path = exported
    weights = load_file(path / "model.safetensors")
    moved = [name for name in weights if name.startswith("trunk.spatial_blocks.0.")][:7]
    weights = {("old." + name if name in moved else name): v for name, v in weights.items()}
    save_file(weights, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the encoder of config.json") as refusal:
        load_encoder(path)
    message = str(refusal.value)
    assert message.count(" missing") == 7
    assert message.count(" unexpected") == 3
    assert message.endswith("and 4 more")
    assert "trunk.spatial_blocks.0.attention_norm.weight missing" in message


def test_another_geometry_loads_as_adapt_gives_it(exported, tmp_path):
    _, path = exported
    geometry = {"image_size": (64, 96), "num_frames": 16, "in_channels": 1}
    loaded = load_encoder(path, **geometry, drop_path=0.1, tubelet_size=(4, 8, 8))
    expected = adapt(load_encoder(path), **geometry, tubelet_size=(4, 8, 8))
    assert not loaded.training
    assert loaded.config.drop_path == 0.1
    assert loaded.config.tubelet_stride == (4, 8, 8)
    assert loaded.config.grid == (4, 8, 12)
    for (name, one), other in zip(loaded.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert loaded.preprocessing == PREPROCESSING
    # saved and loaded again: the same bits, without a trace of the old geometry
    loaded.save_pretrained(tmp_path / "again")
    again = load_encoder(tmp_path / "again")
    assert again.config == loaded.config
    assert again.preprocessing == loaded.preprocessing
    for one, other in zip(again.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


def test_causal_checkpoints_get_a_table_for_more_frames_once(tmp_path):
    create_encoder("vivit_tiny", **SETTINGS, temporal_causal=True).save_pretrained(tmp_path / "e")
    table = load_encoder(tmp_path / "e").positions.temporal
    assert torch.equal(load_encoder(tmp_path / "e", num_frames=4).positions.temporal, table[:1])
    longer = load_encoder(tmp_path / "e", num_frames=12)
    # Of two steps three, linear between their centres.
    expected = torch.stack([table[0], table.mean(0), table[1]])
    torch.testing.assert_close(longer.positions.temporal, expected)
    with pytest.raises(ValueError, match="at most 3 time steps, since causal tables are not"):
        longer(torch.zeros(1, 3, 16, *longer.config.image_size))


def test_a_causal_request_is_warned_of(exported):
    _, path = exported
    with pytest.warns(UserWarning, match="temporal_causal=True on weights trained without it"):
        assert load_encoder(path, temporal_causal=True).config.temporal_causal


@pytest.fixture(params=[(5, None), (5, 24), (0, 24), (0, None)])
def classifier(request, tmp_path):
    torch.manual_seed(0)
    num_classes, representation_size = request.param
    encoder = create_encoder("vivit_tiny", **SETTINGS)
    encoder.preprocessing = PREPROCESSING
    model = VideoClassifier(encoder, num_classes, representation_size, drop_rate=0.25).eval()
    model.save_pretrained(tmp_path / "model", card={"objective": "labels"})
    return model, tmp_path / "model"


def test_classifiers_come_back_bit_for_bit(classifier):
    model, path = classifier
    video = torch.rand(2, 3, 8, 32, 48)
    loaded = VideoClassifier.from_pretrained(path)
    assert not loaded.training
    assert loaded.head_drop.p == 0.25
    assert VideoClassifier.from_pretrained(path, drop_rate=0.0).head_drop.p == 0.0
    assert loaded.encoder.preprocessing == PREPROCESSING
    with torch.no_grad():
        assert torch.equal(loaded(video), model(video))
        assert torch.equal(load_encoder(path)(video).tokens, model.encoder(video).tokens)
    assert f"| classes | {model.num_classes} |" in (path / "README.md").read_text()


def test_classifiers_load_at_another_geometry(classifier):
    model, path = classifier
    larger = VideoClassifier.from_pretrained(path, image_size=(64, 96), tubelet_size=(4, 32, 32))
    video = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 2, 3), (8, 32, 48))
    upsampled = torch.nn.functional.interpolate(video, (8, 64, 96))
    with torch.no_grad():
        assert torch.allclose(larger(upsampled), model(video), atol=1e-5)


def test_a_head_that_is_not_there_or_does_not_fit_is_refused(classifier, exported):
    _, path = classifier
    with pytest.raises(ValueError, match="contains an encoder without a classifier"):
        VideoClassifier.from_pretrained(exported[1])
    config = json.loads((path / "config.json").read_text())
    config["classifier"]["representation_size"] = 7
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit the classifier of config.json: .*weight"):
        VideoClassifier.from_pretrained(path)
    (path / "classifier.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"classifier\.safetensors is missing"):
        VideoClassifier.from_pretrained(path)


def test_an_encoder_over_a_classifier_leaves_no_head_behind(classifier):
    model, path = classifier
    model.encoder.save_pretrained(path)
    assert not (path / "classifier.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_keep_their_precision(dtype, tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder(
        "tiny", num_frames=8, image_size=(32, 32), spatial_depth=1, temporal_depth=1
    ).to(dtype)
    model = VideoClassifier(encoder, 3, representation_size=8).to(dtype)
    model.save_pretrained(tmp_path / "model")
    again = VideoClassifier.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == dtype
        assert torch.equal(again.state_dict()[name], value)
    assert load_encoder(tmp_path / "model").tubelets.weight.dtype == dtype


def test_weights_of_half_the_size_load_in_the_precision_of_the_encoder(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder(
        "tiny", num_frames=8, image_size=(32, 32), spatial_depth=1, temporal_depth=1
    ).eval()
    encoder.save_pretrained(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "half", stored_dtype=torch.float16)
    whole, half = (
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")
    )
    assert half < 0.51 * whole
    again = load_encoder(tmp_path / "half")
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())
    video = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(video).pooled, encoder(video).pooled, rtol=0, atol=2e-2)
    # What is exported from there is in one precision again.
    again.save_pretrained(tmp_path / "again")
    assert "dtype" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_weights_beyond_half_precision_and_unknown_precisions_are_refused(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder(
        "tiny", num_frames=8, image_size=(32, 32), spatial_depth=1, temporal_depth=1
    )
    encoder.save_pretrained(tmp_path / "half", stored_dtype=torch.float16)
    with torch.no_grad():
        encoder.tubelets.weight[0] = 1e5
    with pytest.raises(
        ValueError, match=r"tubelets\.weight has values too large for stored_dtype torch\.float16"
    ):
        encoder.save_pretrained(tmp_path / "large", stored_dtype=torch.float16)
    assert not (tmp_path / "large").exists()
    config = tmp_path / "half" / "config.json"
    for wrong in ("float33", ["float32"]):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": wrong}))
        with pytest.raises(ValueError, match=r"dtype of config\.json is .*one of float64, float32"):
            load_encoder(tmp_path / "half")


def test_a_run_that_has_not_ended_is_named(tmp_path):
    """The message says when the run writes its model, and names the best model so far."""
    (tmp_path / "config.yaml").write_text("core: ln")
    with pytest.raises(MissingError, match=r"as RUN/model; the run writes \S+/model when it ends$"):
        find_directory(tmp_path, MODEL_OF_NEURONS)
    # A later export replaces an earlier one in the message.
    for place in ("checkpoints/step_00000900", "checkpoints/step_00001000", "best"):
        _export_in(tmp_path / place / "model")
        expected = rf"give \S+/{place}/model instead; the run writes \S+/model when it ends$"
        for path in (tmp_path, tmp_path / "model"):
            with pytest.raises(MissingError, match=expected):
                find_directory(path, MODEL_OF_NEURONS)
    _export_in(tmp_path / "model")
    with pytest.raises(MissingError, match=rf"give {tmp_path}/model instead$"):
        find_directory(tmp_path, MODEL_OF_NEURONS)


def _export_in(directory):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
