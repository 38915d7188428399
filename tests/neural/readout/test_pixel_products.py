"""Products of features with pixels equal a slow loop for any grouping."""

import pytest
import torch

from ssl_vivit.neural.readout import pixel_products
from ssl_vivit.neural.readout.pixel_products import _blocks, read_pixels

CLIPS, TIMES, SIZE, NEURONS, CHANNELS = 2, 3, (2, 3), 5, 4
AREA = SIZE[0] * SIZE[1]


def entries(count, times, seed=0):
    """Return random readings: neurons may read a pixel repeatedly, and some pixels are not read."""
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.randint(0, CLIPS * AREA, (count,), generator=generator)
    pixel[pixel == 4] = 5
    neuron = torch.randint(0, NEURONS, (count,), generator=generator)
    weight = torch.randn(count, times, generator=generator, dtype=torch.float64)
    return pixel, neuron, weight.requires_grad_()


def parts():
    generator = torch.Generator().manual_seed(1)
    shape = (CLIPS, CHANNELS, TIMES, *SIZE)
    map = torch.randn(shape, generator=generator, dtype=torch.float64)
    features = torch.randn(NEURONS, CHANNELS, generator=generator, dtype=torch.float64)
    return map.requires_grad_(), features.requires_grad_()


def slowly(map, features, pixel, neuron, weight):
    out = [[torch.zeros(TIMES).double() for _ in range(NEURONS)] for _ in range(CLIPS)]
    for e in range(len(pixel)):
        clip, rest = divmod(int(pixel[e]), AREA)
        y, x = divmod(rest, SIZE[1])
        seen = (features[neuron[e]][:, None] * map[clip, :, :, y, x]).sum(0)
        out[clip][neuron[e]] = out[clip][neuron[e]] + weight[e] * seen
    return torch.stack([torch.stack(row, dim=1) for row in out])


def in_blocks(map, pixel):
    """Group readings as on GPUs, a few blocks at a time."""
    order = pixel.argsort(stable=True)
    group, listed = _blocks(pixel[order], order, CLIPS * AREA)
    yield from zip(group.split(3), listed.split(3), strict=True)


@pytest.fixture(params=["one after another", "blocks"])
def _grouped(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(pixel_products, "_groups", in_blocks)


@pytest.mark.parametrize("times", [1, TIMES])
@pytest.mark.parametrize("count", [1, 17, 300])
@pytest.mark.usefixtures("_grouped")
def test_numbers_and_gradients_are_those_of_a_slow_loop(count, times):
    map, features = parts()
    pixel, neuron, weight = entries(count, times)
    ours = read_pixels(map, features, pixel, neuron, weight)
    theirs = slowly(map, features, pixel, neuron, weight)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    direction = torch.randn_like(ours)
    wanted = (map, features, weight)
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), wanted),
        torch.autograd.grad((theirs * direction).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("count", [1, 40, 1000, 20_000])
def test_blocks_contain_every_entry_once_and_one_pixel_each(count):
    pixels = 30
    generator = torch.Generator().manual_seed(count)
    # A crowd on few pixels, as at the start of training, and a few elsewhere.
    pixel = (torch.randn(count, generator=generator) * 2 + 15).long().clamp(0, pixels - 1)
    order = pixel.argsort(stable=True)
    group, listed = _blocks(pixel[order], order, pixels)
    filled = listed < count
    assert torch.equal(listed[filled].sort().values, torch.arange(count))
    owner = group[:, None].expand_as(listed)[filled]
    assert torch.equal(pixel[listed[filled]], owner)


def test_the_operator_passes_torchs_opcheck():
    map, features = parts()
    for times in (1, TIMES):
        torch.library.opcheck(pixel_products._products, (map, features, *entries(20, times)))
