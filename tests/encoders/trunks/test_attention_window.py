"""Attention to the last time steps: the mask equals a loop, and steps equal whole clips."""

import math

import pytest
import torch
from small_encoders import make

from ssl_vivit.encoders.intermediates import block_names, encode_with_blocks
from ssl_vivit.encoders.positions import angles
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache, band

SMALL = {
    "embed_dim": 24, "num_heads": 2, "image_size": (8, 12), "num_frames": 16,
    "tubelet_size": (2, 4, 4), "temporal_causal": True, "in_channels": 1,
}  # fmt: skip
VARIANTS = {
    "joint": {"depth": 2},
    "factorized_encoder": {"spatial_depth": 2, "temporal_depth": 2},
    "factorized_self_attention": {"depth": 2},
    "factorized_dot_product": {"depth": 2},
}
ROTARY = {"spatial_positions": "rotary", "temporal_positions": "rotary"}
# What each variant is tried with.
SETTINGS = {
    "learned": {},
    "rotary": ROTARY,
    "sinusoidal": {"spatial_positions": "sinusoidal", "temporal_positions": "sinusoidal"},
    "joint learned": {"joint_positions": "learned"},
    "joint sinusoidal": {"joint_positions": "sinusoidal"},
    "space alone": {"spatial_positions": "rotary", "temporal_positions": "none"},
    "registers": ROTARY | {"register_tokens": 3},
    "registers, parallel": ROTARY | {"register_tokens": 2, "block": "parallel"},
    "registers, learned": {"register_tokens": 2},
    "norms": ROTARY | {"qk_norm": True, "layer_scale": 0.3, "activation": "swiglu"},
    "no norm on tokens": ROTARY | {"final_norm": "pooled"},
    "overlap": ROTARY | {
        "tubelet_size": (4, 4, 6), "tubelet_stride": (2, 4, 3), "temporal_padding": "causal",
    },
    "padded at the border": ROTARY | {"tubelet_size": (2, 3, 5), "remainder": "pad"},
}  # fmt: skip
CASES = {
    **{
        f"{variant}, {name}": {"variant": variant} | depths | settings
        for variant, depths in VARIANTS.items()
        for name, settings in SETTINGS.items()
    },
    "time first": VARIANTS["factorized_self_attention"]
    | {"variant": "factorized_self_attention", "attention_order": "time_space"},
    "temporal class token": VARIANTS["factorized_encoder"] | {"pooling": "temporal_cls"},
    "frame vectors": VARIANTS["factorized_encoder"]
    | {"frame_pooling": "mean", "class_token": False, "register_tokens": 1},
    "no temporal blocks": {"spatial_depth": 2, "temporal_depth": 0, "block": "parallel"},
    "joint without class token": VARIANTS["joint"]
    | {"variant": "joint", "class_token": False, "register_tokens": 1},
}


def encoder(settings):
    torch.manual_seed(0)
    made = make(**(SMALL | settings)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def steps_of(made, video, window=None):
    """Return the tokens of the last block, computed step by step, and the final cache."""
    config, cache, tokens = made.config, KeyValueCache(window), []
    size, stride = config.kernel_size[0], config.kernel_stride[0]
    padded = torch.cat(
        [video.new_zeros(*video.shape[:2], size - stride, *video.shape[3:]), video], 2
    )
    last = (config.depth or config.spatial_depth + config.temporal_depth) - 1
    for start in range(0, video.shape[2], stride):
        (found,), _ = made.step(padded[:, :, start : start + size], cache, [last])
        tokens.append(found)
    return torch.cat(tokens, dim=1), cache


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
@torch.no_grad()
def test_steps_give_the_tokens_of_the_whole_clip(settings, window):
    made = encoder(settings)
    video = torch.randn(2, 1, 16, 8, 12, dtype=torch.float64)
    with made.attention_window(window):
        whole = made(video).tokens
    found, cache = steps_of(made, video, window)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
    assert cache.steps == 8
    if window is not None and made.config.temporal_depth != 0:
        assert not torch.allclose(whole, made(video).tokens, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_each_block_gives_its_tokens_and_none_after_the_last_is_computed(variant):
    made = encoder({"variant": variant} | VARIANTS[variant] | {"register_tokens": 1})
    video = torch.randn(1, 1, 8, 8, 12, dtype=torch.float64)
    depth = len(block_names(made))
    _, expected = encode_with_blocks(made, video, None, norm=True, stop_early=False)
    calls = []
    for name in block_names(made):
        made.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    for blocks in ([*range(depth)], [0], [0, depth - 1]):
        calls.clear()
        cache = KeyValueCache()
        for step in range(4):
            found, grid = made.step(video[:, :, 2 * step : 2 * step + 2], cache, blocks)
            assert tuple(grid) == (1, 2, 3)
            for block, tokens in zip(blocks, found, strict=True):
                wanted = expected[block].tokens[:, step : step + 1]
                torch.testing.assert_close(tokens, wanted, rtol=0, atol=1e-12)
        assert len(calls) == 4 * (blocks[-1] + 1)


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_the_band_is_its_definition(window, registers):
    steps = 6
    mask = band(steps, window, registers=registers, device=torch.device("cpu"))
    for row in range(registers + steps):
        for column in range(registers + steps):
            past = column <= row
            near = row - column < window or column < registers
            assert mask[row, column] == (past and near)


@torch.no_grad()
def test_one_layer_with_a_window_sees_what_a_clip_of_its_length_shows():
    """Rotary positions are relative, so a shortened clip has an equal last token."""
    made = encoder(ROTARY | {"spatial_depth": 1, "temporal_depth": 1})
    video = torch.randn(1, 1, 16, 8, 12, dtype=torch.float64)
    found, _ = steps_of(made, video, 3)
    for step in range(2, 8):
        cut = made(video[:, :, 2 * (step - 2) : 2 * (step + 1)]).tokens[:, -1]
        torch.testing.assert_close(found[:, step], cut, rtol=0, atol=1e-12)


@torch.no_grad()
def test_memory_is_bounded_by_a_window_and_grows_in_doubled_rooms_without():
    key = torch.randn(3, 2, 1, 4)
    sizes = {}
    for window in (None, 5):
        cache, attention = KeyValueCache(window), torch.nn.Identity()
        sizes[window] = []
        for _ in range(100):
            cache.extended(attention, key, key)
            cache.steps += 1
            sizes[window].append(cache.nbytes // (2 * key.nbytes))
    assert set(sizes[5]) == {5}
    assert sorted(set(sizes[None])) == [8, 16, 32, 64, 128]
    assert all(room >= steps for steps, room in enumerate(sizes[None], start=1))


@torch.no_grad()
def test_tokens_far_into_a_stream_are_as_those_at_its_start():
    """Angles of rotary positions stay exact after days of streaming in float32."""
    made = encoder(ROTARY | VARIANTS["factorized_encoder"]).float()
    video = torch.randn(1, 1, 2, 8, 12)
    found = []
    for start in (4, 3_000_000):
        cache = KeyValueCache(4)
        for _ in range(4):
            made.step(video, cache, [3])
        cache.steps = start
        tokens = [made.step(video * (1 + scale / 4), cache, [3])[0][0] for scale in range(10)]
        # Two layers with a window of 4 look back on 6 earlier steps.
        found.append(torch.cat(tokens[6:]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    turns = angles(torch.tensor([3_000_001]), 4, 10000.0)[0]
    assert turns.tolist() == [3_000_001 * 10000.0 ** (-i / 4) for i in range(4)]
    assert math.cos(turns[1]) == pytest.approx(math.cos(300_000.1), abs=1e-9)


def test_an_encoder_that_is_not_causal_has_no_window():
    made = encoder({"temporal_causal": False})
    with (
        pytest.raises(
            ValueError, match="attention_window needs an encoder with temporal_causal=True"
        ),
        made.attention_window(3),
    ):
        pass
    causal = encoder({})
    visible = torch.stack([torch.tensor([0, 1]), torch.tensor([2, 3])]).repeat(4, 1)[None]
    with (
        pytest.raises(ValueError, match="cannot be used with attention_window"),
        causal.attention_window(3),
    ):
        causal(torch.randn(1, 1, 16, 8, 12, dtype=torch.float64), visible)
    assert causal.trunk.attention_window is None


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "joint", "depth": 1},
        {"spatial_depth": 1, "temporal_depth": 1, "pooling": "temporal_cls"},
    ],
    ids=["joint", "factorized_encoder"],
)
@torch.no_grad()
def test_the_class_token_of_a_clip_attends_to_all_steps(settings):
    made = encoder(settings)
    video = torch.randn(1, 1, 16, 8, 12, dtype=torch.float64)
    whole = made(video)
    with made.attention_window(2):
        limited = made(video)
    assert not torch.allclose(limited.tokens, whole.tokens, rtol=0, atol=1e-4)
    torch.testing.assert_close(limited.pooled, whole.pooled, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_window_gives_listed_tokens_the_outputs_of_all_tokens():
    made = encoder({"variant": "joint", "depth": 2, "register_tokens": 2})
    video = torch.randn(2, 1, 16, 8, 12, dtype=torch.float64)
    every = torch.arange(8 * 6).expand(2, -1)
    with made.attention_window(2):
        expected, listed = made(video), made(video, visible_tokens=every)
        alone = made(video, visible_tokens=every, tokens=False)
    torch.testing.assert_close(listed.tokens.flatten(1, 2), expected.tokens.flatten(1, 2))
    torch.testing.assert_close(listed.pooled, expected.pooled, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.pooled, expected.pooled, rtol=0, atol=1e-12)
