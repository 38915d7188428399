"""ViViT: sizes, the factorised models against slow versions of themselves, masks, causality."""

import pytest
import torch
from einops import rearrange
from torch import nn

from ssl_vivit import ViViT, ViViTConfig, create_encoder

SMALL = {
    "num_frames": 8,
    "image_size": (16, 24),
    "tubelet_size": (2, 8, 8),
    "embed_dim": 24,
    "num_heads": 2,
}
MODEL2 = SMALL | {"spatial_depth": 2, "temporal_depth": 2}
MODEL3 = SMALL | {"variant": "factorized_self_attention", "depth": 2}
ROTARY = {"spatial_positions": "rotary", "temporal_positions": "rotary"}


def make(**settings) -> ViViT:
    """An encoder whose zero-initialised parts are random as well, so that all of it counts."""
    torch.manual_seed(0)
    encoder = ViViT(ViViTConfig(**settings)).double().eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return encoder


def clip(batch=2, channels=3, frames=8, height=16, width=24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, frames, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


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


def slow_attention(x, attention, head_dim):
    query, key, value = (
        rearrange(part, "n (h w) -> h n w", w=head_dim) for part in attention.qkv(x).chunk(3, -1)
    )
    heads = []
    for q, k, v in zip(query, key, value, strict=True):
        heads.append((q @ k.T / head_dim**0.5).softmax(-1) @ v)
    return attention.proj(torch.cat(heads, dim=-1))


def slow_block(x, block, head_dim):
    x = x + slow_attention(block.attention_norm(x), block.attention, head_dim)
    return x + block.mlp(block.mlp_norm(x))


@torch.no_grad()
def test_model_2_equals_loops_over_frames_and_positions():
    encoder, video = make(**MODEL2), clip()
    output = encoder(video)
    for b in range(len(video)):
        frames = []
        for t in range(4):
            tubelets = [encoder.trunk.class_token + encoder.positions.spatial[0]]
            for row in range(2):
                for column in range(3):
                    pixels = video[b, :, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8,
                                   8 * column : 8 * column + 8]  # fmt: skip
                    token = (encoder.tubelets.weight * pixels).sum((1, 2, 3, 4))
                    place = encoder.positions.spatial[1 + 3 * row + column]
                    tubelets.append(token + encoder.tubelets.bias + place)
            x = torch.stack(tubelets)
            for block in encoder.trunk.spatial_blocks:
                x = slow_block(x, block, 12)
            frames.append(encoder.trunk.spatial_norm(x))
        for position in range(7):
            x = torch.stack([frame[position] for frame in frames]) + encoder.positions.temporal
            for block in encoder.trunk.temporal_blocks:
                x = slow_block(x, block, 12)
            x = encoder.trunk.temporal_norm(x)
            got = output.cls[b] if position == 0 else output.tokens[b, :, position - 1]
            torch.testing.assert_close(got, x, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("order", ["space_time", "time_space"])
def test_model_3_equals_loops_over_frames_and_positions(order):
    encoder, video = make(**MODEL3, attention_order=order), clip(batch=1)
    x, grid = encoder.tubelets(video)
    x = (x + encoder.positions.spatial + encoder.positions.temporal[:, None])[0]
    for block in encoder.trunk.blocks:
        for axis in order.split("_"):
            y = x.clone()
            if axis == "space":
                for t in range(grid.t):
                    y[t] += slow_attention(block.space_norm(x[t]), block.space, 12)
            else:
                for n in range(grid.n):
                    y[:, n] += slow_attention(block.time_norm(x[:, n]), block.time, 12)
            x = y
        x = x + block.mlp(block.mlp_norm(x))
    x = encoder.trunk.norm(x)
    output = encoder(video)
    torch.testing.assert_close(output.tokens[0], x, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.pooled[0], x.flatten(0, 1).mean(0), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("order", ["space_time", "time_space"])
def test_fresh_model_3_equals_its_spatial_only_twin_bit_for_bit(order):
    torch.manual_seed(0)
    model3 = ViViT(ViViTConfig(**MODEL3, temporal_positions="none", attention_order=order)).eval()
    twin = ViViT(
        ViViTConfig(
            **SMALL,
            spatial_depth=2,
            temporal_depth=0,
            class_token=False,
            temporal_positions="none",
        )
    ).eval()
    renamed = {
        name.replace(".blocks.", ".spatial_blocks.")
        .replace("space_norm", "attention_norm")
        .replace(".space.", ".attention.")
        .replace("norm.", "spatial_norm." if name.startswith("trunk.norm") else "norm."): value
        for name, value in model3.state_dict().items()
        if ".time" not in name
    }
    twin.load_state_dict(renamed)
    video = clip().float()
    assert torch.equal(model3(video).tokens, twin(video).tokens)
    assert torch.equal(model3(video).pooled, twin(video).pooled)


def test_temporal_attention_of_a_fresh_model_3_still_learns():
    encoder = ViViT(ViViTConfig(**MODEL3))
    encoder(clip().float()).pooled.square().sum().backward()
    assert encoder.trunk.blocks[0].time.proj.weight.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, ROTARY, {"block": "parallel"}, {"register_tokens": 2},
                                      {"qkv_bias": False}])  # fmt: skip
@pytest.mark.parametrize("block", ["pre_norm", "parallel"])
def test_class_only_path_equals_the_dense_one(settings, block):
    encoder, video = make(**(MODEL2 | {"block": block} | settings)), clip()
    dense, sparse = encoder(video), encoder(video, tokens=False)
    assert sparse.tokens is None
    torch.testing.assert_close(sparse.pooled, dense.pooled, rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse.cls, dense.cls, rtol=0, atol=1e-12)


VARIANTS = [
    MODEL2,
    MODEL2 | {"block": "parallel", "register_tokens": 2} | ROTARY,
    MODEL2 | {"class_token": False, "spatial_positions": "sinusoidal"},
    MODEL2 | {"frame_pooling": "mean", "pooling": "max"},
    MODEL2 | {"pooling": "temporal_cls", "qk_norm": True, "layer_scale": 0.5},
    MODEL2 | {"temporal_depth": 0, "activation": "swiglu"},
    MODEL3,
    MODEL3 | {"register_tokens": 2, "pooling": "attention"} | ROTARY,
    MODEL3 | {"block": "parallel", "register_tokens": 1, "final_norm": "pooled"},
    MODEL3 | {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 4, 8)},
    MODEL3 | {"joint_positions": "sinusoidal", "spatial_positions": "none",
              "temporal_positions": "none"},
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("settings", VARIANTS)
def test_all_tubes_visible_equals_no_mask_and_permutes(settings):
    encoder, video = make(**settings), clip()
    full = encoder(video)
    order = torch.stack([torch.randperm(full.grid.n) for _ in range(2)])
    masked = encoder(video, order)
    expected = torch.stack([full.tokens[b][:, order[b]] for b in range(2)])
    torch.testing.assert_close(masked.tokens, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(masked.pooled, full.pooled, rtol=0, atol=1e-11)


@pytest.mark.parametrize("settings", VARIANTS)
def test_hidden_pixels_reach_no_token(settings):
    encoder, video = make(**settings), clip().requires_grad_()
    output = encoder(video, torch.tensor([[0, 4], [4, 0]]))
    (output.tokens.square().sum() + output.pooled.square().sum()).backward()
    height, width = encoder.config.tubelet_size[1:]
    rows, columns = encoder.config.tubelet_stride[1:]
    seen = torch.zeros(16, 24, dtype=torch.bool)
    for index in (0, 4):
        row, column = divmod(index, encoder.config.grid.w)
        seen[row * rows : row * rows + height, column * columns : column * columns + width] = True
    gradient = video.grad.abs().amax((0, 1, 2))
    assert (gradient[~seen] == 0).all()
    assert (gradient[seen] > 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        MODEL2,
        MODEL2 | {"register_tokens": 2, "pooling": "temporal_cls"},
        MODEL2 | {"block": "parallel"} | ROTARY,
        MODEL2 | {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 8, 8)},
        MODEL3 | {"register_tokens": 2} | ROTARY,
        MODEL3 | {"block": "parallel"},
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_causal_tokens_see_no_later_frame(settings, checkpointing):
    settings = settings | {"temporal_causal": True, "temporal_padding": "causal"}
    encoder, video = make(**settings), clip(batch=1).requires_grad_()
    encoder.set_grad_checkpointing(checkpointing)
    for i in range(4):
        tokens = encoder(video).tokens
        (gradient,) = torch.autograd.grad(tokens[:, i].square().sum(), video)
        by_frame = gradient.abs().amax((0, 1, 3, 4))
        end = 2 * (i + 1) - 1
        assert (by_frame[end + 1 :] == 0).all()
        assert (by_frame[: end + 1] > 0).all()


def test_without_causal_attention_tokens_see_later_frames():
    encoder, video = make(**MODEL2), clip(batch=1).requires_grad_()
    encoder(video).tokens[:, 0].square().sum().backward()
    assert (video.grad.abs().amax((0, 1, 3, 4)) > 0).all()


@torch.no_grad()
def test_causal_registers_are_not_inert():
    settings = MODEL2 | {"register_tokens": 1, "temporal_causal": True}
    encoder, video = make(**settings), clip()
    before = encoder(video).tokens
    encoder.trunk.temporal_registers.add_(torch.randn_like(encoder.trunk.temporal_registers))
    assert (encoder(video).tokens - before).abs().amax((0, 2, 3)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("settings", [MODEL2, MODEL3])
def test_causal_rotary_encoders_take_any_length(settings):
    settings = settings | ROTARY | {"temporal_causal": True}
    encoder = make(**settings)
    video = clip(batch=1, frames=16)
    start = encoder(video[:, :, :8]).tokens
    torch.testing.assert_close(encoder(video).tokens[:, :4], start, rtol=0, atol=1e-12)


@torch.no_grad()
def test_causal_learned_positions_are_cropped_and_never_stretched():
    encoder = make(**MODEL2, temporal_causal=True)
    video = clip()
    short = encoder(video[:, :, :4]).tokens
    torch.testing.assert_close(short, encoder(video).tokens[:, :2], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="learned positions of 4×2×3; use num_frames 8"):
        encoder(clip(frames=16))


@pytest.mark.parametrize("settings", [MODEL2, MODEL3, MODEL2 | {"block": "parallel"}])
def test_gradient_checkpointing_changes_no_number(settings):
    results = []
    for enable in (False, True):
        encoder, video = make(**settings), clip().requires_grad_()
        encoder.set_grad_checkpointing(enable)
        encoder(video).pooled.square().sum().backward()
        results.append([video.grad] + [p.grad for p in encoder.parameters() if p.grad is not None])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("settings", [MODEL2 | {"temporal_causal": True}, MODEL3 | ROTARY])
@pytest.mark.parametrize("tokens", [True, False])
def test_compiles_without_graph_breaks(settings, tokens):
    encoder, video = make(**settings), clip()
    encoder.set_grad_checkpointing()
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    expected, got = encoder(video, tokens=tokens).pooled, compiled(video, tokens=tokens).pooled
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_residuals_add_up_in_full_precision_under_autocast(positions):
    settings = {"spatial_positions": positions, "temporal_positions": positions}
    encoder, video = make(**(MODEL3 | settings)).float(), clip().float()
    between = []
    encoder.trunk.blocks[0].register_forward_hook(lambda module, args, out: between.append(out[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(video)
    assert between[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["patch_dropout", "attention_dropout", "mlp_dropout", "drop_path"])
@pytest.mark.parametrize("settings", [MODEL2, MODEL3, MODEL2 | {"block": "parallel"},
                                      MODEL3 | {"block": "parallel"}])  # fmt: skip
def test_regularisation_acts_in_training_alone(name, settings):
    encoder, video = make(**settings, **{name: 0.5}), clip()
    plain = make(**settings)
    torch.testing.assert_close(encoder(video).tokens, plain(video).tokens, rtol=0, atol=0)
    encoder.train()
    torch.manual_seed(0)
    first, second = encoder(video).tokens, encoder(video).tokens
    assert not torch.equal(first, second)


def test_patch_dropout_leaves_zeros_for_whole_tubes():
    encoder, video = make(**MODEL2, patch_dropout=0.5).train(), clip()
    tokens = encoder(video).tokens
    dropped = (tokens == 0).all(-1)
    assert (dropped.sum(-1) == 3).all()
    assert (dropped == dropped[:, :1]).all()
    # The kept ones are what a mask of them gives.
    for b in range(2):
        kept = (~dropped[b, 0]).nonzero()[:, 0][None]
        alone = encoder.eval()(video[b : b + 1], kept)
        torch.testing.assert_close(alone.tokens[0], tokens[b][:, kept[0]], rtol=0, atol=1e-12)


def test_stochastic_depth_keeps_the_expectation():
    encoder = make(**(MODEL2 | {"spatial_depth": 1, "temporal_depth": 1}), drop_path=0.5).train()
    branch = encoder.trunk.temporal_blocks[0].mlp_branch
    torch.manual_seed(0)
    x = torch.ones(20_000, 1, 1, dtype=torch.float64)
    out = branch(x)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert abs(out.mean().item() - 1.0) < 0.03
    first = encoder.trunk.spatial_blocks[0].mlp_branch.drop_path
    assert isinstance(first, nn.Identity)


def test_layer_groups_follow_depth():
    from timm.optim import param_groups_layer_decay

    for settings in (MODEL2, MODEL3):
        encoder = make(**settings)
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
        (torch.zeros(1, 8, 3, 16, 24), "in_channels = 3"),
        (torch.zeros(1, 3, 8, 16, 24, dtype=torch.uint8), "give floats"),
        (torch.zeros(1, 3, 9, 16, 24), "num_frames 9 is not filled.*use 8 or 10"),
        (torch.zeros(1, 3, 8, 16, 25), "image_size width 25"),
    ],
)
def test_wrong_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        make(**MODEL2).float()(video)


def test_hidden_tokens_have_no_map():
    output = make(**MODEL2)(clip(), torch.tensor([[0], [1]]))
    with pytest.raises(ValueError, match="encode without visible"):
        _ = output.map


def test_coarse_layer_groups_hold_whole_transformers():
    from timm.models import group_parameters

    for settings, transformers in ((MODEL2, ["spatial", "temporal"]), (MODEL3, [""])):
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
