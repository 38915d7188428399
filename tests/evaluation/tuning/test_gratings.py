"""Pixels of gratings, frames of the response window, drift directions of movies."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation.tuning.drift import drift_direction, onset_of
from ssl_vivit.evaluation.tuning.gratings import Grating, Protocol
from ssl_vivit.evaluation.tuning.stimuli import Stimuli, default_stimuli

RECORDED = Path(__file__).parents[2] / "assets" / "mouse_v1_gratings" / "session_fov4_cut"
PROTOCOL = Protocol((12, 20), 30.0, grey=100.0, lead=0.1, seconds=1.0, transient=0.2)


def test_pixels_are_those_of_a_loop():
    grating = Grating(30, 0.1, 4, contrast=0.5, diameter=7, centre=(0.2, -0.5))
    trial = PROTOCOL.render(grating)
    assert trial.shape == (33, 12, 20)
    assert (trial[:3] == 100).all()
    for t, row, column in [(3, 2, 11), (10, 4, 14), (32, 0, 12), (20, 11, 0)]:
        x, y = column + 0.5 - 1.2 / 2 * 20, row + 0.5 - 0.5 / 2 * 12
        along = x * math.cos(math.pi / 6) + y * math.sin(math.pi / 6)
        wave = math.sin(2 * math.pi * (0.1 * along - 4 * (t - 3) / 30))
        inside = min(max(3.5 - math.hypot(x, y) + 0.5, 0), 1)
        assert trial[t, row, column] == pytest.approx(100 + 50 * inside * wave, abs=1e-3)


def test_the_largest_contrast_fits_between_black_and_white():
    for grey in (60.0, 127.5, 200.0):
        trial = Protocol((16, 16), 30.0, grey=grey).render(Grating(0, 0.125, 3))
        assert trial.min() >= 0
        assert trial.max() <= 255
        assert min(trial.min(), 255 - trial.max()) < 2


@pytest.mark.parametrize("direction", [0, 45, 110, 200, 315])
def test_gratings_drift_where_they_should(direction):
    trial = PROTOCOL.render(Grating(direction, 0.08, 3)).numpy()
    assert onset_of(trial) == 3
    assert drift_direction(trial[3:]) == pytest.approx(direction, abs=3)


def test_movies_that_do_not_drift_one_way_have_no_direction():
    draw = np.random.default_rng(0)
    assert math.isnan(drift_direction(draw.normal(size=(6, 12, 20))))
    still = np.repeat(PROTOCOL.render(Grating(0, 0.1, 3))[5:6].numpy(), 5, 0)
    assert math.isnan(drift_direction(still))
    assert math.isnan(drift_direction(PROTOCOL.blank().numpy()))
    assert onset_of(PROTOCOL.blank().numpy()) == 0


def test_directions_of_recorded_movies_are_45_degrees_apart():
    session = Session(RECORDED)
    found = set()
    for trial in session.trials:
        video = session.video(trial)
        assert onset_of(video) == 16
        found.add(drift_direction(video[16:]))
    # Directions go anticlockwise in that experiment.
    nearest = {round(-each / 45) % 8 for each in found}
    assert len(nearest) == len({int(content) for content in session.contents if content >= 0})
    assert all(abs((each + 22.5) % 45 - 22.5) < 3 for each in found)


def test_whole_cycles_count():
    protocol = Protocol((8, 8), 30.0, lead=1.0, seconds=2.0, transient=0.5)
    assert protocol.frames == 90
    assert protocol.window(2.0) == slice(45, 90)  # 3 cycles of 15 frames
    assert protocol.window(1.0) == slice(60, 90)
    assert protocol.window(4.0) == slice(45, 90)  # 6 cycles of 7.5 frames
    assert protocol.window(1.5) == slice(50, 90)  # 2 cycles of 20 frames


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PROTOCOL.window(0.5), r"seconds 1 is below transient 0.2 plus one cycle of 0.5 Hz; give at least 2.2 s"),
        (lambda: PROTOCOL.window(11), "11 Hz cannot be shown at 30 frames a second; .* at most 10 Hz"),
        (lambda: Protocol((8, 8), 30.0, seconds=0.5, transient=0.5), "transient 0.5 must be below seconds 0.5"),
        (lambda: Protocol((8, 8), 30.0, grey=255), "grey 255 must be above 0 and below 255"),
        (lambda: Protocol((8, 8), 30.0, lead=-1), "lead -1 and transient"),
        (lambda: Grating(0, 0.6, 1), "0.6 must be above 0 and at most 0.5 cycles per pixel"),
        (lambda: Grating(0, 0.1, 1, contrast=1.5), "contrast 1.5 must be from 0 to 1"),
        (lambda: Stimuli(10, (0.1,), (1.0,), (), ()), "directions 10 must be a multiple of 4"),
        (lambda: Stimuli(8, (), (1.0,), (), ()), r"spatial_frequencies \[\] must be numbers above 0"),
        (lambda: Stimuli(8, (0.1,), (2.0, 1.0), (), ()), "must be in ascending order"),
        (lambda: Stimuli(8, (0.1,), (1.0,), (0.5, 1.2), ()), "must be above 0 and at most 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused(call, message):
    with pytest.raises(NeuralModelError, match=message):
        call()


def test_defaults_are_stimuli_that_every_screen_can_show():
    for size, rate in (((36, 64), 30.0), ((16, 20), 10.0), ((144, 256), 60.0)):
        stimuli = default_stimuli(size, rate)
        protocol = Protocol(size, rate)
        for frequency in stimuli.temporal_frequencies:
            assert protocol.window(frequency).start >= protocol.onset
        assert max(stimuli.spatial_frequencies) <= 0.5
        assert len(stimuli.degrees) == 12
    assert default_stimuli((36, 64), 30.0).temporal_frequencies == tuple(
        2 ** (step / 2) for step in range(7)
    )
    given = default_stimuli((36, 64), 30.0, sizes=[], contrasts=[0.3])
    assert (given.sizes, given.contrasts) == ((), (0.3,))


def test_rendering_is_float32_and_grey_is_exact():
    assert PROTOCOL.render(Grating(0, 0.1, 2, contrast=0)).equal(PROTOCOL.blank())
    assert PROTOCOL.blank().dtype == torch.float32
