"""Attention maps reproduce the outputs of fused attention; rollout equals products of dense matrices."""

import pytest
import torch
from einops import rearrange
from small_encoders import CASES, MODEL1, MODEL2, MODEL3, MODEL4, PARALLEL, clip, make

from ssl_vivit.encoders.trunks.blocks import HeadAttention
from ssl_vivit.evaluation.attention.maps import attention_maps

OVERLAPPING = MODEL3 | {
    "tubelet_size": (4, 8, 8),
    "tubelet_stride": (2, 8, 8),
    "temporal_padding": "causal",
}
POOLINGS = {
    "encoder, frames, max, max": MODEL2
    | {"frame_pooling": "max", "pooling": "max", "register_tokens": 2},
    "encoder, frames, first, temporal class": MODEL2
    | {"frame_pooling": "first", "pooling": "temporal_cls"},
    "encoder, frames, attention": MODEL2 | {"frame_pooling": "sum", "pooling": "attention"},
    "encoder, attention over patches": MODEL2 | {"pooling": "attention"},
    "self_attention, time first": MODEL3
    | {"attention_order": "time_space", "register_tokens": 1, "pooling": "max"},
    "self_attention, overlapping": OVERLAPPING,
    "dot_product, first": MODEL4 | {"pooling": "first", "register_tokens": 1},
}
ALL = {
    name: case for name, case in CASES.items() if name != "self_attention, overlapping"
} | POOLINGS


def attention_calls(encoder, video):
    """Return values and outputs of each attention, in the order of the calls."""
    calls = []

    def record(module, args, kwargs, output):
        calls.append((module, args[2], output))

    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in encoder.trunk.modules()
        if isinstance(module, HeadAttention)
    ]
    with torch.no_grad():
        encoder(video)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("case", ALL)
def test_weights_times_values_equal_the_output_of_each_attention(case, causal):
    encoder, video = make(**ALL[case], temporal_causal=causal), clip()
    maps = attention_maps(encoder, video)
    # By layer, and of a layer's two in the order in which each kind of block calls them.
    time_first = encoder.config.variant == "factorized_dot_product" or (
        encoder.config.block == "parallel" or encoder.config.attention_order == "time_space"
    )
    axes = ("temporal", "spatial") if time_first else ("spatial", "temporal")
    recorded = [
        getattr(maps, axis)[layer]
        for layer in sorted(maps.joint | maps.spatial | maps.temporal)
        for axis in (*axes, "joint")
        if layer in getattr(maps, axis)
    ]
    calls = attention_calls(encoder, video)
    assert len(calls) == len(recorded)
    for (module, value, output), weights in zip(calls, recorded, strict=True):
        if weights.ndim == 5:
            weights = weights.flatten(0, 1)
        assert weights.dtype == torch.float64
        value = rearrange(value, "b n (heads w) -> b heads n w", heads=module.num_heads)
        rebuilt = rearrange(weights @ value, "b heads n w -> b n (heads w)")
        torch.testing.assert_close(rebuilt, output, rtol=0, atol=1e-10)
        torch.testing.assert_close(
            weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-12
        )


def half_identity(weights):
    return (weights.mean(0) + torch.eye(weights.shape[-1], dtype=weights.dtype)) / 2


def dense_rollout(maps, b, read):
    """Compute the rollout of one clip with matrices over all tokens, including special tokens."""
    config, (t, h, w) = maps.config, maps.grid
    n, before, registers = h * w, maps.special_tokens, config.register_tokens
    if config.variant == "joint":
        total = torch.eye(before + t * n, dtype=torch.float64)
        for layer in range(config.depth):
            total = half_identity(maps.joint[layer][b]) @ total
        return (read @ total)[before:].reshape(t, h, w)
    if config.variant == "factorized_encoder":
        space = []
        for step in range(t):
            total = torch.eye(maps.spatial[0].shape[-1], dtype=torch.float64)
            for layer in range(config.spatial_depth):
                total = half_identity(maps.spatial[layer][b, step]) @ total
            space.append(total)
        out = torch.zeros(t, n, dtype=torch.float64)
        has_summary = config.class_token or config.frame_pooling != "none"
        for m, row in enumerate(read):
            for layer in reversed(range(config.spatial_depth, max(maps.temporal, default=-1) + 1)):
                row = row @ half_identity(maps.temporal[layer][b, m])
            for step in range(t):
                share = row[step + (registers if maps.temporal else 0)]
                if m == 0 and config.frame_pooling != "none":
                    start = torch.zeros(len(space[step]), dtype=torch.float64)
                    start[before:] = maps.readout.places[b, step]
                else:
                    place = 0 if m == 0 and has_summary else before + m - int(has_summary)
                    start = torch.eye(len(space[step]), dtype=torch.float64)[place]
                out[step] += share * (start @ space[step])[before:]
        return out.reshape(t, h, w)

    # Models 3 and 4: tokens (t, n), then spatial registers (t, r), then temporal ones (n, r).
    size = t * n + t * registers + n * registers
    total = torch.eye(size, dtype=torch.float64)
    together = config.variant == "factorized_dot_product" or config.block == "parallel"
    for layer in range(config.depth):
        space, time = torch.zeros(2, size, size, dtype=torch.float64)
        for step in range(t):
            ids = [t * n + step * registers + r for r in range(registers)]
            ids += [step * n + place for place in range(n)]
            space[torch.tensor(ids)[:, None], torch.tensor(ids)] = maps.spatial[layer][
                b, step
            ].mean(0)
        for place in range(n):
            ids = [t * (n + registers) + place * registers + r for r in range(registers)]
            ids += [step * n + place for step in range(t)]
            time[torch.tensor(ids)[:, None], torch.tensor(ids)] = maps.temporal[layer][
                b, place
            ].mean(0)
        identity = torch.eye(size, dtype=torch.float64)
        if together:
            both = space + time
            both = both / both.sum(1, keepdim=True)
            total = (both + identity) / 2 @ total
            continue
        for axis in config.attention_order.split("_"):
            weights = space if axis == "space" else time
            absent = weights.sum(1) == 0
            weights[absent] = identity[absent]
            total = (weights + identity) / 2 @ total
    start = torch.zeros(size, dtype=torch.float64)
    start[: t * n] = read
    return (start @ total)[: t * n].reshape(t, h, w)


def slow_read(encoder, maps, video, b):
    """Return the weights of the pooled vector on the sequences after the last layer."""
    config, (t, h, w) = maps.config, maps.grid
    n = h * w
    with torch.no_grad():
        out = encoder(video)

    def shares(x):
        if config.pooling == "attention":
            pooling = encoder.attention_pooling
            with torch.no_grad():
                return pooling.attention(pooling.query, x[None], x[None])[1][0, 0].double()
        result = torch.zeros(len(x), dtype=torch.float64)
        if config.pooling == "max":
            for feature in range(x.shape[1]):
                result[x[:, feature].argmax()] += 1 / x.shape[1]
        elif config.pooling == "first":
            result[0] = 1
        else:
            result[:] = 1 / len(x)
        return result

    patches = shares(out.tokens[b].flatten(0, 1))
    if config.variant == "joint":
        read = torch.zeros(maps.joint[0].shape[-1], dtype=torch.float64)
        if config.pooling == "cls_mean":
            read[0] = 1
        else:
            read[maps.special_tokens :] = patches
        return read
    if config.variant != "factorized_encoder":
        return patches
    summary = int(out.cls is not None)
    first = config.register_tokens if maps.temporal else 0
    read = torch.zeros(summary + n, first + t, dtype=torch.float64)
    if config.pooling == "temporal_cls":
        read = torch.cat((read, torch.zeros(summary + n, 1, dtype=torch.float64)), 1)
        read[0, -1] = 1
    elif config.pooling == "cls_mean" or config.frame_pooling != "none":
        read[0, first : first + t] = shares(out.cls[b])
    else:
        read[summary:, first : first + t] = patches.reshape(t, n).T
    return read


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("case", ALL)
def test_rollout_equals_the_product_of_dense_matrices(case, causal):
    encoder, video = make(**ALL[case], temporal_causal=causal), clip()
    maps = attention_maps(encoder, video)
    rolled = maps.rollout()
    assert rolled.shape == (2, *maps.grid)
    for b in range(2):
        expected = dense_rollout(maps, b, slow_read(encoder, maps, video, b))
        torch.testing.assert_close(rolled[b], expected, rtol=0, atol=1e-12)
    total = rolled.sum((1, 2, 3))
    special = maps.special_tokens or encoder.config.pooling == "temporal_cls"
    assert (rolled >= 0).all()
    assert (total <= 1 + 1e-12).all()
    if not special:
        torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["joint", "encoder", "self_attention", "dot_product, parallel"])
def test_causal_maps_are_zero_above_the_diagonal_and_the_first_step_sees_only_itself(case):
    encoder, video = make(**ALL[case], temporal_causal=True), clip()
    maps = attention_maps(encoder, video)
    for layer in maps.joint | maps.temporal:
        weights = maps.over_time(layer)
        assert weights.shape == (2, 6, encoder.config.num_heads // (1 + ("dot" in case)), 4, 4)
        assert (weights.triu(1) == 0).all()
        assert (weights.tril() > 0).sum() == weights[..., 0, 0].numel() * 10
    encoder = make(
        **ALL[case] | {"class_token": False, "pooling": "first", "register_tokens": 0},
        temporal_causal=True,
    )
    rolled = attention_maps(encoder, video).rollout()
    assert (rolled[:, 1:] == 0).all()
    assert (rolled[:, 0] > 0).all()


def test_views_of_model_1_are_blocks_of_its_joint_map():
    encoder = make(**MODEL1 | {"register_tokens": 2})
    maps = attention_maps(encoder, clip(), layers=[-1])
    weights, patch = maps.joint[1], lambda t, n: 3 + 6 * t + n
    within, over, classes = maps.within_frames(1), maps.over_time(-1), maps.class_attention(1)
    assert within.shape == (2, 4, 2, 6, 6)
    assert over.shape == (2, 6, 2, 4, 4)
    assert classes.shape == (2, 4, 2, 2, 3)
    for t in range(4):
        for n in range(6):
            row = weights[:, :, patch(t, n)]
            torch.testing.assert_close(
                within[:, t, :, n], row[..., patch(t, 0) : patch(t + 1, 0)], rtol=0, atol=0
            )
            for s in range(4):
                own = row[..., patch(s, 0) : patch(s + 1, 0)].sum(-1)
                torch.testing.assert_close(over[:, n, :, t, s], own, rtol=0, atol=1e-15)
            own = weights[:, :, 0, patch(t, n)]
            torch.testing.assert_close(classes[:, t, :, n // 3, n % 3], own, rtol=0, atol=0)


def test_views_of_the_others_leave_special_tokens_out():
    encoder = make(**MODEL2 | {"register_tokens": 2, "pooling": "temporal_cls"})
    maps = attention_maps(encoder, clip())
    assert maps.spatial.keys() == {0, 1}
    assert maps.temporal.keys() == {2, 3}
    assert maps.temporal[3].shape == (2, 7, 2, 7, 7)
    torch.testing.assert_close(maps.within_frames(1), maps.spatial[1][..., 3:, 3:], rtol=0, atol=0)
    expected = maps.temporal[3][:, 1:, :, 2:6, 2:6]
    torch.testing.assert_close(maps.over_time(-1), expected, rtol=0, atol=0)
    for place in range(6):
        got = maps.class_attention(0)[..., place // 3, place % 3]
        torch.testing.assert_close(got, maps.spatial[0][..., 0, 3 + place], rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"layer 2 does not compute .* with this attention: 0, 1"):
        maps.within_frames(2)
    with pytest.raises(ValueError, match=r"layer 0 does not compute .* with this attention: 2, 3"):
        maps.over_time(0)


def test_only_layers_that_were_asked_for_are_kept():
    encoder = make(**MODEL3)
    every, last = attention_maps(encoder, clip()), attention_maps(encoder, clip(), layers=[-1])
    assert last.spatial.keys() == last.temporal.keys() == {1}
    torch.testing.assert_close(last.spatial[1], every.spatial[1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="rollout needs all 2 layers, but 1 were recorded"):
        last.rollout()
    with pytest.raises(ValueError, match="layer 2 does not exist; layers are 0 to 1"):
        attention_maps(encoder, clip(), layers=[2])
    with pytest.raises(ValueError, match="has no class token; use rollout"):
        every.class_attention(0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_encoder_is_left_as_it_was(fails):
    encoder = make(
        **MODEL2 | {"frame_pooling": "max", "pooling": "attention", "attention_dropout": 0.5}
    ).train()
    encoder.trunk.spatial_norm.eval()
    modes = [module.training for module in encoder.modules()]
    if fails:
        with pytest.raises(ValueError, match="num_frames"):
            attention_maps(encoder, clip(frames=7))
    else:
        rolled = attention_maps(encoder, clip()).rollout()
    assert [module.training for module in encoder.modules()] == modes
    for module in encoder.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    if not fails:
        again = attention_maps(encoder.eval(), clip()).rollout()
        torch.testing.assert_close(rolled, again, rtol=0, atol=0)


def test_checkpointed_and_compiled_encoders_give_the_same_maps():
    expected = attention_maps(make(**MODEL4), clip()).rollout()
    encoder = make(**MODEL4)
    encoder.set_grad_checkpointing()
    torch.testing.assert_close(attention_maps(encoder, clip()).rollout(), expected)
    compiled = torch.compile(make(**MODEL4), backend="eager")
    in_place = make(**MODEL4)
    in_place.compile(backend="eager")
    for block in in_place.trunk.blocks:
        block.compile(backend="eager")
    for encoder in (compiled, in_place):
        with torch.no_grad():
            encoder(clip())
        torch.testing.assert_close(attention_maps(encoder, clip()).rollout(), expected)


def test_weights_of_half_precision_are_softmaxed_in_full():
    encoder = make(**MODEL2 | PARALLEL)
    exact = attention_maps(encoder, clip()).spatial[0]
    coarse = attention_maps(encoder.bfloat16(), clip().bfloat16())
    assert coarse.spatial[0].dtype == torch.float32
    rows = coarse.spatial[0].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=1e-6)
    torch.testing.assert_close(coarse.spatial[0].double(), exact, rtol=0, atol=0.02)
    assert coarse.rollout().dtype == torch.float32
