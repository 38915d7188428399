"""VideoClassifier: timm's protocol, compared with the encoder and with shallower encoders."""

import dataclasses
from itertools import product

import pytest
import torch
from einops import rearrange
from small_encoders import CASES, MODEL1, MODEL2, MODEL3, MODEL4, MODELS, clip, make
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay

from ssl_vivit import VideoClassifier, ViViT, ViViTConfig
from ssl_vivit.encoders.adapt import adapt

REDUCTIONS = ("mean", "max", "sum", "first", "attention")
POOLINGS = [
    *product([MODEL1], ["cls_mean", *REDUCTIONS], ["none"]),
    *product([MODEL2], ["cls_mean", "temporal_cls", *REDUCTIONS], ["none"]),
    *product([MODEL2], ["temporal_cls", *REDUCTIONS], ["mean", "max", "sum", "first"]),
    *product([MODEL3, MODEL4], REDUCTIONS, ["none"]),
]
EVERY = {"register_tokens": 1, "layer_scale": 0.5, "qk_norm": True, "pooling": "attention"}

by_case = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
by_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def classifier(num_classes=5, representation_size=None, drop_rate=0.0, **settings):
    encoder = make(**settings)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            # One norm must not pass for another.
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return VideoClassifier(encoder, num_classes, representation_size, drop_rate).double().eval()


@torch.no_grad()
@pytest.mark.parametrize("final_norm", ["tokens", "pooled", "none"])
def test_forward_is_head_of_features_for_every_pooling(final_norm):
    video = clip()
    for settings, pooling, frame_pooling in POOLINGS:
        changes = {"pooling": pooling, "frame_pooling": frame_pooling, "final_norm": final_norm}
        model = classifier(representation_size=7, **(settings | changes))
        features = model.forward_features(video)
        of_patches = pooling in REDUCTIONS and frame_pooling == "none"
        assert model.num_prefix_tokens == (0 if of_patches else 1)
        assert features.shape == (2, model.num_prefix_tokens + 4 * 6, model.num_features)
        output = model.encoder(video)
        patches = rearrange(output.tokens, "b t n d -> b (t n) d")
        got = features[:, model.num_prefix_tokens :]
        torch.testing.assert_close(got, patches, rtol=0, atol=1e-12)
        hidden = (output.pooled @ model.representation.weight.T + model.representation.bias).tanh()
        for logits in (model(video), model.forward_head(features)):
            expected = hidden @ model.head.weight.T + model.head.bias
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        before = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(before, hidden, rtol=0, atol=1e-10)
        assert model.head_hidden_size == before.shape[1] == 7


@torch.no_grad()
@by_model
def test_no_classes_give_the_pooled_vector(model):
    features = classifier(0, **model)
    assert isinstance(features.get_classifier(), torch.nn.Identity)
    torch.testing.assert_close(features(clip()), features.encoder(clip()).pooled)


def test_a_whole_forward_does_not_compute_what_only_patch_tokens_need():
    model, lengths = classifier(**MODEL2), []
    model.encoder.trunk.temporal_blocks[0].register_forward_hook(
        lambda module, args, out: lengths.append(len(out))
    )
    model(clip())
    model.forward_features(clip())
    assert lengths == [2, 2 * 7]


@torch.no_grad()
@by_model
def test_patches_dropped_in_training_have_no_features(model):
    model = classifier(**model, patch_dropout=0.5).train()
    torch.manual_seed(3)
    logits = model(clip())
    torch.manual_seed(3)
    features = model.forward_features(clip())
    assert features.shape[1] == model.num_prefix_tokens + 4 * 3
    torch.testing.assert_close(model.forward_head(features), logits, rtol=0, atol=1e-12)
    torch.manual_seed(3)
    final, maps = model.forward_intermediates(clip(), 1, norm=True)
    torch.testing.assert_close(final, features, rtol=0, atol=0)
    torch.manual_seed(3)
    torch.testing.assert_close(maps[0], model.encoder(clip()).map, rtol=0, atol=0)
    assert (maps[0] == 0).all(1).sum() == 2 * 4 * 3


@torch.no_grad()
def test_dropout_before_the_head_acts_only_in_training():
    model, features = classifier(drop_rate=0.5, **MODEL3), torch.ones(400, 1, 24).double()
    model.encoder.trunk.norm = torch.nn.Identity()
    kept = model.forward_head(features, pre_logits=True)
    assert torch.equal(kept, features[:, 0])
    dropped = model.train().forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean() - 1) < 0.05


def shallower(encoder: ViViT, index: int) -> ViViT:
    """Return an encoder with these weights that ends after a block."""
    config = encoder.config
    if config.variant == "factorized_encoder":
        spatial = min(index + 1, config.spatial_depth)
        depths = {"spatial_depth": spatial, "temporal_depth": index + 1 - spatial}
    else:
        depths = {"depth": index + 1}
    if depths.get("temporal_depth") == 0:
        depths["pooling"] = "cls_mean" if config.class_token else "mean"
    end = ViViT(dataclasses.replace(config, **depths)).double().eval()
    own = end.state_dict()
    end.load_state_dict({name: x for name, x in encoder.state_dict().items() if name in own})
    return end


@torch.no_grad()
@by_case
def test_features_of_a_block_are_those_of_the_encoder_that_ends_there(settings):
    model, video = classifier(**settings), clip()
    count = len(model.feature_info)
    final, found = model.forward_intermediates(video, norm=True, return_prefix_tokens=True)
    assert len(found) == count == (4 if settings.get("temporal_depth") == 2 else 2)
    for index, features in enumerate(found):
        output = shallower(model.encoder, index)(video)
        if model.encoder.config.class_token:
            features, cls = features
            torch.testing.assert_close(cls, output.cls, rtol=0, atol=1e-12)
        torch.testing.assert_close(features, output.map, rtol=0, atol=1e-12)
    torch.testing.assert_close(features, model.encoder(video).map, rtol=0, atol=1e-12)
    torch.testing.assert_close(final, model.forward_features(video), rtol=0, atol=0)


@torch.no_grad()
@by_model
def test_features_without_norm_equal_the_input_of_the_norm(model):
    model, video = classifier(**model), clip()
    trunk = model.encoder.trunk
    norms = [trunk.norm] if hasattr(trunk, "norm") else [trunk.spatial_norm, trunk.temporal_norm]
    final = model.forward_intermediates(video, norm=True, intermediates_only=True)
    plain = model.forward_intermediates(video, output_fmt="NLC", intermediates_only=True)
    half = len(final) // len(norms)
    for index, (normed, raw) in enumerate(zip(final, plain, strict=True)):
        assert raw.shape == (2, 4 * 2 * 3, 24)
        expected = rearrange(norms[index // half](raw), "b (t h w) d -> b d t h w", h=2, w=3)
        torch.testing.assert_close(normed, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(
    ("indices", "taken"),
    [(None, [0, 1, 2, 3]), (3, [1, 2, 3]), ([2, 0], [0, 2]), ((-1,), [3]), ([1, -3], [1])],
)
def test_indices_as_timm_takes_them(indices, taken):
    model, video = classifier(**MODEL2), clip()
    every = model.forward_intermediates(video, intermediates_only=True)
    some = model.forward_intermediates(video, indices, intermediates_only=True)
    assert len(some) == len(taken)
    assert all(torch.equal(x, every[index]) for x, index in zip(some, taken, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": 5}, "indices 5 do not fit 4 blocks; give an int n from 1 to 4"),
        ({"indices": []}, r"indices \[\] do not fit"),
        ({"indices": [0, 4]}, "indices from -4 to 3"),
        ({"output_fmt": "NHWC"}, "output_fmt 'NHWC' is unknown; use NCTHW or NLC"),
        ({"indices": [1], "stop_early": True}, "set intermediates_only=True"),
    ],
)
def test_wrong_requests_for_features(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(**MODEL2).forward_intermediates(clip(), **arguments)


@by_model
def test_wrong_video_is_refused_by_every_way_in(model):
    model = classifier(**model)
    for method in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match="in_channels = 3"):
            method(clip(channels=1))
    assert not any(module._forward_hooks for module in model.modules())


@by_model
@pytest.mark.parametrize("checkpointing", [False, True])
def test_stopping_early_computes_no_later_block(model, checkpointing):
    model, calls = classifier(**model), []
    for info in model.feature_info:
        block = model.get_submodule(info["module"])
        # Not by a hook, which would also run for a block that is stopped before it computes.
        forward = block.forward
        block.forward = lambda *args, run=forward, name=info["module"]: (
            calls.append(name), run(*args),
        )[1]  # fmt: skip
    names = [info["module"] for info in model.feature_info]
    model.set_grad_checkpointing(checkpointing)
    gradients = []
    for last, stop in product(range(len(names)), (False, True)):
        calls.clear()
        model.zero_grad()
        (features,) = model.forward_intermediates(
            clip(), [last], stop_early=stop, intermediates_only=True
        )
        assert calls == (names[: last + 1] if stop else names)
        features.square().sum().backward()
        gradients.append(model.encoder.tubelets.weight.grad.clone())
        # Later blocks have no part in the features, so nothing recomputes them.
        again = calls[last + 1 :] if stop else calls[len(names) :]
        assert sorted(again) == (names[: last + 1] if checkpointing else [])
        if stop:
            assert torch.equal(*gradients[-2:])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@by_model
def test_stopping_at_the_last_block_still_gives_final_features(model):
    model = classifier(**model)
    final, _ = model.forward_intermediates(clip(), 1, stop_early=True)
    torch.testing.assert_close(final, model.forward_features(clip()), rtol=0, atol=0)


@by_case
def test_checkpointing_changes_no_gradient_of_features(settings):
    results = []
    for enable in (False, True):
        model = classifier(**settings)
        model.set_grad_checkpointing(enable)
        maps = model.forward_intermediates(clip(), intermediates_only=True)
        sum(x.square().sum() for x in maps).backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(results[0]) > 5
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@torch.no_grad()
def test_compiled_or_not_the_features_are_the_same():
    model, video = classifier(**(MODEL3 | {"depth": 4})), clip()
    compiled = torch.compile(model.forward_intermediates, backend="eager")
    for settings in ({"indices": 2}, {"indices": [2], "stop_early": True}):
        got = compiled(video, intermediates_only=True, **settings)
        expected = model.forward_intermediates(video, intermediates_only=True, **settings)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    tokens = torch.compile(model.forward_features, backend="eager", fullgraph=True)(video)
    torch.testing.assert_close(tokens, model.forward_features(video), rtol=0, atol=1e-12)


def depth_of(name: str, variant: str) -> int:
    """Return the depth of a parameter in the order of the computation, counted by hand."""
    if name.startswith(("representation.", "head.")):
        return {"factorized_encoder": 8}.get(variant, 5)
    name = name.removeprefix("encoder.")
    if name.startswith(("attention_pooling.", "pooled_norm.")):
        return {"factorized_encoder": 7}.get(variant, 4)
    if variant != "factorized_encoder":
        if name.startswith("trunk.blocks."):
            return 1 + int(name.split(".")[2])
        return 3 if name.startswith("trunk.norm.") else 0
    if name.startswith("trunk.spatial_blocks."):
        return 1 + int(name.split(".")[2])
    if name.startswith(("trunk.spatial_norm", "positions.temporal", "trunk.temporal_reg")):
        return 3
    if name.startswith("trunk.temporal_blocks."):
        return 4 + int(name.split(".")[2])
    return 6 if name.startswith("trunk.temporal_norm") else 0


@by_model
def test_every_parameter_learns_at_the_rate_of_its_depth(model):
    model = classifier(representation_size=4, **(model | EVERY))
    variant = model.encoder.config.variant
    top = depth_of("head.weight", variant)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers == {name: depth_of(name, variant) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(top + 1))

    for groups in (
        param_groups_layer_decay(
            model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
        ),
        create_optimizer_v2(
            model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.5
        ).param_groups,
    ):
        of = {id(p): group for group in groups for p in group["params"]}
        assert len(of) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            group = of[id(parameter)]
            assert group["lr_scale"] == 0.5 ** (top - depth_of(name, variant)), name
            token = "positions" in name or "registers" in name or name.endswith(".query")
            exempt = parameter.ndim == 1 or token
            assert group["weight_decay"] == (0.0 if exempt else 0.05), name


@by_model
def test_no_parameter_is_left_to_the_group_of_the_unmatched(model):
    for changes in (EVERY, {"final_norm": "pooled"}, {"block": "parallel"}):
        model_ = classifier(representation_size=4, **(model | changes))
        for coarse in (False, True):
            matcher = model_.group_matcher(coarse)
            head = matcher.pop("head")
            assert head.startswith("^")
            layers = group_parameters(model_, matcher, reverse=True)
            # timm puts what no pattern matches on top: without its pattern, that is the head.
            last = {name for name, layer in layers.items() if layer == max(layers.values())}
            assert last == {n for n, _ in model_.named_parameters() if "encoder." not in n}


def test_a_fresh_head_is_of_the_models_kind():
    model = classifier(**MODEL1).train()
    model.reset_classifier(3, global_pool="token")
    assert model(clip()).shape == (2, 3)
    assert model.head.weight.dtype == torch.float64
    assert model.head.training
    assert (model.num_classes, model.pretrained_cfg["num_classes"]) == (3, 3)
    model.reset_classifier(0, "cls_mean")
    assert torch.equal(model(clip()), model.encoder(clip(), tokens=False).pooled)
    with pytest.raises(ValueError, match="global_pool 'avg' is not the encoder's pooling 'cls_m"):
        model.reset_classifier(3, "avg")
    with pytest.raises(ValueError, match="num_classes -1 must be 0"):
        model.reset_classifier(-1)
    with pytest.raises(ValueError, match="representation_size 0 must be at least 1"):
        VideoClassifier(model.encoder, 3, 0)


def test_timm_reads_the_description():
    model = classifier(**MODEL3)
    model.encoder.preprocessing = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "fps": 25}
    data = resolve_model_data_config(model)
    assert data["input_size"] == (3, 8, 16, 24)
    assert data["mean"] == (0.4, 0.5, 0.6)
    assert data["std"] == (0.2, 0.2, 0.3)
    described = model.default_cfg
    assert model.get_submodule(described["classifier"]) is model.get_classifier()
    assert model.get_submodule(described["first_conv"]).weight.shape == (24, 3, 2, 8, 8)
    assert "mean" not in classifier(**MODEL3).pretrained_cfg


@torch.no_grad()
@by_model
def test_saved_and_rebuilt_from_its_directory(model, tmp_path):
    model = classifier(representation_size=4, drop_rate=0.25, **model)
    model.save_pretrained(tmp_path / "model")
    again = VideoClassifier.from_pretrained(tmp_path / "model", drop_path=0.1).double()
    torch.testing.assert_close(again(clip()), model(clip()), rtol=0, atol=1e-6)
    assert (again.head_drop.p, again.encoder.config.drop_path) == (0.25, 0.1)
    with pytest.raises(ValueError, match="two/many/parts"):
        model.push_to_hub("two/many/parts")


def test_the_call_of_a_public_model_3():
    """The import has 1,017,402 parameters and omits the positions that this public model omits."""
    settings = {
        "variant": "factorized_self_attention", "num_frames": 32, "image_size": (64, 64),
        "tubelet_size": (8, 4, 4), "embed_dim": 512, "depth": 6, "num_heads": 10, "head_dim": 3,
        "mlp_ratio": 8 / 512, "qkv_bias": False, "final_norm": "pooled",
    }  # fmt: skip
    for positions, count in (({}, (256 + 4) * 512), ({"joint_positions": "learned"}, 1024 * 512)):
        model = VideoClassifier(ViViT(ViViTConfig(**settings, **positions)), 10)
        assert sum(p.numel() for p in model.parameters()) == 1_017_402 + count
    with torch.no_grad():
        assert model.eval()(torch.randn(2, 3, 32, 64, 64)).shape == (2, 10)


def moving_squares() -> torch.Tensor:
    """Return eight clips of a bright square, each with another start and direction."""
    video = torch.zeros(8, 3, 8, 16, 24)
    for index in range(8):
        for frame in range(8):
            row = (index * 3 + frame * (index % 3)) % 12
            column = (index * 5 + frame * (1 - index % 2)) % 20
            video[index, :, frame, row : row + 4, column : column + 4] = 2.0
    return video


@by_model
def test_eight_clips_are_learned_by_heart(model):
    torch.manual_seed(0)
    model = VideoClassifier(ViViT(ViViTConfig(**model)), num_classes=4).train()
    video, labels = moving_squares(), torch.randint(4, (8,))
    assert len(labels.unique()) > 2
    optimizer = create_optimizer_v2(model, "adamw", lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(video), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@torch.no_grad()
@by_model
def test_another_input_size_is_that_of_adapt_and_keeps_parameters_that_fit(model):
    tuned = classifier(**model)
    tuned.encoder.tubelets.weight.requires_grad_(False)
    adapted = adapt(tuned.encoder, image_size=(32, 32), tubelet_size=(2, 16, 16))
    before = dict(tuned.named_parameters())
    tuned.set_input_size((32, 32), patch_size=16)
    video = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    assert torch.equal(tuned(video), tuned.head(adapted(video, tokens=False).pooled))
    assert tuned.encoder.config == adapted.config
    assert {info["reduction"] for info in tuned.feature_info} == {16}
    assert tuned.pretrained_cfg["input_size"] == (3, 8, 32, 32)
    assert not tuned.encoder.tubelets.weight.requires_grad
    new = {name for name, value in tuned.named_parameters() if value is not before[name]}
    assert new == {"encoder.tubelets.weight", "encoder.positions.spatial"}
    tuned.set_input_size(16)
    assert tuned.encoder.config.image_size == (16, 16)


def test_an_input_size_of_resampled_positions_of_equal_shape_is_fitted_too():
    tuned = classifier(**MODEL3)
    table = tuned.encoder.positions.spatial.detach().clone()
    adapted = adapt(tuned.encoder, image_size=(24, 16))  # 3×2 tokens in place of 2×3
    tuned.set_input_size((24, 16))
    assert torch.equal(tuned.encoder.positions.spatial, adapted.positions.spatial)
    assert not torch.equal(tuned.encoder.positions.spatial, table)


def test_an_input_size_that_does_not_fit_is_refused_and_changes_nothing():
    tuned = classifier(**MODEL3)
    encoder = tuned.encoder
    config, weights = encoder.config, dict(encoder.named_parameters())
    with pytest.raises(ValueError, match="image_size height 33 is not filled"):
        tuned.set_input_size(33)
    with pytest.raises(TypeError, match=r"not window_size; .* load_encoder\(path, num_frames=…"):
        tuned.set_input_size(32, window_size=4)
    assert tuned.encoder is encoder
    assert encoder.config is config
    assert all(value is weights[name] for name, value in encoder.named_parameters())


@torch.no_grad()
@by_model
def test_an_encoder_without_head_takes_another_input_size(model):
    encoder = classifier(**model).encoder
    encoder.preprocessing = {"mean": [0.5], "std": [0.2], "resize": encoder.config.image_size}
    encoder.set_grad_checkpointing()
    adapted = adapt(encoder, image_size=(32, 32))
    encoder.set_input_size(32)
    video = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    assert torch.equal(encoder(video).pooled, adapted(video).pooled)
    assert encoder.config == adapted.config
    assert encoder.preprocessing == adapted.preprocessing
    assert encoder.trunk.grad_checkpointing
