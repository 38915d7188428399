"""Resampled tubelet kernels equal timm's in space, and the pseudo-inverse on all axes."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.patch_embed import resample_patch_embed

from ssl_vivit.encoders.adapt import resample_kernel


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (32, 32)), ((8, 12), (16, 9)), ((5, 7), (3, 4))]
)
def test_the_spatial_part_is_timms(old, new):
    kernel = 0.05 * torch.randn(6, 3, *old, generator=torch.Generator().manual_seed(0))
    ours, _ = resample_kernel(kernel[:, :, None], (1, *new))
    assert torch.allclose(ours[:, :, 0], resample_patch_embed(kernel, list(new)), atol=1e-6, rtol=0)


def test_all_axes_at_once_are_the_pseudo_inverse_of_resizing_whole_tubelets():
    old, new = (2, 3, 4), (4, 5, 3)
    kernel = torch.randn(2, 1, *old, dtype=torch.float64)
    columns = []
    for pixel in torch.eye(24, dtype=torch.float64).reshape(24, 1, *old):
        frames = F.interpolate(pixel, size=new[1:], mode="bicubic", antialias=True)
        columns.append(F.interpolate(frames.movedim(1, -1), scale_factor=1).movedim(-1, 1))
    tubelets = torch.stack(columns)[:, 0]
    tubelets = rearrange(tubelets, "k t h w -> k (h w) t")
    resize = rearrange(F.interpolate(tubelets, size=new[0], mode="linear"), "k hw t -> (t hw) k")
    expected = torch.linalg.pinv(resize).T @ rearrange(kernel, "d 1 t h w -> (t h w) d")
    ours, _ = resample_kernel(kernel, new)
    assert torch.allclose(ours.flatten(1).T, expected, atol=1e-10)


@pytest.mark.parametrize("factor", [(2, 1, 1), (1, 2, 2), (3, 2, 4)])
def test_finer_tubelets_give_the_same_products(factor):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 3, 4, 6, 6, generator=generator, dtype=torch.float64)
    tubelet = torch.randn(3, 4, 6, 6, generator=generator, dtype=torch.float64)
    size = tuple(s * f for s, f in zip((4, 6, 6), factor, strict=True))
    finer = F.interpolate(tubelet, size=size[1:], mode="bicubic", antialias=True)
    finer = rearrange(finer, "c t h w -> c (h w) t")
    finer = F.interpolate(finer, size=size[0], mode="linear")
    finer = rearrange(finer, "c (h w) t -> c t h w", h=size[1])
    new, share = resample_kernel(kernel, size)
    assert share == pytest.approx(1.0, abs=1e-12)
    assert torch.allclose(
        (new * finer).flatten(1).sum(1), (kernel * tubelet).flatten(1).sum(1), atol=1e-10
    )


def test_one_frame_becomes_the_average_of_many():
    kernel = torch.randn(5, 3, 1, 4, 4, dtype=torch.float64)
    new, share = resample_kernel(kernel, (4, 4, 4))
    assert torch.allclose(new, kernel.expand(-1, -1, 4, -1, -1) / 4, atol=1e-14)
    assert share == pytest.approx(1.0)


def test_the_share_of_energy_is_that_of_the_part_that_coarse_tubelets_carry():
    resize = torch.tensor([[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]], dtype=torch.float64) / 7
    shares = []
    for over_time in ([1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, 1.0], [3.0, 3.0, 1.0, 0.0]):
        over_time = torch.tensor(over_time, dtype=torch.float64)
        kernel = over_time[:, None, None] * torch.ones(1, 1, 4, 8, 8)
        carried = resize.T @ torch.linalg.lstsq(resize.T, over_time[:, None]).solution
        shares.append(resample_kernel(kernel, (2, 8, 8))[1])
        expected = carried.square().sum() / over_time.square().sum()
        assert shares[-1] == pytest.approx(expected.item(), abs=1e-12)
    assert shares[0] > 0.9 > 0.5 > shares[1]
    assert shares[2] == pytest.approx(1.0)
