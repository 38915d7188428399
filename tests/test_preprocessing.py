"""Preprocessing of frames equals the training pipeline without augmentation; also as a mapping."""

import json
import math

import numpy as np
import pytest
import torch

from ssl_vivit import create_encoder
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.preprocessing import Preprocessing

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.mark.parametrize("size", [(16, 24), (40, 20), (64, 96), (33, 47)])
@pytest.mark.parametrize("channels", [3, 1])
def test_video_equals_that_of_training_without_augmentation(size, channels):
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 48, 64, 3), dtype=np.uint8)
    mean, std = MEAN[:channels], STD[:channels]
    augment = Augment(AugmentConfig(strength="none"), size, channels, mean, std)
    drawn = augment.draw(np.random.default_rng(0), 48, 64)
    stacked = {name: torch.stack([value, value]) for name, value in drawn.items()}
    expected = augment(torch.from_numpy(frames), stacked)
    prepared = Preprocessing(
        channels="rgb" if channels == 3 else "luma", mean=mean, std=std, resize=size
    )
    video = prepared(frames)
    assert video.shape == (2, channels, 5, *size)
    torch.testing.assert_close(video, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(prepared(torch.from_numpy(frames[0])), video[0], rtol=0, atol=0)


def test_pixel_range_is_that_of_mean_and_std():
    frames = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    unit = Preprocessing(mean=(0.4,), std=(0.2,))
    bytes_ = Preprocessing(pixel_range=(0, 255), mean=(102,), std=(51,))
    torch.testing.assert_close(unit(frames), bytes_(frames))
    assert bytes_.statistics(3) == ([0.4] * 3, [0.2] * 3)


def test_preprocessing_is_a_mapping_and_survives_json():
    known = {"mean": [0.5], "std": [0.2], "fps": 25.0, "frame_stride": 2}
    prepared = Preprocessing.of(known)
    assert prepared == known
    assert prepared["mean"] == [0.5]
    assert "resize" not in prepared
    assert prepared | {"resize": (8, 8)} == known | {"resize": [8, 8]}
    assert Preprocessing.of(json.loads(json.dumps(dict(prepared)))) == prepared
    encoder = create_encoder("tiny")
    encoder.preprocessing = known
    assert encoder.preprocessing.frame_stride == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"means": [0.5]}, "preprocessing has no setting 'means'; did you mean mean"),
        ({"mean": [0.5, 0.5], "std": [0.2, 0.2]}, "2 means and 2 stds for 3 channels"),
        ({"mean": [0.5]}, "does not say how pixels are normalised"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.of(settings)(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))


def test_frames_of_another_kind_are_refused():
    prepared = Preprocessing(mean=(0.5,), std=(0.2,))
    with pytest.raises(ValueError, match="give uint8 RGB frames"):
        prepared(torch.zeros(2, 8, 8, 3))
    with pytest.raises(ValueError, match="give uint8 RGB frames"):
        prepared(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    "settings",
    [{"mean": [0.5, math.nan]}, {"mean": 10**400}, {"std": math.inf}, {"std": [0.2, 0.0]}, {"fps": math.nan},
     {"fps": 0}, {"pixel_range": (0, math.inf)}, {"pixel_range": (1, 1)}, {"resize": [8, math.inf]}],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"preprocessing {name} "):
        Preprocessing.of(settings)
