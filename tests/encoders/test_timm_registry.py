"""The named sizes through timm.create_model."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_vivit import VideoClassifier, ViViTConfig
from ssl_vivit.encoders import named_config, sizes
from ssl_vivit.encoders.timm_registry import TIMM_SETTINGS, VideoFeatures
from ssl_vivit.errors import UserError

TINY = {"img_size": 32, "num_frames": 8, "embed_dim": 24, "num_heads": 2, "in_chans": 3}
VARIANTS = ["joint", "factorized_encoder", "factorized_self_attention", "factorized_dot_product"]


def video(batch=2, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((batch, channels, 8, 32, 32), generator=generator)


def test_importing_the_encoders_registers_every_size():
    code = (
        "import timm; assert not timm.list_models('vivit*'); import ssl_vivit.encoders; "
        "print(*timm.list_models('vivit*'), *timm.list_models(module='timm_registry'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted([*sizes(), "vivit"]) * 2
    assert "Overwriting" not in done.stderr
    for name in sizes():
        assert timm.is_model(name)
        assert timm.model_entrypoint(name).__name__ == name


def test_sizes_are_registered_if_timm_was_imported_first():
    code = "import timm, ssl_vivit; print(timm.is_model('vivit_tiny'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("name", sizes())
def test_models_are_the_named_sizes(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
        imagenet = timm.create_model(name)
    assert isinstance(model, VideoClassifier)
    assert model.encoder.config == named_config(name)
    assert (model.num_classes, imagenet.num_classes) == (10, 1000)
    assert imagenet.head.weight.shape == (1000, model.num_features)


def test_the_architecture_without_a_size_has_the_configs_own_defaults():
    with torch.device("meta"):
        model = timm.create_model("vivit", num_classes=3, spatial_depth=1)
    assert model.encoder.config == ViViTConfig(spatial_depth=1)
    assert model.num_classes == 3


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_video_becomes_logits_or_features(variant):
    for classes, width in ((10, 10), (0, 24)):
        model = timm.create_model("vivit_tiny", num_classes=classes, variant=variant, **TINY)
        found = model.eval()(video())
        assert found.shape == (2, width)
        pooled = model.encoder(video(), tokens=False).pooled
        expected = pooled if classes == 0 else pooled @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(found, expected)


def test_timms_names_set_the_corresponding_settings():
    # None of the values is a default, so a name that did nothing would show.
    given = {
        "in_chans": 1, "img_size": (32, 48), "drop_path_rate": 0.1, "patch_drop_rate": 0.2,
        "attn_drop_rate": 0.3, "proj_drop_rate": 0.4, "global_pool": "map",
    }  # fmt: skip
    expected = named_config(
        "vivit_small", in_channels=1, image_size=(32, 48), drop_path=0.1, patch_dropout=0.2,
        attention_dropout=0.3, mlp_dropout=0.4, pooling="attention", register_tokens=3,
    )  # fmt: skip
    assert given.keys() == TIMM_SETTINGS.keys()
    with torch.device("meta"):
        model = timm.create_model(
            "vivit_small", **given, drop_rate=0.5, representation_size=7, register_tokens=3
        )
        pools = [
            timm.create_model("vivit_small", img_size=pixels, global_pool=name).encoder.config
            for pixels, name in ((32, "avg"), ([32, 48], "token"), (64, "max"))
        ]
    assert model.encoder.config == expected
    assert model.head_drop.p == 0.5
    assert model.head_hidden_size == 7
    assert [config.pooling for config in pools] == ["mean", "cls_mean", "max"]
    assert [config.image_size for config in pools] == [(32, 32), (32, 48), (64, 64)]
    fields = {field.name for field in dataclasses.fields(ViViTConfig)}
    assert set(TIMM_SETTINGS.values()) <= fields
    assert not set(TIMM_SETTINGS) & fields


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": 32, "image_size": (32, 32)}, "give img_size or image_size, not both"),
        ({"pooling": "mean", "global_pool": "avg"}, "give global_pool or pooling, not both"),
        ({"drop_rat": 0.1}, "setting of vivit_tiny 'drop_rat' is unknown; did you mean 'drop_rat"),
        ({"temporal_dept": 0.1}, "did you mean 'temporal_depth'"),
        (
            {"pretrained": True},
            "vivit_tiny has no published weights.*checkpoint_path.*local-dir:DIR",
        ),
        ({"pretrained_cfg": "k400"}, "vivit_tiny has no published weights"),
        ({"pretrained_cfg_overlay": {"file": "a"}}, "omit pretrained, pretrained_cfg_overlay"),
        ({"out_indices": 2}, "out_indices needs features_only=True"),
        ({"features_only": True, "num_classes": 3}, "no head; omit num_classes"),
        ({"features_only": True, "out_indices": [12]}, r"indices \[12\] do not fit 12 blocks"),
        ({"img_size": 33}, "image_size height 33 is not filled"),
        ({"global_pool": "avgmax"}, "pooling 'avgmax' is unknown; choose one of cls_mean"),
    ],
)
def test_mistakes_get_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("vivit_tiny", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.bin", "nowhere.bin is not a file"),
        ("text.bin", "text.bin is damaged or no checkpoint"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_gets_one_line(tmp_path, name, message):
    (tmp_path / "text.bin").write_text("no weights\n")
    overlay = {"file": str(tmp_path / name)}
    with pytest.raises(
        UserError, match=f"^pretrained_cfg_overlay: .*{message}.*; give a"
    ) as caught:
        timm.create_model("vivit_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert "\n" not in str(caught.value)


def test_tags_are_refused_as_well():
    with pytest.raises(ValueError, match="vivit_small has no published weights"):
        timm.create_model("vivit_small.clevrer")


@torch.no_grad()
def test_a_checkpoint_is_loaded(tmp_path):
    source = timm.create_model("vivit_tiny", num_classes=5, **TINY).eval()
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    loaded = timm.create_model("vivit_tiny", num_classes=5, checkpoint_path=path, **TINY).eval()
    assert torch.equal(loaded(video()), source(video()))
    assert not torch.equal(
        timm.create_model("vivit_tiny", num_classes=5, **TINY).eval()(video()), source(video())
    )


@torch.no_grad()
def test_an_exported_encoder_is_loaded_under_a_fresh_head(tmp_path):
    source = timm.create_model("vivit_tiny", num_classes=5, **TINY).eval()
    source.encoder.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    ways = [
        {"checkpoint_path": path},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}},
    ]
    for way in ways:
        torch.manual_seed(3)
        fresh = timm.create_model("vivit_tiny", num_classes=4, **TINY)
        torch.manual_seed(3)
        loaded = timm.create_model("vivit_tiny", num_classes=4, **way, **TINY).eval()
        for name, value in loaded.encoder.state_dict().items():
            assert torch.equal(value, source.encoder.state_dict()[name])
        assert torch.equal(loaded.head.weight, fresh.head.weight)
    net = timm.create_model("vivit_tiny", features_only=True, **ways[1], **TINY).eval()
    (expected,) = source.forward_intermediates(video(), [11], intermediates_only=True)
    assert torch.equal(net(video())[-1], expected)


@pytest.mark.parametrize("settings", [{}, {"features_only": True}])
def test_an_exported_encoder_of_another_size_is_refused_in_one_line(tmp_path, settings):
    timm.create_model("vivit_tiny", num_classes=5, **TINY).encoder.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    other = TINY | {"embed_dim": 48}
    with pytest.raises(
        ValueError, match=r"does not fit the encoder: .* instead of .*local-dir:DIR"
    ) as caught:
        timm.create_model("vivit_tiny", checkpoint_path=path, **settings, **other)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_features_of_a_checkpoint_of_a_classifier_of_an_encoder_and_of_its_own(tmp_path):
    source = timm.create_model("vivit_tiny", num_classes=5, representation_size=7, **TINY).eval()
    expected = source.forward_intermediates(video(), [0, 3], intermediates_only=True)
    settings = {"features_only": True, "out_indices": [0, 3], **TINY}
    states = [source.state_dict(), source.encoder.state_dict()]
    states.append(timm.create_model("vivit_tiny", **settings).state_dict())
    states[2] = {name: source.get_parameter(name.removeprefix("model.")) for name in states[2]}
    for number, state in enumerate(states):
        path = tmp_path / f"{number}.safetensors"
        save_file(dict(state), path)
        net = timm.create_model("vivit_tiny", checkpoint_path=path, **settings)
        for got, own in zip(net.eval()(video()), expected, strict=True):
            assert torch.equal(got, own)
    with pytest.raises(RuntimeError, match=r"Missing key.*encoder\.tubelets\.bias"):
        net.load_state_dict({"encoder.tubelets.weight": source.encoder.tubelets.weight})


@pytest.fixture
def exported(tmp_path):
    """Return a classifier, its directory, and the directory of its encoder."""
    settings = TINY | {"representation_size": 7, "drop_rate": 0.25, "num_classes": 5}
    model = timm.create_model("vivit_tiny", temporal_depth=1, **settings).eval()
    model.save_pretrained(tmp_path / "classifier")
    model.encoder.save_pretrained(tmp_path / "encoder")
    return model, f"local-dir:{tmp_path / 'classifier'}", f"local-dir:{tmp_path / 'encoder'}"


@torch.no_grad()
def test_an_exported_directory_opens_by_timms_local_dir(exported):
    model, classifier, encoder = exported
    loaded = timm.create_model(classifier, pretrained=True)
    assert loaded.training  # as timm's models
    assert torch.equal(loaded.eval()(video()), model(video()))
    pooled = timm.create_model(encoder, pretrained=True).eval()
    assert torch.equal(pooled(video()), model.encoder(video(), tokens=False).pooled)

    # Another number of classes gets a fresh head, the rest stays.
    other = timm.create_model(classifier, pretrained=True, num_classes=3, drop_rate=0.5).eval()
    assert other.head_drop.p == 0.5
    before = [m.forward_head(m.forward_features(video()), True) for m in (other, model)]
    assert torch.equal(*before)
    assert other(video()).shape == (2, 3)
    assert timm.create_model(encoder, pretrained=True, num_classes=3)(video()).shape == (2, 3)
    sized = timm.create_model(encoder, pretrained=True, img_size=64, num_frames=4, in_chans=1)
    assert sized.encoder.config.image_size == (64, 64)
    assert sized(torch.randn(2, 1, 4, 64, 64)).shape == (2, 24)
    net = timm.create_model(classifier, pretrained=True, features_only=True, out_indices=[2])
    (expected,) = model.forward_intermediates(video(), [2], intermediates_only=True)
    assert torch.equal(net.eval()(video())[0], expected)


@torch.no_grad()
def test_without_pretrained_only_the_architecture_is_read(exported):
    model, classifier, encoder = exported
    fresh = timm.create_model(classifier, img_size=(32, 48))
    assert fresh.encoder.config == dataclasses.replace(model.encoder.config, image_size=(32, 48))
    assert (fresh.num_classes, fresh.head_hidden_size, fresh.head_drop.p) == (5, 7, 0.25)
    assert not torch.equal(fresh.encoder.tubelets.weight, model.encoder.tubelets.weight)
    assert timm.create_model(encoder).num_classes == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_dim": 48}, "does not fit the encoder with embed_dim overridden"),
        ({"representation_size": 9}, "saved with representation_size 7; omit representation_size"),
        ({"cache_dir": "c"}, "cache_dir c applies only to hf-hub: names; omit it"),
        ({"img_size": 33}, "image_size height 33 is not filled"),
        ({"drop_rat": 0.1}, "setting of vivit 'drop_rat' is unknown"),
    ],
)
def test_what_a_directory_cannot_give_is_refused_in_a_line(exported, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model(exported[1], pretrained=True, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("indices", "blocks"), [([0], [0]), (2, [10, 11]), ((-1, 3), [3, 11]), ([7], [7])]
)
def test_feature_extraction(variant, indices, blocks):
    net = timm.create_model(
        "vivit_tiny", features_only=True, out_indices=indices, variant=variant, **TINY
    )
    assert isinstance(net, VideoFeatures)
    maps = net(video())
    every = net.model.forward_intermediates(video(), intermediates_only=True)
    assert len(maps) == len(blocks)
    for index, got in zip(blocks, maps, strict=True):
        assert torch.equal(got, every[index])
    assert net.feature_info.channels() == [24] * len(blocks)
    assert net.feature_info.reduction() == [16] * len(blocks)
    assert [net.model.feature_info[i]["module"] for i in blocks] == net.feature_info.module_name()

    # What learns is what the maps depend on, no more and no less.
    learns = {name for name, p in net.named_parameters() if p.requires_grad}
    net.requires_grad_(True)
    sum(x.square().sum() for x in net(video())).backward()
    assert learns == {name for name, p in net.named_parameters() if p.grad is not None}


def test_the_last_three_blocks_are_the_default():
    net = timm.create_model("vivit_tiny", features_only=True, **TINY)
    names = [name.removeprefix("encoder.trunk.") for name in net.feature_info.module_name()]
    assert names == ["temporal_blocks.1", "temporal_blocks.2", "temporal_blocks.3"]


def test_all_blocks_of_an_encoder_that_has_fewer_than_three():
    depth = {"spatial_depth": 1, "temporal_depth": 1}
    net = timm.create_model("vivit_tiny", features_only=True, **depth, **TINY)
    assert len(net(video())) == len(net.feature_info.channels()) == 2


def test_the_timm_calls_of_the_docs_run_unchanged():
    page = Path(__file__).parents[2].joinpath("docs", "how_to", "classifier.md").read_text()
    block = next(b for b in page.split("```python\n")[1:] if "create_optimizer_v2" in b)
    calls = block.split("\n\ntuned")[0]  # what follows needs a trained encoder
    done = subprocess.run([sys.executable, "-c", calls], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
