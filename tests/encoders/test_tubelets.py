"""Tubelet embedding, compared with Conv3d, a 2D patch embedding and its definition."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.tubelets import TubeletEmbedding, inflate

BASE = {
    "embed_dim": 16,
    "num_heads": 2,
    "num_frames": 8,
    "image_size": (12, 20),
    "tubelet_size": (4, 4, 4),
}


def embedding(**settings) -> TubeletEmbedding:
    torch.manual_seed(0)
    module = TubeletEmbedding(ViViTConfig(**(BASE | settings))).double()
    torch.nn.init.normal_(module.bias)
    return module


def video(frames=8, height=12, width=20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, frames, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("stride", [(4, 4, 4), (2, 4, 4), (1, 2, 4), (4, 2, 2)])
@pytest.mark.parametrize("padding", ["none", "causal"])
def test_equals_conv3d_with_the_same_numbers(stride, padding):
    module = embedding(tubelet_stride=stride, temporal_padding=padding)
    clip = video()
    tokens, grid = module(clip)
    front = 4 - stride[0] if padding == "causal" else 0
    expected = F.conv3d(
        F.pad(clip, (0, 0, 0, 0, front, 0)), module.weight, module.bias, stride=stride
    )
    assert tuple(grid) == expected.shape[2:]
    expected = rearrange(expected, "b d t h w -> b t (h w) d")
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)
    visible = torch.tensor([[grid.n - 1, 0, 2], [1, 3, 0]])
    masked, _ = module(clip, visible)
    for b in range(2):
        torch.testing.assert_close(masked[b], expected[b][:, visible[b]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_central_frame_equals_the_2d_embedding_of_that_frame(frames):
    module = embedding(
        tubelet_size=(frames, 4, 4), num_frames=2 * frames, tubelet_init="central_frame"
    )
    clip = video(frames=2 * frames)
    tokens, _ = module(clip)
    kernel = module.weight[:, :, frames // 2]
    for t in range(2):
        image = F.conv2d(clip[:, :, t * frames + frames // 2], kernel, module.bias, stride=4)
        image = rearrange(image, "b d h w -> b (h w) d")
        torch.testing.assert_close(tokens[:, t], image, rtol=0, atol=1e-12)
    assert kernel.std() > 0.1


def test_average_equals_the_2d_embedding_of_the_mean_frame():
    module = embedding(tubelet_init="average")
    kernel = module.weight.sum(2)
    clip = video()
    tokens, _ = module(clip)
    image = F.conv2d(clip[:, :, :4].mean(2), kernel, module.bias, stride=4)
    torch.testing.assert_close(
        tokens[:, 0], rearrange(image, "b d h w -> b (h w) d"), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(inflate(kernel, 4, "average"), module.weight, rtol=0, atol=1e-15)


@torch.no_grad()
@pytest.mark.parametrize("init", ["random", "central_frame", "average"])
def test_fresh_weights_keep_the_power_of_the_pixels_that_they_read(init):
    """Fresh weights are LeCun-normal; a mean over frames keeps the power if frames are equal."""
    module = embedding(embed_dim=1024, tubelet_init=init)
    torch.nn.init.zeros_(module.bias)
    clip = video()
    if init == "average":
        clip = clip[:, :, :1].expand_as(clip)
    tokens, _ = module(clip)
    power = F.avg_pool3d(clip.square(), 4).mean(1).flatten(2)
    if init == "central_frame":
        power = F.avg_pool3d(clip[:, :, 2::4].square(), (1, 4, 4)).mean(1).flatten(2)
    torch.testing.assert_close(tokens.var(-1), power, rtol=0.25, atol=0)
    assert (tokens.var(-1) / power).mean() == pytest.approx(1, abs=0.05)


def test_causal_tokens_end_at_the_documented_frame():
    """Token i ends at frame (i + 1) · stride − 1, and starts tubelet_size frames before."""
    module = embedding(tubelet_stride=(2, 4, 4), temporal_padding="causal")
    clip = video().requires_grad_()
    tokens, grid = module(clip)
    assert grid.t == 4
    for i in range(grid.t):
        (gradient,) = torch.autograd.grad(tokens[:, i].sum(), clip, retain_graph=True)
        seen = gradient.abs().amax((0, 1, 3, 4)).nonzero()[:, 0].tolist()
        end = (i + 1) * 2 - 1
        assert seen == list(range(max(end - 3, 0), end + 1))


def test_crop_leaves_the_remainder_out():
    module = embedding(remainder="crop")
    whole, grid = module(video())
    cropped, larger = module(F.pad(video(), (0, 3, 0, 1, 0, 2), value=9.0))
    assert larger == grid
    assert torch.equal(cropped, whole)


FRAMES = {"tubelet_embedding": "uniform_frames"}


@pytest.mark.parametrize(
    ("frames", "count", "indices"),
    [(8, 4, [2, 3, 5, 6]), (10, 4, [2, 4, 6, 8]), (4, 4, [0, 1, 2, 3]), (3, 4, [0, 1, 2])],
)
def test_uniform_frames_are_patches_of_the_frames_taken(frames, count, indices):
    module = embedding(**FRAMES, num_frames=frames, sampled_frames=count)
    clip = video(frames=frames)
    assert module.weight.shape == (16, 3, 1, 4, 4)
    tokens, grid = module(clip)
    assert tuple(grid) == (len(indices), 3, 5)
    visible = torch.tensor([[14, 3], [0, 7]])
    masked, _ = module(clip, visible)
    some, _ = module(clip, visible_tokens=visible + 15)
    for step, index in enumerate(indices):
        image = F.conv2d(clip[:, :, index], module.weight[:, :, 0], module.bias, stride=4)
        image = rearrange(image, "b d h w -> b (h w) d")
        torch.testing.assert_close(tokens[:, step], image, rtol=0, atol=1e-12)
        for b in range(2):
            torch.testing.assert_close(masked[b, step], image[b, visible[b]], rtol=0, atol=1e-12)
            if step == 1:
                torch.testing.assert_close(some[b, 0], image[b, visible[b]], rtol=0, atol=1e-12)


def test_uniform_frames_take_one_frame_per_tubelet_by_default():
    module = embedding(**FRAMES, num_frames=16)
    for frames, steps in ((16, 4), (32, 8), (4, 1)):
        assert module(video(frames=frames))[1].t == steps
    with pytest.raises(ValueError, match="num_frames 18 is not filled"):
        module(video(frames=18))


def test_a_float_step_can_give_one_frame_more_than_asked():
    """google-research/scenic takes 28 of 64 frames if 27 are requested, and so does this function."""
    config = ViViTConfig(**(BASE | FRAMES), sampled_frames=27)
    assert config.grid_of(64, 12, 20).t == 28
    assert config.frames_of(64)[0] == 2
    assert config.frames_of(64)[-1] == 63


@pytest.mark.parametrize("stride", [(4, 4, 4), (2, 2, 4)])
def test_visible_tokens_are_the_tokens_at_these_places(stride):
    module = embedding(tubelet_stride=stride, temporal_padding="causal")
    tokens, grid = module(video())
    index = torch.stack([torch.randperm(grid.t * grid.n)[:5] for _ in range(2)])
    got, same = module(video(), visible_tokens=index)
    assert same == grid
    for b in range(2):
        expected = tokens[b].flatten(0, 1)[index[b]]
        torch.testing.assert_close(got[b, 0], expected, rtol=0, atol=1e-12)
