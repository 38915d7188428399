"""Causal encoders: exactly zero gradients to later frames; tokens of shorter clips are equal."""

import pytest
import torch
from small_encoders import (
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

CAUSAL = {"temporal_causal": True, "temporal_padding": "causal"}
OVERLAPPING = {"tubelet_size": (4, 8, 8), "tubelet_stride": (2, 8, 8)}
by_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def frames_seen(encoder, video):
    """Return for each time step the frames to which its tokens have gradients."""
    for i in range(encoder.config.grid.t):
        output = encoder(video)
        values = output.tokens[:, i]
        if output.cls is not None and encoder.config.variant == "factorized_encoder":
            values = torch.cat((values, output.cls[:, i, None]), dim=1)
        (gradient,) = torch.autograd.grad(values.square().sum(), video)
        yield (gradient != 0).any(4).any(3).any(1).any(0).tolist()


@by_model
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"register_tokens": 2} | ROTARY,
        OVERLAPPING,
        OVERLAPPING | PARALLEL | {"register_tokens": 1},
        {"joint_positions": "learned", "qk_norm": True},
    ],
)
def test_tokens_see_every_frame_up_to_their_own_and_no_later_one(model, settings, checkpointing):
    encoder = make(**(model | CAUSAL | settings))
    encoder.set_grad_checkpointing(checkpointing)
    for i, seen in enumerate(frames_seen(encoder, clip(batch=1).requires_grad_())):
        end = 2 * (i + 1)
        assert seen == [True] * end + [False] * (8 - end)


def test_a_temporal_class_token_leaks_nothing_into_the_others():
    encoder = make(**MODEL2, **CAUSAL, pooling="temporal_cls", register_tokens=1)
    for i, seen in enumerate(frames_seen(encoder, clip(batch=1).requires_grad_())):
        assert sum(seen) == 2 * (i + 1)


@by_model
@pytest.mark.parametrize("block", [{}, PARALLEL])
def test_without_causal_attention_tokens_see_later_frames(model, block):
    encoder, video = make(**model, **block), clip(batch=1).requires_grad_()
    assert all(all(seen) for seen in frames_seen(encoder, video))


@torch.no_grad()
@by_model
@pytest.mark.parametrize("block", [{}, PARALLEL])
def test_causal_registers_are_not_inert(model, block):
    settings = model | block | {"register_tokens": 1, "temporal_causal": True}
    encoder, video = make(**settings), clip()
    before = encoder(video).tokens
    registers = [p for name, p in encoder.named_parameters() if name.endswith("registers")]
    assert len(registers) == (1 if model is MODEL1 else 2)
    registers[-1].add_(torch.randn_like(registers[-1]))
    assert (encoder(video).tokens - before).abs().amax((0, 2, 3)).min() > 1e-3


@torch.no_grad()
@by_model
@pytest.mark.parametrize("mask", [None, torch.tensor([[4, 1]])])
def test_a_shorter_clip_is_the_start_of_a_longer_one(model, mask):
    encoder = make(**model, **ROTARY, **CAUSAL, register_tokens=1)
    video = clip(batch=1, frames=16)
    start = encoder(video[:, :, :8], mask).tokens
    torch.testing.assert_close(encoder(video, mask).tokens[:, :4], start, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("model", [MODEL1, MODEL3, MODEL4])
def test_one_learned_table_is_cropped_too(model):
    encoder = make(**model, **CAUSAL, joint_positions="learned", interpolate_positions=True)
    video = clip()
    start = encoder(video[:, :, :4]).tokens
    torch.testing.assert_close(encoder(video).tokens[:, :2], start, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="at most 4 time steps, since causal tables are not"):
        encoder(clip(frames=16))


@torch.no_grad()
@pytest.mark.parametrize("interpolate", [False, True])
def test_learned_positions_in_time_are_cropped_and_not_stretched_at_call_time(interpolate):
    encoder = make(**MODEL2, temporal_causal=True, interpolate_positions=interpolate)
    video = clip()
    short = encoder(video[:, :, :4]).tokens
    torch.testing.assert_close(short, encoder(video).tokens[:, :2], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="learned positions of 4×2×3; use num_frames 8"):
        encoder(clip(frames=16))
