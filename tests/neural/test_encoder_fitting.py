"""Encoders made to take the video of sessions: which change, which are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssl_vivit import ViViTConfig, create_encoder
from ssl_vivit.data.session_files import SessionFacts
from ssl_vivit.neural.encoder_fitting import (
    NeuralEncoderChoice,
    fit_encoder,
    fitting_patch,
)
from ssl_vivit.neural.errors import NeuralModelError

SMALL = {"embed_dim": 16, "num_heads": 2, "spatial_depth": 1, "temporal_depth": 1}
FACTS = SessionFacts(
    name="s", unit_ids=(0, 1), frames_per_second=30.0, kind="spikes", frame_size=(12, 20),
    video_mean=0.4, video_std=0.2, behaviour_channels=(), behaviour_mean=(), behaviour_std=(),
    pupil_mean=None, pupil_std=None, mean_response=(0.2, 0.3), coordinates=None,
    split={"train": (0,), "validation": (), "test": ()},
)  # fmt: skip


def stored(folder, *, fps: float | None = None, **settings):
    torch.manual_seed(0)
    encoder = create_encoder(
        "vivit_tiny", **{"num_frames": 8, "image_size": (32, 48), **SMALL, **settings}
    )
    prepared = {"mean": [0.5], "std": [0.1]} | ({} if fps is None else {"fps": fps})
    encoder.save_pretrained(folder / "e", preprocessing=prepared)
    return str(folder / "e")


@pytest.mark.parametrize(
    ("size", "patch"),
    [((64, 96), (16, 16)), ((36, 64), (9, 16)), ((12, 20), (3, 4)), ((36, 60), (9, 10))],
)
def test_patches_divide_the_frame_and_come_close_to_the_stored_number_of_tokens(size, patch):
    assert fitting_patch(ViViTConfig(image_size=(64, 96)), size) == patch


def test_a_fresh_encoder_is_grey_causal_and_long_enough():
    choice = NeuralEncoderChoice(overrides={**SMALL, "temporal_positions": "learned"})
    encoder, rates, notes = fit_encoder(choice, [FACTS], longest=49)
    config = encoder.config
    assert (config.in_channels, config.image_size, config.num_frames) == (1, (12, 20), 52)
    assert config.temporal_causal
    assert rates == {"s": None}
    assert not notes
    assert encoder(torch.rand(1, 1, 48, 12, 20)).tokens.shape == (1, 12, 15, 16)


def test_an_exported_encoder_is_adapted_and_every_change_is_said(tmp_path):
    path = stored(tmp_path, temporal_positions="rotary", fps=15.0)
    choice = NeuralEncoderChoice(path, overrides={"drop_path": 0.2})
    encoder, rates, notes = fit_encoder(choice, [FACTS], longest=300)
    assert encoder.config.drop_path == 0.2
    assert encoder(torch.rand(1, 1, 8, 12, 20)).tokens.shape[0] == 1
    assert (rates["s"].recorded, rates["s"].encoder) == (30.0, 15.0)
    told = "\n".join(notes)
    assert "in_channels 3 → 1" in told
    assert "temporal_causal False → True" in told
    assert "30 frames per second are shown to the encoder at 15" in told
    unmatched = fit_encoder(replace(choice, match_fps=False), [FACTS], longest=300)
    assert unmatched.frame_rates == {"s": None}


def test_a_config_that_repeats_the_architecture_passes(tmp_path):
    path = stored(tmp_path, temporal_positions="rotary")
    repeated = {**SMALL, "temporal_positions": "rotary", "num_frames": 300}
    choice = NeuralEncoderChoice(path, "vivit_tiny", repeated)
    assert fit_encoder(choice, [FACTS], longest=300).encoder.config.embed_dim == 16


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("vivit_small", {}, r"encoder\.name vivit_small is another: .*num_heads 2 \(asked for: 6"),
        (None, {"embed_dim": 24}, r"encoder\.overrides is another: embed_dim 16 \(asked for: 24"),
        (None, {"embed_dims": 24}, "embed_dims"),
    ],
)
def test_another_architecture_is_refused(tmp_path, name, overrides, message):
    path = stored(tmp_path, temporal_positions="rotary")
    with pytest.raises(ValueError, match=message):
        fit_encoder(NeuralEncoderChoice(path, name, overrides), [FACTS], longest=8)


def test_learned_positions_are_not_stretched_in_time(tmp_path):
    path = stored(tmp_path)
    assert fit_encoder(NeuralEncoderChoice(path), [FACTS], longest=8)
    with pytest.raises(
        NeuralModelError, match="learned positions for 8 frames and would be shown 9"
    ):
        fit_encoder(NeuralEncoderChoice(path), [FACTS], longest=9)
    short = {**SMALL, "temporal_positions": "learned", "num_frames": 8}
    with pytest.raises(NeuralModelError, match="num_frames 8 is shorter than the longest trial, 9"):
        fit_encoder(NeuralEncoderChoice(overrides=short), [FACTS], longest=9)
