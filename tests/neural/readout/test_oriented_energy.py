"""Oriented energy, compared with a slow computation, and for gratings."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_vivit.neural.readout.oriented_energy import oriented_energy


def grating(angle, frames=6, size=(36, 64), cycles=0.12):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    phase = 2 * math.pi * cycles * (x * math.cos(angle) + y * math.sin(angle))
    time = torch.arange(frames)[:, None, None]
    return (127.5 + 100 * torch.sin(phase - 0.5 * time)).round().to(torch.uint8)


def test_cells_equal_a_slow_computation_of_the_structure_tensor():
    torch.manual_seed(0)
    video = torch.randint(0, 256, (3, 36, 64), dtype=torch.uint8)
    found = oriented_energy(video)
    assert found.shape == (3, 12, 21, 3)
    side = (36 * 64 / 252) ** 0.5
    grey = (video[1:].double() + video[:-1]) / 2 / 255
    blurred = torch.empty_like(grey)
    for row in range(36):
        for column in range(64):
            weight = weights(36, row + 0.5, 1.0)[:, None] * weights(64, column + 0.5, 1.0)
            blurred[:, row, column] = (grey * weight).sum((1, 2))

    def at(row, column):
        return blurred[1, min(max(row, 0), 35), min(max(column, 0), 63)]

    for i, j in ((0, 0), (5, 9), (11, 20)):
        window = weights(36, (i + 0.5) * 3, 0.8 * side)[:, None]
        window = window * weights(64, (j + 0.5) * 64 / 21, 0.8 * side)
        xx = yy = xy = 0.0
        for row in range(36):
            for column in range(64):
                right = (at(row, column + 1) - at(row, column - 1)) / 2
                down = (at(row + 1, column) - at(row - 1, column)) / 2
                xx, yy = xx + window[row, column] * right**2, yy + window[row, column] * down**2
                xy = xy + window[row, column] * right * down
        energy = (xx + yy + 1e-4).sqrt()
        expected = torch.stack([energy, (xx - yy) / energy, 2 * xy / energy]).float()
        torch.testing.assert_close(found[2, i, j], expected, atol=1e-5, rtol=1e-4)


def weights(length, centre, deviation):
    each = torch.exp(-0.5 * ((torch.arange(length) + 0.5 - centre) / deviation) ** 2).double()
    return each / each.sum()


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_gratings_turn_twice_their_angle(degrees):
    angle = math.radians(degrees)
    energy, across, diagonal = oriented_energy(grating(angle))[3, 5, 10]
    assert float(energy) > 0.1
    assert float(across / energy) == pytest.approx(math.cos(2 * angle), abs=0.12)
    assert float(diagonal / energy) == pytest.approx(math.sin(2 * angle), abs=0.12)


def test_large_frames_are_averaged_and_small_ones_have_fewer_cells():
    large = grating(0.3, size=(36, 64)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(oriented_energy(large), oriented_energy(grating(0.3)))
    assert oriented_energy(grating(0.3, size=(4, 5))).shape == (6, 4, 5, 3)
    assert oriented_energy(grating(0.3, size=(1, 1))).shape == (6, 1, 1, 3)
    assert oriented_energy(grating(0.3, size=(36, 64)).float()).isfinite().all()


def test_energy_does_not_depend_on_later_frames():
    video = grating(1.0)
    changed = video.clone()
    changed[4:] = 0
    assert torch.equal(oriented_energy(video)[:4], oriented_energy(changed)[:4])
