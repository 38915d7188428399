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
    assert done.stdout.split() == sorted(sizes()) * 2
    assert "Overwriting" not in done.stderr
    for name in sizes():
        assert timm.is_model(name)
        assert timm.model_entrypoint(name).__name__ == name


@pytest.mark.parametrize("name", sizes())
def test_models_are_the_named_sizes(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
        imagenet = timm.create_model(name)
    assert isinstance(model, VideoClassifier)
    assert model.encoder.config == named_config(name)
    assert (model.num_classes, imagenet.num_classes) == (10, 1000)
    assert imagenet.head.weight.shape == (1000, model.num_features)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_video_becomes_logits_or_features(variant):
    for classes, width in ((10, 10), (0, 24)):
        model = timm.create_model("vivit_tiny", num_classes=classes, variant=variant, **TINY)
        assert model.eval()(video()).shape == (2, width)


def test_timms_names_set_what_they_mean():
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
        ({"pretrained": True}, "vivit_tiny has no published weights.*checkpoint_path.*load_encod"),
        ({"pretrained_cfg": "k400"}, "vivit_tiny has no published weights"),
        ({"out_indices": 2}, "out_indices goes with features_only=True"),
        ({"features_only": True, "num_classes": 3}, "no head; leave out num_classes"),
        ({"features_only": True, "out_indices": [12]}, r"indices \[12\] do not fit 12 blocks"),
        ({"img_size": 33}, "image_size height 33 is not filled"),
        ({"global_pool": "avgmax"}, "pooling 'avgmax' is unknown; choose one of cls_mean"),
    ],
)
def test_mistakes_get_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("vivit_tiny", **settings)
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


def test_the_last_three_blocks_unless_told():
    net = timm.create_model("vivit_tiny", features_only=True, **TINY)
    names = [name.removeprefix("encoder.trunk.") for name in net.feature_info.module_name()]
    assert names == ["temporal_blocks.1", "temporal_blocks.2", "temporal_blocks.3"]


def test_the_timm_calls_of_the_docs_run_as_they_stand():
    page = Path(__file__).parents[2].joinpath("docs", "how_to", "classifier.md").read_text()
    block = next(b for b in page.split("```python\n")[1:] if "create_optimizer_v2" in b)
    calls = block.split("\n\ntuned")[0]  # what follows needs a trained encoder
    done = subprocess.run([sys.executable, "-c", calls], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
