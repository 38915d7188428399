"""ViViT as a module: sizes, checkpointing, compilation, precision, layer groups, errors."""

import pytest
import torch
from small_encoders import (
    CASES,
    MODEL1,
    MODEL2,
    MODEL3,
    MODEL4,
    MODELS,
    PARALLEL,
    ROTARY,
    clip,
    make,
)

from ssl_vivit import create_encoder

by_case = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
by_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vivit_tiny", 5_979_648),
        ("vivit_small", 22_576_128),
        ("vivit_base", 87_619_584),
        ("vivit_large", 305_729_536),
    ],
)
def test_parameter_counts_of_the_sizes(name, count):
    with torch.device("meta"):
        encoder = create_encoder(name)
    assert sum(p.numel() for p in encoder.parameters()) == count


def test_small_on_its_default_clip():
    encoder = create_encoder("vivit_small").eval()
    with torch.no_grad():
        output = encoder(torch.rand(2, 3, 20, 256, 256))
    assert output.pooled.shape == (2, 384)
    assert output.tokens.shape == (2, 5, 256, 384)
    assert output.cls.shape == (2, 5, 384)
    torch.testing.assert_close(output.pooled, output.cls.mean(1))


@pytest.mark.parametrize(("name", "width"), [("small", 192), ("baseline", 384)])
def test_neural_sizes_give_maps_of_grey_clips(name, width):
    encoder = create_encoder(f"vivit_neural_{name}").eval()
    with torch.no_grad():
        output = encoder(torch.rand(2, 1, 32, 36, 64))
    assert output.map.shape == (2, width, 8, 9, 16)
    torch.testing.assert_close(output.map[1, :, 3, 4, 5], output.tokens[1, 3, 4 * 16 + 5])


@torch.no_grad()
@pytest.mark.parametrize(("name", "width"), [("small", 192), ("baseline", 384)])
def test_tubelets_that_do_not_fill_a_neural_stimulus(name, width):
    with pytest.raises(ValueError, match=r"use 296 or 304; image_size height 36 .* use 32 or 40"):
        create_encoder(f"vivit_neural_{name}", tubelet_size=(8, 8, 8))
    encoder = create_encoder(f"vivit_neural_{name}", tubelet_size=(8, 8, 8), remainder="crop")
    assert encoder.eval()(torch.rand(1, 1, 32, 36, 64)).map.shape == (1, width, 4, 4, 8)


@torch.no_grad()
def test_the_neural_baseline_on_its_whole_clip():
    encoder, video = create_encoder("vivit_neural_baseline").eval(), torch.rand(1, 1, 300, 36, 64)
    output = encoder(video)
    assert output.tokens.shape == (1, 75, 144, 384)
    assert output.map.shape == (1, 384, 75, 9, 16)
    torch.testing.assert_close(output.map.flatten(3).permute(0, 2, 3, 1), output.tokens)
    # Causal: what follows changes nothing.
    start = encoder(video[:, :, :16]).tokens
    torch.testing.assert_close(start, output.tokens[:, :4], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "variant", ["joint", "factorized_self_attention", "factorized_dot_product"]
)
@pytest.mark.parametrize(("name", "depth"), [("tiny", 12), ("large", 24), ("base_16x2", 12)])
def test_depth_of_the_other_variants(variant, name, depth):
    with torch.device("meta"):
        encoder = create_encoder(name, variant=variant)
    assert len(encoder.trunk.blocks) == depth
    one_table = name == "base_16x2"
    assert (encoder.positions.joint is not None) == one_table
    assert (encoder.positions.spatial is None) == one_table


@by_case
def test_gradient_checkpointing_changes_no_number(settings):
    results = []
    for enable in (False, True):
        encoder, video = make(**settings), clip().requires_grad_()
        encoder.set_grad_checkpointing(enable)
        encoder(video).pooled.square().sum().backward()
        results.append([video.grad] + [p.grad for p in encoder.parameters() if p.grad is not None])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    "settings",
    [
        MODEL1 | ROTARY | {"temporal_causal": True, "register_tokens": 1},
        MODEL2 | {"temporal_causal": True},
        MODEL3 | ROTARY,
        MODEL4 | PARALLEL | {"joint_positions": "learned"},
    ],
)
@pytest.mark.parametrize("tokens", [True, False])
def test_compiles_without_graph_breaks(settings, tokens):
    encoder, video = make(**settings), clip()
    encoder.set_grad_checkpointing()
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    expected, got = encoder(video, tokens=tokens).pooled, compiled(video, tokens=tokens).pooled
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@torch.no_grad()
@by_model
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_residuals_add_up_in_full_precision_under_autocast(model, positions):
    settings = {"spatial_positions": positions, "temporal_positions": positions}
    encoder, video = make(**(model | settings)).float(), clip().float()
    between = []
    blocks = encoder.trunk.spatial_blocks if model is MODEL2 else encoder.trunk.blocks
    blocks[0].register_forward_hook(lambda module, args, out: between.append(out))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(video)
    (out,) = between
    assert (out if isinstance(out, torch.Tensor) else out.tokens).dtype == torch.float32


def test_layer_groups_follow_depth():
    from timm.optim import param_groups_layer_decay

    for settings in MODELS.values():
        encoder = make(**settings, register_tokens=1, final_norm="pooled")
        groups = param_groups_layer_decay(
            encoder, layer_decay=0.5, no_weight_decay_list=encoder.no_weight_decay()
        )
        scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
        by_name = {name: scale[id(p)] for name, p in encoder.named_parameters()}
        blocks = (
            [
                "trunk.spatial_blocks.0",
                "trunk.spatial_blocks.1",
                "trunk.temporal_blocks.0",
                "trunk.temporal_blocks.1",
            ]
            if settings is MODEL2
            else ["trunk.blocks.0", "trunk.blocks.1"]
        )
        scales = [by_name[next(n for n in by_name if n.startswith(b))] for b in blocks]
        assert by_name["tubelets.weight"] < scales[0]
        assert scales == sorted(scales)
        assert len(set(scales)) == len(scales)
        assert scale.keys() == {id(p) for p in encoder.parameters()}


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 8, 3, 16, 24), r"in_channels = 3; .* video\.transpose\(1, 2\)"),
        (torch.zeros(3, 8, 16, 24), r"in_channels = 3; for a single clip pass video\[None\]"),
        (torch.zeros(1, 1, 8, 16, 24), r"in_channels = 3; .*load_encoder\(…, in_channels=1\)"),
        (torch.zeros(1, 2, 8, 16, 24), "in_channels = 3$"),
        (torch.zeros(1, 3, 8, 16, 24).numpy(), "video is a ndarray; give a tensor"),
        (torch.zeros(1, 3, 8, 16, 24, dtype=torch.uint8), "give floats"),
        (
            torch.zeros(1, 3, 8, 16, 24).double(),
            r"encoder torch\.float32; pass video\.to\(torch\.f",
        ),
        (torch.zeros(1, 3, 9, 16, 24), "num_frames 9 is not filled.*use 8 or 10"),
        (torch.zeros(1, 3, 8, 16, 25), "image_size width 25"),
    ],
)
def test_wrong_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        make(**MODEL2).float()(video)


def test_video_in_half_precision_is_accepted_only_under_autocast():
    encoder, video = make(**MODEL2).float(), torch.rand(1, 3, 8, 16, 24).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        pooled = encoder(video).pooled
        torch.testing.assert_close(encoder(video.float()).pooled, pooled, rtol=0, atol=0)
    with pytest.raises(
        ValueError, match=r"video is torch\.bfloat16 and the encoder torch\.float32"
    ):
        encoder(video)


def test_masks_that_are_not_tensors_are_refused():
    encoder, video = make(**MODEL2).float(), torch.rand(1, 3, 8, 16, 24)
    with pytest.raises(ValueError, match="visible is a list; give a tensor"):
        encoder(video, [[0, 1]])


def test_coarse_layer_groups_are_whole_transformers():
    from timm.models import group_parameters

    for settings in MODELS.values():
        transformers = ["spatial", "temporal"] if settings is MODEL2 else [""]
        encoder = make(**settings)
        layer = group_parameters(encoder, encoder.group_matcher(coarse=True), reverse=True)
        found = []
        for name in transformers:
            prefix = f"trunk.{name}_blocks." if name else "trunk.blocks."
            layers = {layer[n] for n, _ in encoder.named_parameters() if n.startswith(prefix)}
            assert len(layers) == 1
            found += layers
        assert layer["tubelets.weight"] < min(found)
        assert found == sorted(set(found))
