"""Blocks with all options, compared with their definitions head by head and row by row."""

import pytest
import torch
from torch.nn.functional import layer_norm, linear

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.encoders.pooling import AttentionPooling, reduce_tokens
from ssl_vivit.encoders.positions import Rotation, angles
from ssl_vivit.encoders.trunks.blocks import init_fused, make_block
from ssl_vivit.encoders.trunks.factorized_self_attention import SpaceThenTimeBlock
from ssl_vivit.encoders.trunks.space_time import SpaceTime
from ssl_vivit.encoders.visible_tokens import Places

SMALL = {
    "num_frames": 8,
    "image_size": (16, 24),
    "tubelet_size": (2, 8, 8),
    "embed_dim": 24,
    "num_heads": 2,
    "head_dim": 8,
    "spatial_depth": 1,
    "temporal_depth": 1,
}
ALL_OPTIONS = {"qk_norm": True, "layer_scale": 0.3, "activation": "swiglu"}


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.double().eval()


def turned(x, place):
    """Rotate a head's vector: pair (i, i + 4) by the angle place / 100^(i / 4)."""
    out = x.clone()
    for i in range(4):
        angle = torch.tensor(place / 100 ** (i / 4), dtype=torch.float64)
        out[i] = x[i] * angle.cos() - x[i + 4] * angle.sin()
        out[i + 4] = x[i + 4] * angle.cos() + x[i] * angle.sin()
    return out


def slow_heads(heads, query, key, value, causal):
    """Compute attention of (n, 16) queries, keys and values in two heads of 8, normalised and rotated."""
    rows = []
    for i in range(len(query)):
        row = []
        for part in (slice(0, 8), slice(8, 16)):
            norms = (heads.query_norm, heads.key_norm)
            q, *keys = (
                turned(layer_norm(x[part], (8,), norm.weight, norm.bias, norm.eps), place)
                for x, norm, place in [
                    (query[i], norms[0], i),
                    *((key[j], norms[1], j) for j in range(len(key))),
                ]
            )
            last = i + 1 if causal else len(key)
            weights = torch.stack([q @ k / 8**0.5 for k in keys[:last]]).softmax(0)
            row.append((weights[:, None] * value[:last, part]).sum(0))
        rows.append(torch.cat(row))
    return torch.stack(rows)


def swiglu(x):
    gate, value = x.chunk(2, dim=-1)
    return gate * gate.sigmoid() * value


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_a_pre_norm_block_is_its_definition(causal):
    torch.manual_seed(0)
    block = randomised(make_block(ViViTConfig(**SMALL, **ALL_OPTIONS), 0.0))
    x = torch.randn(5, 24, dtype=torch.float64)
    turn = Rotation.of(angles(torch.arange(5), 4, 100.0), torch.float64)
    query, key, value = block.attention.qkv(block.attention_norm(x)).split(16, dim=-1)
    attended = slow_heads(block.attention.heads, query, key, value, causal)
    y = x + block.attention_branch.scale.gamma * block.attention.proj(attended)
    hidden = swiglu(block.mlp.fc1(block.mlp_norm(y)))
    y = y + block.mlp_branch.scale.gamma * block.mlp.fc2(hidden)
    mask = "causal" if causal else None
    torch.testing.assert_close(block(x[None], turn, mask)[0], y, rtol=0, atol=1e-12)
    torch.testing.assert_close(block(x[None], turn, mask, 2)[0], y[:2], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_a_parallel_block_is_its_definition(causal):
    torch.manual_seed(0)
    config = ViViTConfig(**SMALL, **ALL_OPTIONS, block="parallel")
    block = randomised(make_block(config, 0.0))
    x = torch.randn(5, 24, dtype=torch.float64)
    turn = Rotation.of(angles(torch.arange(5), 4, 100.0), torch.float64)
    key, value, query, hidden = block.fused_in(block.norm(x)).split((16, 16, 16, 192), dim=-1)
    attended = slow_heads(block.heads, query, key, value, causal)
    out = block.fused_out(torch.cat((attended, swiglu(hidden)), dim=-1))
    expected = x + block.branch.scale.gamma * out
    mask = "causal" if causal else None
    torch.testing.assert_close(block(x[None], turn, mask)[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(block(x[None], turn, mask, 2)[0], expected[:2], rtol=0, atol=1e-12)


def test_layer_scale_starts_at_the_configured_value():
    block = make_block(ViViTConfig(**SMALL, layer_scale=0.3), 0.0)
    for branch in (block.attention_branch, block.mlp_branch):
        assert torch.equal(branch.scale.gamma.detach(), torch.full((24,), 0.3))


def test_rotary_bases_are_the_configs():
    settings = {"spatial_positions": "rotary", "temporal_positions": "rotary"}
    encoder = ViViT(
        ViViTConfig(**SMALL, **settings, rotary_base_spatial=50.0, rotary_base_temporal=900.0)
    )
    space, time = encoder.positions.rotations(
        Places(encoder.config.grid), torch.zeros(1, dtype=torch.float64)
    )
    # The second pair of frequencies turns by 1 / base^(1 / pairs) for a step along its axis.
    assert space.sin[1 + 1, 1].item() == pytest.approx(0.0)  # token 1 is in row 0
    assert space.sin[1 + 1, 3].asin().item() == pytest.approx(50.0**-0.5)
    assert time.sin[1, 1].asin().item() == pytest.approx(900.0**-0.25)


def test_reductions_of_tokens():
    x = torch.tensor([[[1.0, 8.0], [4.0, 2.0], [1.0, -4.0]]])
    expected = {"mean": [2.0, 2.0], "max": [4.0, 8.0], "sum": [6.0, 6.0], "first": [1.0, 8.0]}
    for how, values in expected.items():
        assert reduce_tokens(x, how)[0].tolist() == values


@torch.no_grad()
def test_attention_pooling_is_one_query_over_all_tokens():
    torch.manual_seed(0)
    pooling = randomised(AttentionPooling(ViViTConfig(**SMALL)))
    attention, x = pooling.attention, torch.randn(2, 5, 24, dtype=torch.float64)
    assert attention.num_heads == 3
    to_query, to_key, to_value = zip(
        attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
    )
    pooled = pooling(x)
    for b in range(2):
        parts = []
        for head in range(3):
            own = slice(8 * head, 8 * head + 8)
            query = linear(pooling.query[0, 0], *to_query)[own]
            keys, values = (
                [linear(token, *how)[own] for token in x[b]] for how in (to_key, to_value)
            )
            weights = torch.stack([query @ key / 8**0.5 for key in keys]).softmax(0)
            parts.append(sum(w * value for w, value in zip(weights, values, strict=True)))
        expected = attention.out_proj(torch.cat(parts))
        torch.testing.assert_close(pooled[b], expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("final_norm", ["tokens", "pooled", "none"])
def test_the_final_norm_has_its_configured_place(final_norm):
    torch.manual_seed(0)
    encoder = ViViT(ViViTConfig(**SMALL, final_norm=final_norm, pooling="mean")).eval()
    output = encoder(torch.randn(1, 3, 8, 16, 24))
    normed = {name: abs(x[0].std(-1, correction=0).mean().item() - 1) < 1e-3
              for name, x in (("tokens", output.tokens), ("pooled", output.pooled))}  # fmt: skip
    assert normed == {name: name == final_norm for name in ("tokens", "pooled")}


@pytest.mark.parametrize("enable", [False, True])
def test_checkpointing_runs_each_block_again_in_the_backward_pass(enable):
    encoder = ViViT(ViViTConfig(**SMALL))
    encoder.set_grad_checkpointing(enable)
    calls = []
    encoder.trunk.spatial_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    encoder(torch.randn(1, 3, 8, 16, 24)).pooled.sum().backward()
    assert len(calls) == (2 if enable else 1)


def test_attention_pooling_without_biases():
    pooling = AttentionPooling(ViViTConfig(**SMALL, qkv_bias=False))
    names = {name for name, _ in pooling.named_parameters()}
    assert names == {"query", "attention.in_proj_weight", "attention.out_proj.weight"}


def test_parts_of_a_fused_projection_start_as_layers_of_their_own():
    """Xavier-uniform values have the bound √(6 / (inputs + outputs)) of the part."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 240)
    init_fused(layer, (40, 200))
    for part, outputs in zip(layer.weight.split((40, 200)), (40, 200), strict=True):
        bound = (6 / (40 + outputs)) ** 0.5
        assert part.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert part.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not layer.bias.any()


@torch.no_grad()
@pytest.mark.parametrize("order", ["space_time", "time_space"])
def test_a_block_of_model_3_attends_in_its_order(order):
    torch.manual_seed(0)
    depths = {"spatial_depth": None, "temporal_depth": None, "depth": 1}
    config = SMALL | depths | {"variant": "factorized_self_attention", "attention_order": order}
    block = randomised(SpaceThenTimeBlock(ViViTConfig(**config), 0.0))
    x = torch.randn(2, 3, 4, 24, dtype=torch.float64)
    found = block(SpaceTime(x, None, None), None, None, None).tokens
    for axis in order.split("_"):
        if axis == "space":
            x = torch.stack([step + block.space(block.space_norm(step)) for step in x.unbind(1)], 1)
        else:
            x = torch.stack([row + block.time(block.time_norm(row)) for row in x.unbind(2)], 2)
    expected = x + block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
