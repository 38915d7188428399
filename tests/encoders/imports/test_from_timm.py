"""Imported image ViTs of timm, compared with timm."""

import numpy as np
import pytest
import timm
import torch
from einops import rearrange, repeat
from parity_files import PARITY
from safetensors.torch import save_file
from timm.layers import SwiGLU, SwiGLUPacked, resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.imports import config_from_timm, from_timm
from ssl_vivit.encoders.vivit import ViViT

# A grid of 4×6 that is not square.
SIZES = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 4}


def image_model(**settings) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**(SIZES | {"num_classes": 0} | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def clip(frames=2, height=16, width=24, channels=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(2, channels, frames, height, width, generator=generator, dtype=torch.float64)


MODELS = {
    "plain": {},
    "no_embed_class": {"no_embed_class": True},
    "registers": {"reg_tokens": 3},
    "registers_no_embed_class": {"reg_tokens": 3, "no_embed_class": True},
    "layer_scale_qk_norm": {"init_values": 0.1, "qk_norm": True, "qkv_bias": False},
    "swiglu": {"mlp_layer": SwiGLU, "act_layer": "silu"},
    "swiglu_packed": {"mlp_layer": SwiGLUPacked, "act_layer": "silu", "mlp_ratio": 16 / 3},
    "tanh_without_biases": {"act_layer": "gelu_tanh", "proj_bias": False},
    "mean_pooling": {"class_token": False, "global_pool": "avg"},
    "mean_of_normed": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "registers_mean_pooling": {"class_token": False, "global_pool": "avg", "reg_tokens": 2},
    "no_positions": {"pos_embed": "none"},
    "oblong_patches": {"patch_size": (4, 8)},
    "other_eps": {"norm_layer": lambda width, **_: torch.nn.LayerNorm(width, eps=1e-2)},
    "attention_pooling": {"global_pool": "map", "class_token": False},
}


@pytest.mark.parametrize("name", MODELS)
def test_spatial_transformer_equals_the_image_model_on_the_central_frame(name):
    model = image_model(**MODELS[name])
    settings = {} if model.has_class_token else {"frame_pooling": "mean"}
    config = config_from_timm(model, num_frames=4, temporal_depth=0, **settings)
    encoder = from_timm(model, config)
    assert not encoder.training
    video = clip(4)
    out = encoder(video)
    with torch.no_grad():
        # Tubelets of 2 frames: the central ones are 1 and 3.
        frames = rearrange(video[:, :, 1::2], "b c t h w -> (b t) c h w")
        features = model.forward_features(frames)
        pooled = model.forward_head(features, pre_logits=True)
    tokens = rearrange(features[:, model.num_prefix_tokens :], "(b t) n d -> b t n d", b=2)
    torch.testing.assert_close(out.tokens, tokens, rtol=0, atol=1e-10)
    if model.global_pool == "token":
        cls = rearrange(features[:, 0], "(b t) d -> b t d", b=2)
        torch.testing.assert_close(out.cls, cls, rtol=0, atol=1e-10)
    if name == "mean_of_normed" or model.global_pool == "token":
        mean = rearrange(pooled, "(b t) d -> b t d", b=2).mean(1)
        torch.testing.assert_close(out.pooled, mean, rtol=0, atol=1e-10)
    if name == "mean_pooling":
        # One norm for the clip's mean, not one for each frame's.
        normed = model.fc_norm(tokens.mean((1, 2)))
        torch.testing.assert_close(out.pooled, normed, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["plain", "no_embed_class", "registers", "layer_scale_qk_norm"])
def test_model_1_of_one_time_step_equals_the_image_model(name):
    model = image_model(**MODELS[name])
    positions = {"joint_positions": "learned"}
    encoder = from_timm(model, config_from_timm(model, variant="joint", num_frames=2, **positions))
    video = clip(2)
    with torch.no_grad():
        features = model.forward_features(video[:, :, 1])
    torch.testing.assert_close(encoder(video).pooled, features[:, 0], rtol=0, atol=1e-10)


def test_fewer_blocks_are_the_first_ones():
    model = image_model()
    encoder = from_timm(model, config_from_timm(model, spatial_depth=2, temporal_depth=0))
    with torch.no_grad():
        expected = model.norm(model.forward_intermediates(
            clip()[:, :, 1], indices=[1], intermediates_only=True, output_fmt="NLC"
        )[0])  # fmt: skip
    torch.testing.assert_close(encoder(clip()).tokens[:, 0], expected, rtol=0, atol=1e-10)


def test_average_tubelets_see_the_mean_frame():
    model = image_model()
    config = config_from_timm(model, tubelet_init="average", temporal_depth=0, num_frames=2)
    video = clip()
    with torch.no_grad():
        features = model.forward_features(video.mean(2))
        out = from_timm(model, config)(video).tokens[:, 0]
    torch.testing.assert_close(out, features[:, 1:], rtol=0, atol=1e-10)


def test_uniform_frames_are_images():
    model = image_model()
    config = config_from_timm(
        model,
        tubelet_embedding="uniform_frames",
        sampled_frames=2,
        num_frames=9,
        temporal_depth=0,
    )
    video = clip(9)
    with torch.no_grad():
        features = model.forward_features(video[:, :, 3])
        out = from_timm(model, config)(video).tokens[:, 0]
    torch.testing.assert_close(out, features[:, 1:], rtol=0, atol=1e-10)


def test_model_3_starts_with_the_image_model_in_space_and_silence_in_time():
    # Without a class token and positions of class tokens the image model has the same sequence.
    model = image_model(class_token=False, global_pool="avg", fc_norm=False)
    config = config_from_timm(
        model, variant="factorized_self_attention", num_frames=4, temporal_positions="none"
    )
    encoder = from_timm(model, config)
    video = clip(4)
    with torch.no_grad():
        features = model.forward_features(rearrange(video[:, :, 1::2], "b c t h w -> (b t) c h w"))
        out = encoder(video).tokens
    torch.testing.assert_close(
        out, rearrange(features, "(b t) n d -> b t n d", b=2), rtol=0, atol=1e-10
    )
    assert not bool(encoder.trunk.blocks[0].time.proj.weight.any())


def test_model_4_has_whole_blocks_with_half_of_the_heads_over_time():
    model = image_model(qk_norm=True)
    encoder = from_timm(model, config_from_timm(model, variant="factorized_dot_product"))
    for ours, theirs in zip(encoder.trunk.blocks, model.blocks, strict=True):
        assert torch.equal(ours.attention.qkv.weight, theirs.attn.qkv.weight)
        assert torch.equal(ours.attention.proj.bias, theirs.attn.proj.bias)
        assert torch.equal(ours.attention.time_heads.key_norm.weight, theirs.attn.k_norm.weight)
        assert torch.equal(ours.attention.space_heads.query_norm.bias, theirs.attn.q_norm.bias)
        assert torch.equal(ours.mlp.fc2.weight, theirs.mlp.fc2.weight)
    assert torch.equal(encoder.trunk.norm.weight, model.norm.weight)


def test_what_is_temporal_stays_at_its_start():
    model = image_model()
    config = config_from_timm(model, pooling="temporal_cls", temporal_depth=2)
    torch.manual_seed(9)
    started = dict(from_timm(model, config).named_parameters())
    torch.manual_seed(9)
    fresh = dict(ViViT(config).double().named_parameters())
    same = {name for name in fresh if torch.equal(fresh[name], started[name])}
    temporal = {name for name in fresh if "temporal" in name}
    assert same == temporal


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (3, 6)])
def test_other_patch_sizes_are_resampled_as_timm_does(size):
    model = image_model()
    image = (4 * size[0], 6 * size[1])
    config = config_from_timm(
        model, tubelet_size=(2, *size), image_size=image, temporal_depth=0, num_frames=2
    )
    encoder = from_timm(model, config)
    kernel = resample_patch_embed(model.patch_embed.proj.weight, list(size))
    torch.testing.assert_close(encoder.tubelets.weight[:, :, 1], kernel)
    assert not bool(encoder.tubelets.weight[:, :, 0].any())


@pytest.mark.parametrize("name", ["plain", "registers", "no_embed_class"])
def test_other_grids_get_resampled_positions(name):
    model = image_model(**MODELS[name])
    config = config_from_timm(model, image_size=(24, 32))
    table = from_timm(model, config).positions.spatial
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    expected = resample_abs_pos_embed(
        model.pos_embed, new_size=[6, 8], old_size=[4, 6], num_prefix_tokens=prefix
    )[0, prefix:]
    torch.testing.assert_close(table[1:], expected, rtol=0, atol=1e-6)
    cls = torch.zeros(24, dtype=torch.float64) if model.no_embed_class else model.pos_embed[0, 0]
    torch.testing.assert_close(table[0], cls)


def test_a_joint_table_repeats_the_grid_over_time_as_scenic_tiles_it():
    arrays = np.load(PARITY / "scenic_posemb_init.npz")
    source, expected = (arrays[f"tile_token_token|{part}"] for part in ("src", "out"))
    model = image_model(img_size=(12, 12), embed_dim=6, num_heads=1)
    with torch.no_grad():
        model.pos_embed.copy_(torch.from_numpy(source))
    config = config_from_timm(model, variant="joint", joint_positions="learned", num_frames=8)
    table = from_timm(model, config).positions.joint
    np.testing.assert_array_equal(table.detach().numpy(), expected[0])


def test_one_channel_gets_the_sum_over_channels():
    model = image_model()
    encoder = from_timm(model, config_from_timm(model, in_channels=1, temporal_depth=0))
    video = clip(2, channels=1)
    with torch.no_grad():
        features = model.forward_features(repeat(video[:, 0, 1], "b h w -> b c h w", c=3))
        out = encoder(video).tokens[:, 0]
    torch.testing.assert_close(out, features[:, 1:], rtol=0, atol=1e-10)


def test_preprocessing_is_that_of_the_image_model():
    model = timm.create_model("deit3_small_patch16_224", img_size=32)
    colour = from_timm(model, config_from_timm(model, image_size=(32, 48), num_frames=4))
    assert colour.preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert colour.preprocessing["resize"] == [32, 48]
    grey = from_timm(model, config_from_timm(model, in_channels=1, num_frames=4))
    assert grey.preprocessing["mean"] == pytest.approx([0.449])
    assert grey.preprocessing["std"] == pytest.approx([0.226])
    assert grey.preprocessing["channels"] == "luma"


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "vit_small_patch8_224",
    ],
)
def test_timm_s_own_models_fit(name):
    model = timm.create_model(name, img_size=56, num_classes=0).eval()
    pooling = {} if model.has_class_token else {"frame_pooling": "mean"}
    config = config_from_timm(model, num_frames=2, temporal_depth=0, spatial_depth=2, **pooling)
    encoder = from_timm(model, config)
    del model.blocks[2:]
    video = clip(2, 56, 56).float()
    with torch.no_grad():
        expected = model.forward_features(video[:, :, 1])[:, model.num_prefix_tokens :]
        out = encoder(video).tokens[:, 0]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"spatial_depth": 4}, "spatial_depth 4 exceeds the image model's blocks; use at most 3"),
        ({"variant": "joint", "depth": 4}, "depth 4 exceeds the image model's blocks; use at most"),
        ({"embed_dim": 48, "head_dim": 6}, "embed_dim 48 does not fit the image model; use 24"),
        ({"num_heads": 2}, "num_heads 2 does not fit the image model; use 4"),
        ({"mlp_ratio": 3.0}, r"mlp_ratio 3.0 does not fit the image model; use 4.0"),
        ({"norm_eps": 1e-5}, "norm_eps 1e-05 does not fit the image model; use 1e-06"),
        ({"activation": "swiglu"}, "activation swiglu does not fit the image model; use gelu"),
        ({"qkv_bias": False}, "qkv_bias False does not fit the image model; use True"),
        ({"qk_norm": True}, "qk_norm True does not fit the image model; use False"),
        ({"layer_scale": 0.1}, "layer_scale 0.1 does not fit the image model; use None"),
        ({"register_tokens": 2}, "register_tokens 2 does not fit the image model; use 0"),
        ({"block": "parallel"}, "block parallel does not fit the image model; use pre_norm"),
        ({"final_norm": "none"}, "final_norm none does not fit the image model; use tokens"),
        ({"in_channels": 2}, "in_channels 2 does not fit the image model; use 3 or 1"),
        (
            {"spatial_positions": "rotary", "head_dim": 6},
            "rotary|no table for the image model's learned positions",
        ),
        ({"spatial_positions": "sinusoidal"}, "no table for the image model's learned positions"),
        ({"spatial_positions": "none"}, "no table for the image model's learned positions"),
        ({"wrong": 1}, "encoder setting 'wrong' is unknown"),
    ],
)
def test_a_config_that_the_weights_do_not_fit_is_refused(overrides, message):
    model = image_model()
    with pytest.raises(ValueError, match=message) as caught:
        from_timm(model, config_from_timm(model, **overrides))
    assert "\n" not in str(caught.value)


def test_a_class_token_that_the_image_model_lacks_is_refused():
    model = image_model(class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match="class_token True does not fit the image model"):
        from_timm(model, config_from_timm(model, class_token=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pre_norm": True}, "norm_pre is LayerNorm"),
        ({"norm_layer": timm.layers.RmsNorm}, "norm1 is RmsNorm"),
        ({"block_fn": ParallelScalingBlock}, "blocks.0 is ParallelScalingBlock"),
        ({"act_layer": "quick_gelu"}, "activation QuickGELU in Mlp"),
        ({"scale_attn_norm": True}, "attn.norm is LayerNorm"),
    ],
)
def test_image_models_without_an_equivalent_vivit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config_from_timm(image_model(**settings))


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="ResNet is not a VisionTransformer"):
        from_timm(timm.create_model("resnet10t"), ViViTConfig())
    with pytest.raises(ValueError, match="timm cannot load 'no_such_vit'"):
        config_from_timm("no_such_vit")


def test_a_named_model_takes_its_weights_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224").eval()
    file = tmp_path / "vit.safetensors"
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, file)
    config = config_from_timm("vit_tiny_patch16_224", spatial_depth=1, image_size=(32, 32))
    encoder = from_timm("vit_tiny_patch16_224", config, file)
    expected = model.blocks[0].mlp.fc1.weight
    assert torch.equal(encoder.trunk.spatial_blocks[0].mlp.fc1.weight, expected)

    headless = {name: value for name, value in state.items() if not name.startswith("head.")}
    save_file(headless, file)
    from_timm("vit_tiny_patch16_224", config, file)

    save_file({name: v for name, v in state.items() if name != "blocks.3.mlp.fc1.bias"}, file)
    with pytest.raises(ValueError, match=r"blocks\.3\.mlp\.fc1\.bias missing"):
        from_timm("vit_tiny_patch16_224", config, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        from_timm("vit_tiny_patch16_224", config, file)
