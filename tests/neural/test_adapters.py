"""The adapter of the stimulus: identity at the start, correct places, no aliasing."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_vivit.neural.adapters import (
    AdapterConfig,
    StimulusAdapter,
    build_adapter,
    cubic,
)
from ssl_vivit.neural.model_settings import build_part

KINDS = ("scale", "affine")
by_kind = pytest.mark.parametrize("kind", KINDS)


def places(height, width):
    """Return x and y of all pixels, relative to the centre."""
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    return x.double(), y.double()


def affine(matrix, shift=(0.0, 0.0)):
    adapter = StimulusAdapter("affine").double()
    with torch.no_grad():
        adapter.matrix.copy_(torch.tensor(matrix, dtype=torch.float64))
        adapter.shift.copy_(torch.tensor(shift, dtype=torch.float64))
    return adapter


@by_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [(36, 64), (7, 1)])
def test_a_fresh_adapter_gives_its_input_back_bit_by_bit(kind, dtype, size):
    video = torch.randn(2, 3, 4, *size).to(dtype)
    assert torch.equal(StimulusAdapter(kind)(video), video)


@torch.no_grad()
@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        ([[0.8, 0.0], [0.0, 0.9]], (0.0, 0.0)),
        ([[1.0, 0.2], [-0.15, 1.1]], (0.05, -0.1)),
        ([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]], (0.0, 0.0)),
    ],
)
def test_a_plane_wave_is_resampled_by_the_matrix(matrix, shift):
    """Compared away from the edges, because the image of the wave ends there."""
    x, y = places(40, 60)

    def wave(x, y):
        return torch.sin(0.25 * x + 0.2 * y + 1)

    found = affine(matrix, shift)(wave(x, y)[None, None, None])[0, 0, 0]
    (a, b), (c, d) = matrix
    expected = wave(a * x + b * y + shift[0] * 60, c * x + d * y + shift[1] * 40)
    inside = (slice(13, -13), slice(13, -13))
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=0.02)


@torch.no_grad()
def test_one_scale_is_the_affine_map_of_that_scale():
    adapter = StimulusAdapter("scale").double()
    adapter.log_scale.fill_(math.log(1.7))
    video = torch.randn(1, 1, 2, 12, 20, dtype=torch.float64)
    expected = affine([[1.7, 0.0], [0.0, 1.7]])(video)
    torch.testing.assert_close(adapter(video), expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("factor", [2, 3])
def test_what_shrinks_is_blurred_as_torchs_antialiased_interpolation_blurs(factor):
    """torch's antialiased reduction of a larger image equals the middle of the adapter's output."""
    torch.manual_seed(0)
    small, size = 12, 12 * factor
    video = torch.rand(1, 1, 1, size, size, dtype=torch.float64)
    found = affine([[float(factor), 0.0], [0.0, float(factor)]])(video)[0, :, 0]
    expected = F.interpolate(video[0], (small, small), mode="bicubic", antialias=True)[0]
    start = (size - small) // 2
    middle = found[:, start : start + small, start : start + small]
    torch.testing.assert_close(middle, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_fine_gratings_turn_grey_when_shrunk_and_stay_when_not():
    grating = (torch.arange(64) % 2 * 2.0 - 1).expand(1, 1, 1, 36, 64)
    adapter = StimulusAdapter("scale")
    for factor in (2.0, 2.5, 3.0):
        adapter.log_scale.fill_(math.log(factor))
        middle = adapter(grating)[0, 0, 0, 14:22, 26:38]
        assert middle.abs().max() < 0.1
        sampled = F.grid_sample(
            grating[:, :, 0],
            F.affine_grid(torch.eye(2, 3)[None] * factor, (1, 1, 36, 64), align_corners=False),
            align_corners=False,
        )[0, 0, 14:22, 26:38]
        assert factor == 2.0 or sampled.abs().max() > 0.4, "without blur it aliases"


@by_kind
def test_gradients_are_exact_away_from_the_start(kind):
    adapter = StimulusAdapter(kind).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05 + 0.03)
    video = torch.randn(1, 1, 1, 5, 6, dtype=torch.float64)
    names = [name for name, _ in adapter.named_parameters()]
    start = tuple(p.detach().clone().requires_grad_() for p in adapter.parameters())
    torch.autograd.gradcheck(
        lambda *values: torch.func.functional_call(
            adapter, dict(zip(names, values, strict=True)), video
        ),
        start,
    )


@by_kind
def test_a_fresh_adapter_finds_by_how_much_a_stimulus_was_magnified(kind):
    torch.manual_seed(0)
    coarse = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    video = F.interpolate(coarse, (18, 24), mode="bicubic")[:, :, None]
    with torch.no_grad():
        target = affine([[0.9, 0.0], [0.0, 0.9]])(video)
    adapter = StimulusAdapter(kind).double()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (adapter(video) - target).square().mean().backward()
        optimizer.step()
    found = adapter.log_scale.exp() if kind == "scale" else adapter.matrix.diagonal().mean()
    assert float(found.detach()) == pytest.approx(0.9, abs=0.01)


def test_cubic_is_the_kernel_at_whole_and_half_numbers():
    x = torch.tensor([0.0, 1.0, -1.0, 2.0, 5.0, 0.5, -1.5], dtype=torch.float64)
    expected = [1.0, 0.0, 0.0, 0.0, 0.0, 0.5625, -0.0625]
    torch.testing.assert_close(cubic(x), torch.tensor(expected, dtype=torch.float64))


def test_configs_are_read_back_and_mistakes_refused():
    for kind in KINDS:
        adapter = build_adapter(AdapterConfig(kind))
        other = build_part("adapter", adapter.to_config())
        other.load_state_dict(adapter.state_dict())
    assert build_adapter(AdapterConfig()) is None
    with pytest.raises(ValueError, match=r"adapter\.kind 'warp' is unknown"):
        AdapterConfig("warp")
