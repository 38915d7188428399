"""The four models, compared with slow loops over frames, positions and heads."""

import pytest
import torch
from einops import rearrange
from small_encoders import MODEL1, MODEL2, MODEL3, MODEL4, PARALLEL, SMALL, clip, make

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.encoders.trunks.space_time import SpaceTime


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
@pytest.mark.parametrize("causal", [False, True])
def test_model_1_equals_a_loop_over_queries(causal):
    encoder, video = make(**MODEL1, register_tokens=1, temporal_causal=causal), clip(batch=1)
    x, grid = encoder.tubelets(video)
    x = x + encoder.positions.spatial[1:] + encoder.positions.temporal[:, None]
    first = torch.stack(
        (encoder.trunk.class_token + encoder.positions.spatial[0], encoder.trunk.registers[0])
    )
    x = torch.cat((first, x[0].flatten(0, 1)))
    step = [grid.t, -1] + [t for t in range(grid.t) for _ in range(grid.n)]

    def attention(x, layer):
        query, key, value = layer.qkv(x).chunk(3, -1)
        rows = []
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if not causal or step[j] <= step[i]]
            heads = []
            for head in (slice(0, 12), slice(12, 24)):
                scores = torch.stack([query[i, head] @ key[j, head] for j in seen]) / 12**0.5
                heads.append(scores.softmax(0) @ value[seen][:, head])
            rows.append(torch.cat(heads))
        return layer.proj(torch.stack(rows))

    for block in encoder.trunk.blocks:
        x = x + attention(block.attention_norm(x), block.attention)
        x = x + block.mlp(block.mlp_norm(x))
    x = encoder.trunk.norm(x)
    output = encoder(video)
    torch.testing.assert_close(output.cls[0, 0], x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(output.pooled[0], x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(output.tokens[0].flatten(0, 1), x[2:], rtol=0, atol=1e-12)


def one_head(query, key, value):
    return (query @ key.T / query.shape[-1] ** 0.5).softmax(-1) @ value


@torch.no_grad()
def test_model_4_equals_loops_over_frames_positions_and_heads():
    """Registers belong to the sequences of one axis; attention of the other axis adds nothing to them."""
    encoder, video = make(**(MODEL4 | {"num_heads": 4}), register_tokens=1), clip(batch=1)
    x, grid = encoder.tubelets(video)
    x = (x + encoder.positions.spatial + encoder.positions.temporal[:, None])[0]
    spatial = encoder.trunk.spatial_registers.expand(grid.t, 1, 24)
    temporal = encoder.trunk.temporal_registers[:, None].expand(1, grid.n, 24)
    for block in encoder.trunk.blocks:
        attention, norm = block.attention, block.attention_norm
        qkv = [
            part.unflatten(-1, (3, 4, 6)).unbind(-3)
            for part in (attention.qkv(norm(y)) for y in (x, spatial, temporal))
        ]
        out = [torch.zeros(*y.shape[:2], 4, 6, dtype=y.dtype) for y in (x, spatial, temporal)]
        for n in range(grid.n):
            for head in (0, 1):
                q, k, v = (torch.cat((r[:, n, head], y[:, n, head]))
                           for r, y in zip(qkv[2], qkv[0], strict=True))  # fmt: skip
                attended = one_head(q, k, v)
                out[2][:, n, head], out[0][:, n, head] = attended[:1], attended[1:]
        for t in range(grid.t):
            for head in (2, 3):
                q, k, v = (torch.cat((r[t, :, head], y[t, :, head]))
                           for r, y in zip(qkv[1], qkv[0], strict=True))  # fmt: skip
                attended = one_head(q, k, v)
                out[1][t, :, head], out[0][t, :, head] = attended[:1], attended[1:]
        x, spatial, temporal = (
            y + attention.proj(part.flatten(-2))
            for y, part in zip((x, spatial, temporal), out, strict=True)
        )
        x, spatial, temporal = (y + block.mlp(block.mlp_norm(y)) for y in (x, spatial, temporal))
    x = encoder.trunk.norm(x)
    output = encoder(video)
    torch.testing.assert_close(output.tokens[0], x, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.pooled[0], x.flatten(0, 1).mean(0), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("model", [MODEL3, MODEL4])
def test_a_parallel_block_of_two_axes_is_its_definition(model, causal):
    encoder = make(**model, **PARALLEL, register_tokens=2, temporal_causal=causal)
    block = encoder.trunk.blocks[0]
    heads = 2 if model is MODEL3 else 1
    inner = 12 * heads
    state = SpaceTime(*(torch.randn(1, *shape, 24, dtype=torch.float64)
                        for shape in ((3, 5), (3, 2), (2, 5))))  # fmt: skip
    projected = [
        block.fused_in(block.norm(x))[0].split([inner] * 3 + [96] + [inner] * 3, -1) for x in state
    ]
    joined = [torch.zeros(*x.shape[1:3], 2 * inner + 96, dtype=x.dtype) for x in state]
    for part, target in zip(projected, joined, strict=True):
        target[..., inner : inner + 96] = torch.nn.functional.gelu(part[3])
    for head in range(heads):
        part = slice(12 * head, 12 * head + 12)
        into = slice(inner + 96 + 12 * head, inner + 96 + 12 * head + 12)
        for n in range(5):
            key, value, query = (torch.cat((projected[2][i][:, n, part], projected[0][i][:, n, part]))
                                 for i in range(3))  # fmt: skip
            attended = torch.stack([
                one_head(query[i : i + 1], key[: i + 1 if causal else 5],
                         value[: i + 1 if causal else 5])[0]
                for i in range(5)
            ])  # fmt: skip
            joined[2][:, n, part], joined[0][:, n, part] = attended[:2], attended[2:]
        for t in range(3):
            key, value, query = (torch.cat((projected[1][i][t, :, part], projected[0][i][t, :, part]))
                                 for i in range(4, 7))  # fmt: skip
            attended = one_head(query, key, value)
            joined[1][t, :, into], joined[0][t, :, into] = attended[:2], attended[2:]
    got = block(state, None, None, "causal" if causal else None)
    for x, parts, y in zip(state, joined, got, strict=True):
        torch.testing.assert_close(y[0], x[0] + block.fused_out(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", ["pre_norm", "parallel"])
def test_only_time_attention_of_model_3_starts_silent(block):
    """If Model 4's time heads started at zero, half of its heads would have no effect."""
    for model, silent in ((MODEL3, True), (MODEL4, False)):
        encoder = ViViT(ViViTConfig(**model, block=block)).eval()
        video = clip().float()
        changed = video.flip(2)
        same = torch.allclose(encoder(video).tokens[:, 0], encoder(
            torch.cat((video[:, :, :2], changed[:, :, 2:]), dim=2)).tokens[:, 0], atol=1e-6)  # fmt: skip
        assert same == silent
