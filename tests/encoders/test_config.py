"""ViViTConfig: defaults that it resolves, values that it refuses, and its conversion to JSON."""

import json

import pytest

from ssl_vivit import Grid, ViViTConfig, create_encoder
from ssl_vivit.encoders import named_config, sizes


@pytest.mark.parametrize("name", sizes())
def test_every_size_survives_json(name):
    config = named_config(name)
    assert ViViTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_values_are_resolved():
    config = ViViTConfig()
    assert config.head_dim == 64
    assert config.tubelet_stride == (4, 16, 16)
    assert (config.spatial_depth, config.temporal_depth, config.depth) == (8, 4, None)
    assert (config.class_token, config.pooling) == (True, "cls_mean")
    model3 = named_config("small", variant="factorized_self_attention")
    assert (model3.depth, model3.class_token, model3.pooling) == (12, False, "mean")
    model1 = named_config("small", variant="joint")
    assert (model1.depth, model1.class_token, model1.pooling) == (12, True, "cls_mean")
    one_table = ViViTConfig(joint_positions="learned")
    assert (one_table.spatial_positions, one_table.temporal_positions) == ("none", "none")


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, Grid(5, 16, 16)),
        ({"tubelet_stride": (2, 16, 16)}, Grid(9, 16, 16)),
        ({"tubelet_stride": (2, 16, 16), "temporal_padding": "causal"}, Grid(10, 16, 16)),
        ({"image_size": (250, 270), "remainder": "crop"}, Grid(5, 15, 16)),
    ],
)
def test_grid(settings, grid):
    assert ViViTConfig(**settings).grid == grid


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"variant": "factorised"},
            "variant 'factorised' is unknown; choose one of joint, factorized_",
        ),
        ({"image_size": (250, 256)}, "image_size height 250 is not filled.*use 240 or 256, or rem"),
        ({"num_frames": 2}, "num_frames 2 is not filled by tubelets of 4.*use 4$"),
        ({"tubelet_stride": (5, 16, 16)}, "exceeds tubelet_size"),
        ({"embed_dim": 100}, "embed_dim 100 is not divisible by num_heads 6; give head_dim"),
        ({"depth": 12}, "give spatial_depth and temporal_depth"),
        ({"pooling": "cls_mean", "class_token": False}, "needs class_token"),
        ({"drop_path": 1.0}, "drop_path 1.0 must lie in"),
        ({"image_size": (256,)}, "image_size .* must be 2 positive whole numbers"),
        ({"image_size": "foo"}, "image_size foo must be 2 positive whole numbers"),
        ({"image_size": True}, "image_size True must be 2 positive whole numbers"),
        ({"image_size": -16}, r"image_size \(-16, -16\) must be 2 positive whole numbers"),
        (
            {"joint_positions": "learned", "spatial_positions": "rotary"},
            "omit these two",
        ),
        ({"head_dim": 6, "spatial_positions": "rotary"}, "multiple of 4 for rotary"),
        (
            {"variant": "factorized_self_attention", "class_token": True},
            "class_token is not supported by factorized_self_attention",
        ),
        (
            {"variant": "factorized_self_attention", "spatial_depth": 2},
            "spatial_depth is not a setting",
        ),
        ({"attention_order": "time_space"}, "attention_order is a setting of factorized_self"),
        ({"frame_pooling": "mean", "class_token": True}, "cannot both be set"),
        ({"variant": "joint", "frame_pooling": "mean"}, "frame_pooling is not a setting of joint"),
        ({"variant": "joint", "pooling": "temporal_cls"}, "needs factorized_encoder"),
        (
            {"variant": "joint", "temporal_depth": 2},
            "temporal_depth is not a setting of joint; set temporal_depth to null",
        ),
        (
            {"variant": "factorized_dot_product", "num_heads": 3},
            "num_heads 3 must be even for factorized_dot_product.*use 4",
        ),
        (
            {"variant": "factorized_dot_product", "class_token": True},
            "class_token is not supported by factorized_dot_product",
        ),
        (
            {"variant": "factorized_dot_product", "attention_order": "time_space"},
            "attention_order is a setting of factorized_self_attention",
        ),
        (
            {"sampled_frames": 4},
            "sampled_frames is a setting of tubelet_embedding='uniform_frames'",
        ),
        (
            {"tubelet_embedding": "uniform_frames", "temporal_causal": True},
            "cannot be causal, since the sampled frames depend on the length of the clip",
        ),
        (
            {"tubelet_embedding": "uniform_frames", "tubelet_stride": (2, 16, 16)},
            "embeds single frames; use 4 as its first",
        ),
        (
            {"tubelet_embedding": "uniform_frames", "sampled_frames": 0},
            "sampled_frames 0 must be a whole number of at least 1",
        ),
        ({"num_heads": 0}, "num_heads 0 must be a whole number of at least 1"),
        ({"num_frames": "8"}, "num_frames '8' must be a whole number"),
        ({"num_frames": 8.0}, "num_frames 8.0 must be a whole number"),
        ({"num_heads": "6"}, "num_heads '6' must be a whole number"),
        ({"register_tokens": True}, "register_tokens True must be a whole number"),
        ({"tubelet_size": None}, "tubelet_size None must be 3 positive whole numbers"),
        ({"temporal_causal": "no"}, "temporal_causal 'no' must be True or False"),
        ({"class_token": "no"}, "class_token 'no' must be True or False"),
        ({"qk_norm": 1}, "qk_norm 1 must be True or False"),
        ({"norm_eps": "1e-6"}, "norm_eps '1e-6' must be a number; YAML reads 1e-6 as text"),
        ({"norm_eps": -1.0}, "norm_eps -1.0 must be positive"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 must be positive"),
        ({"layer_scale": True}, "layer_scale True must be a number"),
        ({"drop_path": None}, "drop_path None must be a number"),
        ({"rotary_base_temporal": 0.0}, "rotary_base_temporal 0.0 must be positive"),
        (
            {
                "variant": "joint",
                "spatial_positions": "rotary",
                "temporal_positions": "rotary",
                "head_dim": 4,
            },
            "at least 6 for rotary spatial_positions and temporal_positions",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        ViViTConfig(**settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", sizes())
@pytest.mark.parametrize("variant", ["joint", "factorized_encoder", "factorized_self_attention"])
def test_every_size_takes_one_table_in_place_of_its_own_positions(name, variant):
    config = named_config(name, variant=variant, joint_positions="sinusoidal")
    assert (config.spatial_positions, config.temporal_positions) == ("none", "none")
    with pytest.raises(ValueError, match="omit these two"):
        named_config(name, variant=variant, joint_positions="learned", spatial_positions="rotary")


def test_the_papers_average_pooling_row_needs_only_the_depth():
    config = named_config("vivit_base_16x2", temporal_depth=0)
    assert (config.pooling, config.spatial_depth) == ("cls_mean", 12)
    assert named_config("vivit_base_16x2", frame_pooling="none").pooling == "temporal_cls"
    assert named_config("vivit_base_16x2", class_token=None).pooling == "temporal_cls"
    assert named_config("vivit_base_16x2", frame_pooling="mean").pooling == "mean"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="encoder size 'vivit_smal' is unknown; did you mean "):
        create_encoder("vivit_smal")
    with pytest.raises(ValueError, match="'patch_size' is unknown; did you mean 'tubelet_size'"):
        named_config("vivit_tiny", patch_size=16)
    with pytest.raises(ValueError, match="'embed_dims' is unknown; did you mean 'embed_dim'"):
        create_encoder("vivit_small", embed_dims=4)


def test_one_number_is_a_square_image():
    config = ViViTConfig(image_size=64)
    assert config == ViViTConfig(image_size=(64, 64))
    assert config.to_dict()["image_size"] == [64, 64]
    assert create_encoder("vivit_tiny", image_size=32).config.image_size == (32, 32)
