"""Padding of clips that tubelets do not fill equals padding by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_encoders import MODELS, ROTARY, make

from ssl_vivit import ViViT, ViViTConfig, create_encoder
from ssl_vivit.evaluation.attention.figure import frame_of_step
from ssl_vivit.neural.cores.frame_stream import FrameStream
from ssl_vivit.neural.cores.vivit_core import screen_span
from ssl_vivit.objectives import MaskedTubelets
from ssl_vivit.objectives.pixel_targets import shown_frames, tubelet_pixels

# Frames, height and width; zeros in front, above, below, left and right of tubelets of (4, 8, 8).
SIZES = [
    ((8, 16, 24), (0, 0, 0, 0, 0)),
    ((9, 16, 24), (3, 0, 0, 0, 0)),
    ((10, 12, 27), (2, 2, 2, 2, 3)),
    ((3, 5, 24), (1, 1, 2, 0, 0)),
    ((8, 13, 21), (0, 1, 2, 1, 2)),
]


def padded(video, zeros):
    front, above, below, left, right = zeros
    return F.pad(video, (left, right, above, below, front, 0))


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("size", "zeros"), SIZES)
def test_a_padded_clip_gives_the_tokens_of_the_clip_with_zeros_around_it(model, size, zeros):
    settings = model | ROTARY | {"tubelet_size": (4, 8, 8), "image_size": (16, 24), "num_frames": 8}
    encoder = make(**settings, remainder="pad")
    exact = ViViT(ViViTConfig.from_dict(encoder.config.to_dict() | {"remainder": "error"}))
    exact.double().eval().load_state_dict(encoder.state_dict())
    video = torch.randn(2, encoder.config.in_channels, *size, dtype=torch.float64)
    expected = exact(padded(video, zeros))
    found = encoder(video)
    assert found.grid == expected.grid
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-12)
    visible = torch.tensor([[1, 0], [0, 1]])
    torch.testing.assert_close(
        encoder(video, visible).tokens, exact(padded(video, zeros), visible).tokens,
        rtol=0, atol=1e-12,
    )  # fmt: skip


def test_zeros_of_the_remainder_come_before_those_of_causal_time():
    settings = {"num_frames": 9, "tubelet_size": (4, 8, 8), "tubelet_stride": (2, 8, 8)}
    config = ViViTConfig(
        image_size=(16, 24), remainder="pad", temporal_padding="causal", **settings
    )
    assert config.padding_of(9, 16, 24) == ((3, 0), (0, 0), (0, 0))
    assert config.grid.t == 5
    sampled = ViViTConfig(
        image_size=(12, 24), remainder="pad", tubelet_embedding="uniform_frames", num_frames=9,
        tubelet_size=(4, 8, 8),
    )  # fmt: skip
    assert sampled.padding_of(9, 12, 24) == ((0, 0), (2, 2), (0, 0))
    assert tuple(sampled.grid) == (2, 2, 3)


def test_the_small_neural_size_of_eight_takes_300_frames_of_36_by_64():
    config = create_encoder("vivit_neural_small", tubelet_size=(8, 8, 8), remainder="pad").config
    assert tuple(config.grid) == (38, 5, 8)
    assert config.padding_of(300, 36, 64) == ((4, 0), (2, 2), (0, 0))
    with pytest.raises(ValueError, match="num_frames 0 must be a whole number of at least 1"):
        create_encoder("vivit_neural_small", tubelet_size=(8, 8, 8), remainder="pad", num_frames=0)
    with pytest.raises(ValueError, match="or remainder='crop' or 'pad'"):
        create_encoder("vivit_neural_small", tubelet_size=(8, 8, 8))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_causal_padded_encoder_sees_no_later_frame(model):
    settings = model | ROTARY | {"tubelet_size": (4, 8, 8), "temporal_causal": True}
    encoder = make(**settings, remainder="pad")
    video = torch.randn(1, encoder.config.in_channels, 10, 12, 20, dtype=torch.float64)
    video.requires_grad_()
    tokens = encoder(video).tokens
    for step, end in enumerate((2, 6, 10)):
        (seen,) = torch.autograd.grad(tokens[:, step].square().sum(), video, retain_graph=True)
        by_frame = seen.abs().amax((0, 1, 3, 4))
        assert by_frame[:end].min() > 0
        assert not by_frame[end:].any()


@torch.no_grad()
@pytest.mark.parametrize(("size", "zeros"), SIZES)
def test_places_of_tokens_on_the_screen_are_those_of_their_pixels(size, zeros):
    config = ViViTConfig(
        in_channels=1, num_frames=8, image_size=size[1:], tubelet_size=(4, 8, 8), embed_dim=8,
        num_heads=2, spatial_depth=1, temporal_depth=1, remainder="pad", temporal_causal=True,
        temporal_padding="causal",
    )  # fmt: skip
    encoder, (_, above, below, left, right) = ViViT(config), zeros
    low, high = screen_span(encoder, size[1:])
    rows, columns = size[1:]
    torch.testing.assert_close(low, torch.tensor([-1 - 2 * left / columns, -1 - 2 * above / rows]))
    torch.testing.assert_close(high, torch.tensor([1 + 2 * right / columns, 1 + 2 * below / rows]))
    # A bright pixel reaches the stream at the token that holds it.
    grid = config.grid
    _, *border = config.padding_of(config.num_frames, *size[1:])
    stream = FrameStream(1, 8, (1, 8, 8), (8, 8), padding=tuple(border))
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        video = torch.zeros(1, 1, 1, rows, columns)
        video[..., row, column] = 5.0
        change = (stream(video) - stream(torch.zeros_like(video))).abs().amax((0, 1, 2))
        assert change.shape == (grid.h, grid.w)
        lit = [(row + above) // 8, (column + left) // 8]
        assert change.nonzero().tolist() == [lit]


@torch.no_grad()
def test_masked_tubelets_learn_repeated_pixels_at_the_border():
    config = ViViTConfig(
        num_frames=10, image_size=(12, 27), tubelet_size=(4, 8, 8), embed_dim=24, num_heads=2,
        spatial_depth=1, temporal_depth=1, remainder="pad", temporal_positions="rotary",
        spatial_positions="rotary",
    )  # fmt: skip
    video = torch.rand(2, 3, 10, 12, 27)
    pixels = tubelet_pixels(video, config).unflatten(2, config.grid[1:]).unflatten(-1, (4, 8, 8))
    for t in range(12):
        for y in range(16):
            for x in range(32):
                found = pixels[:, t // 4, y // 8, x // 8, :, t % 4, y % 8, x % 8]
                frame, row, column = max(t - 2, 0), min(max(y - 2, 0), 11), min(max(x - 2, 0), 26)
                assert torch.equal(found, video[:, :, frame, row, column])
    assert shown_frames(config, 10) == [0, 0, *range(10)]
    assert [frame_of_step(config, 10, step) for step in range(3)] == [0, 4, 8]
    objective = MaskedTubelets(ViViT(config), mask_ratio=0.5).eval()
    assert torch.isfinite(objective({"clips": video[:, None]}).loss)
    found = objective.reconstruct(video)
    assert found.video.shape == found.predicted.shape == (2, 3, 12, 16, 32)
    assert torch.equal(found.video[:, :, 2:, 2:14, 2:29], video)
