"""Sheets of reconstructions: which pixels were hidden, and what is drawn where."""

import pytest
import torch

from ssl_vivit.evaluation.monitors.reconstruction_figure import (
    RESCALED,
    reconstruction_sheet,
    upsampled,
)
from ssl_vivit.objectives.masked_tubelets import Reconstruction


@pytest.fixture
def found() -> Reconstruction:
    torch.manual_seed(0)
    hidden = torch.rand(2, 3, 2, 3) < 0.5
    video, predicted = torch.rand(2, 2, 1, 6, 8, 12)
    return Reconstruction(video, predicted, hidden, list(range(6)), False)


def test_hidden_pixels_are_those_of_hidden_tubelets(found):
    got = upsampled(found.hidden, found.video.shape)
    assert got.shape == (2, 6, 8, 12)
    for t in range(6):
        for y in range(8):
            for x in range(12):
                assert torch.equal(got[:, t, y, x], found.hidden[:, t // 2, y // 4, x // 4])


def test_rows_show_clip_what_was_visible_prediction_and_error(found):
    axes = reconstruction_sheet(found, ["a", "b"], frames=3).axes
    assert len(axes) == 2 * 4 * 3
    times = [0, 2, 5]
    assert [axis.get_title() for axis in axes[:3]] == [f"frame {t}" for t in times]
    hidden = upsampled(found.hidden, found.video.shape)
    for clip in range(2):
        for column, time in enumerate(times):
            shown = [
                torch.as_tensor(axes[(clip * 4 + row) * 3 + column].images[0].get_array())[..., 0]
                for row in range(4)
            ]
            video, predicted = found.video[clip, 0, time], found.predicted[clip, 0, time]
            visible = video.clone()
            visible[hidden[clip, time]] = 0.15
            error = ((video - predicted).abs() * 2).clamp(max=1)
            for got, expected in zip(shown, (video, visible, predicted, error), strict=True):
                torch.testing.assert_close(got, expected)


def test_frames_are_numbered_as_in_the_clip_and_true_colours_are_owned_up_to(found):
    """Every third frame of a clip of 18 was embedded."""
    sampled = found._replace(frames=list(range(1, 18, 3)), rescaled=True)
    figure = reconstruction_sheet(sampled, ["a", "b"], frames=3)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["frame 1", "frame 7", "frame 16"]
    assert figure.get_supxlabel() == RESCALED
    assert not reconstruction_sheet(found, ["a", "b"], frames=3).get_supxlabel()
