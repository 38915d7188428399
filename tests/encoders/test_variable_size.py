"""Clips of other sizes than configured: sizes that positions allow, and their tables."""

import pytest
import torch
from small_encoders import MODEL1, MODEL2, MODEL3, MODEL4, MODELS, ROTARY, clip, make
from timm.layers import resample_abs_pos_embed

from ssl_vivit import ViViT, ViViTConfig
from ssl_vivit.encoders.positions import resample_spatial, resample_temporal

SINUSOIDAL = {"spatial_positions": "sinusoidal", "temporal_positions": "sinusoidal"}
by_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@torch.no_grad()
@by_model
@pytest.mark.parametrize(
    "positions",
    [ROTARY, SINUSOIDAL, {"joint_positions": "sinusoidal"},
     {"spatial_positions": "none", "temporal_positions": "none"}],
)  # fmt: skip
@pytest.mark.parametrize("size", [(2, 16, 24), (12, 16, 24), (8, 32, 16)])
def test_any_size_equals_an_encoder_made_for_it(model, positions, size):
    frames, height, width = size
    encoder = make(**model, **positions)
    own = ViViT(ViViTConfig(**(model | positions | {"num_frames": frames,
                                                   "image_size": (height, width)})))  # fmt: skip
    own = own.double().eval()
    own.load_state_dict(encoder.state_dict())
    video = clip(frames=frames, height=height, width=width)
    assert torch.equal(encoder(video).tokens, own(video).tokens)
    assert encoder(video).map.shape[2:] == (frames // 2, height // 8, width // 8)


@by_model
@pytest.mark.parametrize("tables", [{}, {"joint_positions": "learned"}])
@pytest.mark.parametrize("size", [{"frames": 12}, {"height": 32}])
def test_learned_tables_refuse_another_size_unless_asked(model, tables, size):
    with pytest.raises(ValueError, match=r"does not fit the learned.*interpolate_positions=True"):
        make(**model, **tables)(clip(**size))


@torch.no_grad()
@by_model
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("frames", [4, 12])
def test_interpolated_tables_equal_an_encoder_that_has_them(model, joint, frames):
    tables = {"joint_positions": "learned"} if joint else {}
    encoder = make(**model, **tables, interpolate_positions=True)
    own = ViViT(ViViTConfig(**(model | tables | {"num_frames": frames, "image_size": (32, 24)})))
    own = own.double().eval()
    state, slots = encoder.state_dict(), int(bool(encoder.config.class_token))
    if joint:
        slots = slots if model is MODEL1 else 0
        table = state["positions.joint"][slots:].unflatten(0, (4, 6))
        table = torch.stack([resample_spatial(step, (2, 3), (4, 3)) for step in table])
        table = torch.stack([resample_temporal(table[:, n], frames // 2) for n in range(12)], dim=1)
        state["positions.joint"] = torch.cat(
            (state["positions.joint"][:slots], table.flatten(0, 1))
        )
    else:
        table = state["positions.spatial"]
        state["positions.spatial"] = torch.cat(
            (table[:slots], resample_spatial(table[slots:], (2, 3), (4, 3)))
        )
        state["positions.temporal"] = resample_temporal(state["positions.temporal"], frames // 2)
    own.load_state_dict(state)
    video = clip(frames=frames, height=32)
    torch.testing.assert_close(encoder(video).tokens, own(video).tokens, rtol=0, atol=1e-12)
    torch.testing.assert_close(encoder(video).pooled, own(video).pooled, rtol=0, atol=1e-12)
    mask = torch.tensor([[7, 2], [0, 11]])
    torch.testing.assert_close(
        encoder(video, mask).tokens, own(video, mask).tokens, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("old", "new"), [((4, 6), (8, 12)), ((4, 6), (6, 4)), ((5, 4), (3, 3))])
def test_spatial_tables_are_resampled_as_timm_does(old, new):
    table = torch.randn(old[0] * old[1], 8)
    expected = resample_abs_pos_embed(table[None], list(new), list(old), num_prefix_tokens=0)[0]
    torch.testing.assert_close(resample_spatial(table, old, new), expected, rtol=0, atol=1e-6)
    assert resample_spatial(table, old, old) is table


def test_tables_of_one_column_are_resampled_as_those_of_one_row():
    table = torch.randn(4, 8, dtype=torch.float64)
    for length in (8, 3, 1):
        row = resample_spatial(table, (1, 4), (1, length))
        assert torch.equal(resample_spatial(table, (4, 1), (length, 1)), row)
    assert (resample_spatial(table, (4, 1), (8, 1)).std(0) > 0.1).all()


@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 6), (8, 4), (5, 3)])
def test_temporal_tables_are_linear_between_the_centres_of_steps(old, new):
    table = torch.randn(old, 3, dtype=torch.float64)
    got = resample_temporal(table, new)
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = int(place)
        high = min(low + 1, old - 1)
        expected = table[low] + (place - low) * (table[high] - table[low])
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-12)
    assert resample_temporal(table, old) is table


@torch.no_grad()
def test_what_users_of_the_neural_core_call():
    encoder = make(**(MODEL2 | ROTARY), remainder="crop", temporal_causal=True)
    video = clip(frames=9, height=19, width=31)
    whole = encoder(video)
    assert whole.map.shape == (2, 24, 4, 2, 3)
    assert torch.equal(whole.map[:, :, 1, 1, 2], whole.tokens[:, 1, 5])
    assert torch.equal(encoder(video[:, :, :8, :16, :24]).tokens, whole.tokens)
    start = encoder(video[:, :, :4]).tokens
    torch.testing.assert_close(start, whole.tokens[:, :2], rtol=0, atol=1e-12)
    for model in (MODEL3, MODEL4):
        # Over one time step, attention over time reads the token itself alone.
        encoder = make(**model, **ROTARY, temporal_causal=True)
        alone = encoder(clip()[:, :, :2]).tokens
        torch.testing.assert_close(alone, encoder(clip()).tokens[:, :1], rtol=0, atol=1e-12)
