"""Imported Scenic models, compared with reference files and with Scenic's ViViT in numpy."""

import copy
import re

import numpy as np
import pytest
import torch
from parity_files import PARITY, ScenicCase, channels_first
from scenic_reference import random_params, scenic_vivit

from ssl_vivit.encoders.imports import from_scenic
from ssl_vivit.encoders.tubelets import inflate

FILES = [
    "model1_token",
    "model2_token",
    "model2_gap",
    "model2_token_lowvar",
    "model3_space_time",
    "model4_gap",
]

TOKENS = {"num_heads": 4, "mlp_dim": 20, "num_layers": 2}
SHAPE = (4, 8, 12, 3)


def config(kind, classifier, **settings):
    """Return a model config of Scenic."""
    base = {
        "hidden_size": 24,
        "patches": {"size": (4, 4, 2)},
        "classifier": classifier,
        "representation_size": None,
        "attention_config": {"type": kind},
        "temporal_encoding_config": {"method": "3d_conv"},
    }
    if kind == "factorized_encoder":
        base |= {"spatial_transformer": dict(TOKENS), "temporal_transformer": dict(TOKENS)}
    else:
        base |= TOKENS
    if kind == "factorized_self_attention_block":
        base["attention_config"] = {"type": kind, "attention_order": "space_time"}
    for name, value in settings.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) else value
    return base


MODEL1, MODEL2 = "spacetime", "factorized_encoder"
MODEL3, MODEL4 = "factorized_self_attention_block", "factorized_dot_product_attention"
FRAMES = {"method": "temporal_sampling", "n_sampled_frames": 3}
SAMPLED = {"patches": {"size": (4, 4)}, "temporal_encoding_config": FRAMES}
SPATIAL_ONLY = {"attention_config": {"spatial_only_baseline": True}}

# Name → (model config, video shape, classes).
KINDS = {
    **{f"model1_{c}": (config(MODEL1, c), SHAPE, 5) for c in ("token", "0", "gap", "gmp", "gsp")},
    **{f"model2_{c}": (config(MODEL2, c), SHAPE, 5) for c in ("token", "0", "gap", "gmp", "gsp")},
    **{
        f"model3_{order}_{c}": (
            config(MODEL3, c, attention_config={"attention_order": order}),
            SHAPE,
            5,
        )
        for order in ("space_time", "time_space")
        for c in ("gap", "gmp", "gsp")
    },
    **{f"model4_{c}": (config(MODEL4, c), SHAPE, 5) for c in ("gap", "gmp", "gsp")},
    "model1_representation": (config(MODEL1, "token", representation_size=16), SHAPE, 5),
    "model2_representation": (config(MODEL2, "gap", representation_size=16), SHAPE, 0),
    "model2_depths": (config(MODEL2, "token", temporal_transformer={"num_layers": 4}), SHAPE, 5),
    "model2_heads": (config(MODEL2, "token", temporal_transformer={"num_heads": 6}), SHAPE, 5),
    "model2_mlps": (config(MODEL2, "gap", spatial_transformer={"mlp_dim": 28}), SHAPE, 5),
    "model2_asymmetric": (
        config(
            MODEL2,
            "token",
            spatial_transformer={"num_heads": 2, "mlp_dim": 40, "num_layers": 3},
            temporal_transformer={"num_heads": 3, "mlp_dim": 16, "num_layers": 1},
        ),
        SHAPE,
        5,
    ),
    **{
        f"model2_spatial_only_{c}": (config(MODEL2, c, **SPATIAL_ONLY), SHAPE, 5)
        for c in ("token", "0", "gap", "gmp")
    },
    "model1_grey": (config(MODEL1, "gap"), (4, 8, 12, 1), 5),
    "model2_grey": (config(MODEL2, "token"), (4, 8, 12, 1), 5),
    "model2_four_frames": (config(MODEL2, "token", patches={"size": (4, 4, 4)}), (8, 8, 12, 3), 5),
    "model3_four_frames": (config(MODEL3, "gap", patches={"size": (4, 4, 4)}), (8, 8, 12, 3), 5),
    "model1_crop": (config(MODEL1, "token"), (5, 10, 15, 3), 5),
    "model2_crop": (config(MODEL2, "token"), (5, 10, 15, 3), 5),
    "model4_crop": (config(MODEL4, "gap"), (5, 10, 15, 3), 5),
    "model1_sampled": (config(MODEL1, "token", **SAMPLED), (8, 8, 12, 3), 5),
    "model2_sampled": (config(MODEL2, "token", **SAMPLED), (10, 8, 14, 3), 5),
    "model4_sampled": (config(MODEL4, "gap", **SAMPLED), (7, 8, 12, 3), 5),
    "model2_sampled_all": (config(MODEL2, "gap", **SAMPLED), (2, 8, 12, 3), 5),
    "model2_no_projection": (config(MODEL2, "token"), SHAPE, 0),
}


def params_of(name):
    settings, shape, classes = KINDS[name]
    return random_params(settings, shape, classes, seed=len(name)), settings, shape


@pytest.mark.parametrize("name", FILES)
def test_outputs_equal_scenic(name):
    case = ScenicCase(name)
    model = case.model()
    with torch.no_grad():
        pooled, logits = model.encoder(case.video).pooled, model(case.video)
    torch.testing.assert_close(pooled, case.expected("prelogits_f64"), rtol=0, atol=1e-10)
    torch.testing.assert_close(logits, case.expected("logits_f64"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FILES)
def test_float32_stays_close_to_scenic(name):
    case = ScenicCase(name)
    with torch.no_grad():
        logits = case.model().float()(case.video.float())
    expected = case.expected("logits_f64").float()
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_gradients_equal_scenic():
    case = ScenicCase("model2_token")
    model, video = case.model(), case.video.clone().requires_grad_()
    weights = case.expected("grad_logit_weights").double()
    (model(video) * weights).sum().backward()

    grad_input = case.expected("grad_input_f64").permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(video.grad, grad_input, rtol=0, atol=1e-9)
    # The import only moves numbers, so it takes gradients to where their parameters went.
    expected = dict(case.model("grad").named_parameters())
    for name, parameter in model.named_parameters():
        # Parameter gradients come in float32.
        torch.testing.assert_close(
            parameter.grad, expected[name].detach(), rtol=2e-5, atol=2e-5, msg=name
        )


def test_intermediates_equal_scenic():
    case = ScenicCase("model2_token")
    with torch.no_grad():
        tokens, grid = case.model().encoder.tubelets(case.video)
    embedded = case.expected("inter/embedding").double()
    assert (grid.t, grid.h, grid.w) == embedded.shape[1:4]
    torch.testing.assert_close(tokens, embedded.flatten(2, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_the_numpy_reference_equals_scenic(name):
    case = ScenicCase(name)
    params = {key: value.astype(np.float64) for key, value in case.tree().items()}
    video = case.arrays["input"].astype(np.float64)
    prelogits, logits = scenic_vivit(params, case.model_config, video)
    np.testing.assert_allclose(prelogits, case.arrays["prelogits_f64"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(logits, case.arrays["logits_f64"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_equals_the_numpy_reference(name):
    params, settings, shape = params_of(name)
    video = np.random.default_rng(7).normal(size=(2, *shape))
    prelogits, logits = scenic_vivit(params, settings, video)
    model = from_scenic(params, settings, shape)
    assert not model.training
    assert model.head.weight.dtype == torch.float64 if model.num_classes else True
    with torch.no_grad():
        out = model(channels_first(video)).numpy()
    expected = prelogits if logits is None else logits
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["model2_asymmetric", "model2_heads", "model2_mlps"])
def test_training_never_moves_what_fills_up_the_narrower_transformer(name):
    params, settings, shape = params_of(name)
    model = from_scenic(params, settings, shape)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    video = channels_first(np.random.default_rng(7).normal(size=(2, *shape)))
    for _ in range(3):
        optimizer.zero_grad()
        model(video).square().sum().backward()
        optimizer.step()
    filled = 0
    for key, value in model.named_parameters():
        if ".attention." in key or ".mlp." in key:
            zeros = before[key] == 0
            filled += int(zeros.sum())
            assert bool((value[zeros] == 0).all()), key
            assert not bool((value[~zeros] == before[key][~zeros]).any()), key
    assert filled > 0


def test_a_scenic_model_is_read_only_from_its_arrays():
    case = ScenicCase("model2_token_lowvar")
    settings = copy.deepcopy(case.model_config)
    # A square grid of 3×3 tokens and 4 steps, as the arrays say by themselves.
    params = random_params(settings, (8, 12, 12, 3), 7)
    model = from_scenic(params)
    assert model.encoder.config.num_frames == 8
    assert model.encoder.config.image_size == (12, 12)
    video = np.random.default_rng(1).normal(size=(1, 8, 12, 12, 3))
    with torch.no_grad():
        out = model(channels_first(video)).numpy()
    np.testing.assert_allclose(out, scenic_vivit(params, settings, video)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("spatial", "temporal"), [(4, 4), (4, 1), (2, 2)])
def test_depths_are_read_from_the_arrays(spatial, temporal):
    settings = config(
        MODEL2,
        "token",
        spatial_transformer={"num_layers": spatial},
        temporal_transformer={"num_layers": temporal},
    )
    params = random_params(settings, SHAPE, 5)
    model = from_scenic(params, {"classifier": "token"}, SHAPE)
    depths = (model.encoder.config.spatial_depth, model.encoder.config.temporal_depth)
    assert depths == (spatial, temporal)


def test_more_blocks_than_in_the_config_are_accepted_with_a_warning():
    params, settings, shape = params_of("model2_depths")
    shallow = copy.deepcopy(settings)
    shallow["temporal_transformer"]["num_layers"] = 2
    with pytest.warns(UserWarning, match=r"temporal_transformer\.num_layers is 2, .* has 4 blocks"):
        model = from_scenic(params, shallow, shape)
    assert model.encoder.config.temporal_depth == 4


def test_an_ml_collections_like_config_is_read():
    class Config:
        def __init__(self, settings):
            self.settings = settings

        def to_dict(self):
            return self.settings

    params, settings, shape = params_of("model3_time_space_gap")
    nested = settings | {"attention_config": Config(settings["attention_config"])}
    model = from_scenic(params, Config(nested), shape)
    assert model.encoder.config.attention_order == "time_space"


def test_the_model_shares_no_memory_with_the_arrays():
    params, settings, shape = params_of("model2_token")
    bias = params["embedding/bias"].copy()
    model = from_scenic(params, settings, shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(params["embedding/bias"], bias)


def without(*names):
    return lambda params: {key: value for key, value in params.items() if key not in names}


BLOCK = "SpatialTransformer/encoderblock_1/MlpBlock_0/Dense_1/bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(BLOCK), f"{BLOCK} missing"),
        (lambda p: p | {"extra/kernel": np.zeros(3)}, "extra/kernel unexpected"),
        (lambda p: p | {BLOCK: np.full(24, np.nan, np.float32)}, f"{BLOCK} not finite"),
        (lambda p: p | {BLOCK: np.zeros(3)}, rf"{BLOCK} has shape \(3,\) instead of \(24,\)"),
        (
            lambda p: p | {BLOCK: np.array(["a"] * 24)},
            f"{BLOCK} is an array of <U1, not of numbers",
        ),
        (lambda p: p | {BLOCK: "none"}, f"{BLOCK} is a str, not an array"),
        (without("embedding/kernel"), "embedding/kernel is missing"),
        (lambda p: {"conv1/kernel": np.zeros(3)}, "not belong to a Scenic ViViT: conv1/kernel"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    params, settings, shape = params_of("model2_token")
    with pytest.raises(ValueError, match=message):
        from_scenic(change(params), settings, shape)


def test_at_most_ten_arrays_are_named():
    params, settings, shape = params_of("model2_token")
    block = "TemporalTransformer/encoderblock_1/"
    fewer = {key: value for key, value in params.items() if not key.startswith(block)}
    with pytest.raises(ValueError, match="missing") as caught:
        from_scenic(fewer, settings, shape)
    assert str(caught.value).count(" missing") == 10
    assert re.search(r" and more$", str(caught.value))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("model2_token", {"hidden_size": 48}, "hidden_size is 48 in the config but 24"),
        ("model2_token", {"patches": {"size": (4, 4, 4)}}, "patches.size is"),
        ("model1_token", {"num_heads": 3}, "num_heads is 3 in the config but 4"),
        ("model1_token", {"mlp_dim": 9}, "mlp_dim is 9 in the config but 20"),
        ("model1_token", {"representation_size": 8}, "representation_size is 8"),
        ("model1_token", {"classifier": "cls"}, "classifier 'cls' is unknown"),
        ("model1_token", {"classifier": "gap"}, "cls unexpected"),
        ("model1_gap", {"attention_config": {}}, "give attention_config.type"),
        (
            "model1_gap",
            {"attention_config": {"type": MODEL2}},
            "but the arrays belong to spacetime",
        ),
        ("model1_gap", {"attention_config": {"type": "axial"}}, "'axial' is unknown"),
        ("model3_space_time_gap", {"attention_config": {"type": MODEL3}}, "attention_order None"),
        ("model3_space_time_gap", {"classifier": "token"}, "is not supported by"),
        ("model2_gap", {"classifier": None}, "set classifier"),
        ("model2_sampled", {"temporal_encoding_config": {}}, "n_sampled_frames"),
        ("model2_token", {"temporal_encoding_config": FRAMES}, "temporal_encoding_config.method"),
    ],
)
def test_a_config_that_the_arrays_contradict_is_refused(name, settings, message):
    params, given, shape = params_of(name)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        from_scenic(params, given | settings, shape)
    assert "\n" not in str(caught.value)


def test_patches_that_would_cross_sampled_frames_are_refused():
    params, settings, _ = params_of("model2_sampled")
    with pytest.raises(
        ValueError, match=r"height 10 is not a multiple of the patch height 4.* use 8 or 12"
    ):
        from_scenic(params, settings, (10, 10, 14, 3))


@pytest.mark.parametrize("shape", [(4, 8, 12, 1), (4, 8, 12), (4, 8, 16, 3)])
def test_a_video_shape_of_another_model_is_refused(shape):
    params, settings, _ = params_of("model2_token")
    with pytest.raises(ValueError, match=r"video_shape|pos_embedding"):
        from_scenic(params, settings, shape)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("how", ["central_frame", "average"])
def test_inflated_kernels_equal_scenic(how, frames):
    arrays = np.load(PARITY / "scenic_tubelet_init.npz")
    kernel = torch.from_numpy(arrays["kernel_2d_hwio"]).permute(3, 2, 0, 1)
    expected = torch.from_numpy(
        arrays[
            f"{how}_initializer|t{frames}"
            if how == "central_frame"
            else f"average_frame_initializer|t{frames}"
        ]
    ).permute(4, 3, 0, 1, 2)
    inflated = inflate(kernel, frames, how)
    torch.testing.assert_close(inflated.double(), expected.double(), rtol=1e-6, atol=1e-7)
