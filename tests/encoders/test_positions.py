"""Position embeddings, compared with their formulas."""

import math

import pytest
import torch

from ssl_vivit import Grid, ViViTConfig
from ssl_vivit.encoders.positions import (
    Places,
    Positions,
    Rotation,
    angles,
    sinusoidal_1d,
    sinusoidal_2d,
)


def rotation(coordinates: torch.Tensor) -> Rotation:
    """Return the axial rotation of heads of width 8 at (length, axes) coordinates."""
    axes = coordinates.shape[1]
    parts = [angles(axis, 4 // axes, 100.0) for axis in coordinates.unbind(1)]
    return Rotation.of(torch.cat(parts, dim=-1), torch.float64)


def test_sinusoidal_1d_is_the_published_formula():
    table = sinusoidal_1d(5, 8)
    for position in range(5):
        for i in range(8):
            angle = position / 10000 ** (2 * (i // 2) / 8)
            expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
            assert table[position, i].item() == pytest.approx(expected, abs=1e-14)


def test_sinusoidal_2d_is_row_major_on_a_grid_that_is_not_square():
    table = sinusoidal_2d(Grid(1, 2, 3), 8)
    for row in range(2):
        for column in range(3):
            token = table[row * 3 + column]
            for i in range(2):
                omega = 10000 ** (-i / 2)
                expected = [math.sin(column * omega), math.cos(column * omega),
                            math.sin(row * omega), math.cos(row * omega)]  # fmt: skip
                assert token[i::2].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("axes", [1, 2])
def test_rotary_scores_depend_only_on_differences_of_coordinates(axes):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(at: list[int], other: list[int]) -> float:
        turned = [
            rotation(torch.tensor([place])).apply(x) for place, x in ((at, query), (other, key))
        ]
        return (turned[0] * turned[1]).sum().item()

    first = score([3] * axes, [1, 5][:axes])
    assert score([13] * axes, [11, 15][:axes]) == pytest.approx(first, abs=1e-12)
    assert score([4] * axes, [1, 5][:axes]) != pytest.approx(first, abs=1e-3)


def test_rotary_is_rotation_of_pairs_axis_by_axis():
    x = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    coordinates = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    turned = rotation(coordinates).apply(x)
    for token, (row, column) in enumerate(coordinates.tolist()):
        for pair, angle in enumerate([row, row / 10, column, column / 10]):
            a, b = x[0, 0, token, pair].item(), x[0, 0, token, pair + 4].item()
            expected = complex(a, b) * complex(math.cos(angle), math.sin(angle))
            got = complex(turned[0, 0, token, pair].item(), turned[0, 0, token, pair + 4].item())
            assert abs(got - expected) < 1e-12


def test_padding_leaves_special_tokens_unrotated():
    turn = rotation(torch.arange(3)[:, None] + 5).padded(2, 1)
    x = torch.randn(1, 1, 6, 8, dtype=torch.float64)
    turned = turn.apply(x)
    assert torch.equal(turned[:, :, [0, 1, 5]], x[:, :, [0, 1, 5]])
    assert not torch.allclose(turned[:, :, 2:5], x[:, :, 2:5])


@pytest.mark.parametrize(
    ("rotary", "pairs"),
    [(("row", "column", "time"), (5, 5, 6)), (("row", "column"), (8, 8)), (("time",), (16,))],
)
def test_rotary_positions_of_model_1_share_each_head_between_its_axes(rotary, pairs):
    config = ViViTConfig(
        variant="joint", num_frames=4, image_size=(4, 6), tubelet_size=(2, 2, 2), depth=1,
        embed_dim=32, num_heads=1, register_tokens=1, rotary_base_spatial=50.0,
        spatial_positions="rotary" if "row" in rotary else "none",
        temporal_positions="rotary" if "time" in rotary else "none",
    )  # fmt: skip
    like = torch.zeros(1, dtype=torch.float64)
    turn = Positions(config).joint_rotation(Places(config.grid), like)
    bases = {"row": 50.0, "column": 50.0, "time": 10000.0}
    expected = torch.zeros(2 + 12, 16, dtype=torch.float64)
    for token in range(12):
        at = {"time": token // 6, "row": token % 6 // 3, "column": token % 3}
        turns = [
            at[axis] / bases[axis] ** (i / count)
            for axis, count in zip(rotary, pairs, strict=True)
            for i in range(count)
        ]
        expected[2 + token] = torch.tensor(turns, dtype=torch.float64)
    torch.testing.assert_close(turn.cos, expected.cos(), rtol=0, atol=1e-12)
    torch.testing.assert_close(turn.sin, expected.sin(), rtol=0, atol=1e-12)
