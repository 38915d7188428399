"""Adapting encoders to the video of sessions: changed settings and printed lines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssl_vivit import ViViTConfig, create_encoder, load_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders.adapt import resample_kernel
from ssl_vivit.encoders.positions import resample_temporal
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.block_reader import BlockReader
from ssl_vivit.neural.cores.encoder_fitting import (
    NeuralEncoderChoice,
    fit_encoder,
    fitting_patch,
    ignored_settings,
    pixel_statistics,
)
from ssl_vivit.neural.cores.vivit_core import ViViTCore

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
    prepared = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    prepared |= {} if fps is None else {"fps": fps}
    encoder.save_pretrained(folder / "e", preprocessing=prepared)
    return str(folder / "e")


@pytest.mark.parametrize(
    ("size", "patch"),
    [((64, 96), (16, 16)), ((36, 64), (10, 10)), ((128, 192), (32, 32)), ((37, 61), (10, 10)),
     ((9, 9), (4, 4))],
)  # fmt: skip
def test_tubelets_are_scaled_as_the_frame_is(size, patch):
    assert fitting_patch(ViViTConfig(image_size=(64, 96)), size) == patch


def test_a_fresh_encoder_is_grey_causal_and_has_positions_for_the_window():
    choice = NeuralEncoderChoice(overrides={**SMALL, "temporal_positions": "learned"})
    encoder, rates, notes = fit_encoder(choice, [FACTS], longest=49, window=18)
    config = encoder.config
    assert (config.in_channels, config.image_size, config.num_frames) == (1, (12, 20), 20)
    assert config.temporal_causal
    assert rates == {"s": None}
    assert "windows of 5 steps that overlap by 3" in notes[0]
    whole = fit_encoder(choice, [FACTS], longest=49)
    assert whole.encoder.config.num_frames == 52
    assert not whole.notes


def test_every_change_of_an_exported_encoder_is_reported_with_its_cost(tmp_path, caplog):
    path = stored(tmp_path, temporal_positions="rotary", fps=15.0)
    choice = NeuralEncoderChoice(path, overrides={"drop_path": 0.2})
    encoder, rates, notes = fit_encoder(choice, [FACTS], longest=300)
    assert encoder.config.drop_path == 0.2
    assert encoder.config.tubelet_size == (4, 6, 6)
    assert encoder(torch.rand(1, 1, 8, 12, 20)).tokens.shape == (1, 2, 2 * 4, 16)
    assert (rates["s"].recorded, rates["s"].encoder) == (30.0, 15.0)
    kept = resample_kernel(load_encoder(path).tubelets.weight.detach(), (4, 6, 6))[1]
    assert 0.05 < kept < 0.9
    for line in (
        "in_channels 3 → 1: exact for grey video",
        "image_size 32×48 → 12×20: 2×4 tokens per time step instead of 2×3",
        f"tubelet_size 4×16×16 → 4×6×6: the resampled kernel keeps {kept:.0%} of its energy",
        "border: the frame is padded with zeros to whole tubelets, by 0 pixels in height and 4 in "
        "width",
        "learned table of 2×3 is interpolated to 2×4",
        "temporal_causal False → True: attention over time was trained with later frames",
        "30 frames per second are shown to the encoder at 15",
    ):
        assert sum(line in note for note in notes) == 1, line
    assert "energy" not in caplog.text
    unmatched = fit_encoder(replace(choice, match_fps=False), [FACTS], longest=300)
    assert unmatched.frame_rates == {"s": None}
    assert "trained at 15 (encoder.match_fps false)" in unmatched.notes[-1]


def test_changed_sinusoids_over_all_tokens_are_reported(tmp_path):
    path = stored(
        tmp_path, variant="joint", depth=1, spatial_depth=None, temporal_depth=None,
        joint_positions="sinusoidal",
    )  # fmt: skip
    notes = fit_encoder(NeuralEncoderChoice(path), [FACTS], longest=300).notes
    assert sum("an index belongs to another location" in note for note in notes) == 1


def test_nothing_is_reported_for_an_encoder_that_fits(tmp_path):
    create_encoder(
        "vivit_neural_small", image_size=(12, 20), num_frames=8, **SMALL
    ).save_pretrained(tmp_path / "e")
    encoder, _, notes = fit_encoder(NeuralEncoderChoice(str(tmp_path / "e")), [FACTS], longest=300)
    assert notes == []
    again = load_encoder(tmp_path / "e")
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True)
    )


def test_the_directory_takes_the_place_of_the_fresh_encoder(tmp_path):
    path = stored(tmp_path, temporal_positions="rotary")
    fresh = {"embed_dim": 96, "tubelet_size": [12, 12, 12], "mlp_dropout": 0.1}
    choice = NeuralEncoderChoice(path, "vivit_neural_small", fresh)
    config = fit_encoder(choice, [FACTS], longest=8).encoder.config
    assert (config.embed_dim, config.tubelet_size, config.mlp_dropout) == (16, (4, 6, 6), 0.1)
    kept = "mlp_dropout 0.1 of encoder.overrides applies"
    assert ignored_settings(choice, NeuralEncoderChoice()) == [
        f"ignored, since --encoder {path} sets the architecture: encoder.name "
        "vivit_neural_small, encoder.overrides.embed_dim, encoder.overrides.tubelet_size; "
        f"{kept} (to change tubelets, set encoder.geometry)"
    ]
    # What the preset has, nobody gave.
    preset = NeuralEncoderChoice(name="vivit_neural_small", overrides=fresh | {"embed_dim": 48})
    assert ignored_settings(choice, preset) == [
        f"ignored, since --encoder {path} sets the architecture: encoder.overrides.embed_dim; "
        f"{kept} (to change tubelets, set encoder.geometry)"
    ]
    bare = NeuralEncoderChoice(path, preset.name, preset.overrides)
    assert ignored_settings(bare, preset) == [f"{kept} to --encoder {path}"]
    assert ignored_settings(NeuralEncoderChoice(path), preset) == []


def test_geometry_changes_an_exported_encoder(tmp_path):
    path = stored(tmp_path, temporal_positions="rotary")
    geometry = {"tubelet_size": [4, 8, 8], "tubelet_stride": [1, 4, 4]}
    config = fit_encoder(
        NeuralEncoderChoice(path, geometry=geometry), [FACTS], longest=8
    ).encoder.config
    assert (config.tubelet_size, config.tubelet_stride) == ((4, 8, 8), (1, 4, 4))
    assert (config.temporal_padding, config.grid.t) == ("causal", 8)
    older = NeuralEncoderChoice(path, overrides=geometry)
    assert fit_encoder(older, [FACTS], longest=8).encoder.config == config


def test_fresh_weights_take_only_the_architecture_from_the_directory(tmp_path):
    path = stored(tmp_path, temporal_positions="rotary", fps=15.0)
    choice = NeuralEncoderChoice(path)
    pretrained = fit_encoder(choice, [FACTS], longest=8)
    fresh = fit_encoder(replace(choice, weights="fresh"), [FACTS], longest=8)
    assert fresh.encoder.config == pretrained.encoder.config
    assert fresh.frame_rates == pretrained.frame_rates
    assert "with random weights" in fresh.notes[0]
    weights = [dict(fitted.encoder.named_parameters()) for fitted in (fresh, pretrained)]
    matrices = [name for name, value in weights[0].items() if value.ndim > 1]
    assert all((weights[0][name] - weights[1][name]).abs().mean() > 1e-3 for name in matrices)
    with pytest.raises(NeuralModelError, match=r"encoder\.weights fresh .* give --encoder DIR"):
        fit_encoder(NeuralEncoderChoice(weights="fresh"), [FACTS], longest=8)


def test_pixel_statistics_are_the_grey_ones_of_the_pretraining(tmp_path):
    assert pixel_statistics(stored(tmp_path)) == pytest.approx((0.5, 0.2))
    create_encoder("vivit_tiny", num_frames=4, image_size=(16, 16), **SMALL).save_pretrained(
        tmp_path / "bare"
    )
    assert pixel_statistics(str(tmp_path / "bare")) is None
    with pytest.raises(NeuralModelError, match="nowhere"):
        pixel_statistics(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"geometry": {"image_size": [16, 16]}}, r"encoder\.geometry has image_size .* 12×20"),
        ({"geometry": {"temporal_causal": False}}, "the model must be causal"),
        ({"geometry": {"tubelet_sizes": [4, 4, 4]}}, "did you mean 'tubelet_size'"),
        ({"geometry": {"embed_dim": 24}}, r"encoder\.geometry 'embed_dim' is unknown"),
    ],
)
def test_geometry_that_cannot_be_is_refused(tmp_path, choice, message):
    path = stored(tmp_path, temporal_positions="rotary")
    with pytest.raises(ValueError, match=message):
        fit_encoder(NeuralEncoderChoice(path, **choice), [FACTS], longest=8)


@pytest.mark.parametrize("positions", ["temporal", "joint"])
@pytest.mark.parametrize(("window", "steps"), [(8, 2), (24, 6), (27, 6), (4, 1)])
def test_a_learned_table_in_time_becomes_that_of_the_training_window(
    tmp_path, positions, window, steps
):
    settings = {} if positions == "temporal" else {
        "variant": "joint", "depth": 2, "joint_positions": "learned", "spatial_depth": None,
        "temporal_depth": None, "image_size": (12, 20), "tubelet_size": (4, 4, 4),
    }  # fmt: skip
    path = stored(tmp_path, num_frames=16, **settings)
    encoder, _, notes = fit_encoder(NeuralEncoderChoice(path), [FACTS], longest=300, window=window)
    assert encoder.config.grid.t == steps
    table = load_encoder(path).positions.get_parameter(positions).detach()
    found = encoder.positions.get_parameter(positions).detach()
    if positions == "joint":
        assert torch.equal(found[0], table[0])
        table, found = (t[1:].unflatten(0, (-1, 15)).flatten(1) for t in (table, found))
    expected = table[:steps] if steps <= 4 else resample_temporal(table, steps)
    torch.testing.assert_close(found, expected)
    told = "\n".join(notes)
    assert f"of 4 time steps is {'cropped' if steps < 4 else 'resampled'} to the {steps}" in told
    assert f"windows of {steps} steps that overlap by {steps - max(steps // 2, 1)}" in told


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("blocks", [None, [0], [0, 1]])
def test_each_token_of_a_long_trial_is_of_the_window_with_the_longest_past(
    length, overlapping, blocks
):
    stride = 2
    torch.manual_seed(0)
    encoder = create_encoder(
        "vivit_tiny", in_channels=1, num_frames=length * stride, image_size=(8, 12),
        tubelet_size=(4, 4, 4) if overlapping else (2, 4, 4), tubelet_stride=(2, 4, 4),
        temporal_padding="causal", temporal_causal=True, **SMALL,
    ).double()  # fmt: skip
    reader = None if blocks is None else BlockReader(blocks).double()
    core, video = ViViTCore(encoder, reader), torch.randn(2, 1, 21, 8, 12, dtype=torch.float64)
    found = core.dense(video)
    assert found.shape[2] == 10
    hop = max(length // 2, 1)
    for step in range(10):
        # The earliest start, a multiple of the hop, whose window still holds the step.
        start = next(s for s in range(0, 10, hop) if s <= step < s + length)
        window = video[:, :, start * stride : (start + length) * stride]
        missing = length * stride - window.shape[2]
        window = torch.nn.functional.pad(window, (0, 0, 0, 0, 0, missing))
        map = encoder(window).map if reader is None else reader(encoder, window)
        expected = map[:, :, step - start]
        torch.testing.assert_close(found[:, :, step], expected, rtol=0, atol=1e-12)
    # A trial that ends earlier has the start of these tokens.
    for frames in range(2, 21, 3):
        start = core.dense(video[:, :, :frames])
        torch.testing.assert_close(start, found[:, :, : frames // 2], rtol=0, atol=1e-12)


def test_tokens_of_a_long_trial_have_no_gradient_to_later_frames():
    encoder = create_encoder(
        "vivit_tiny", in_channels=1, num_frames=8, image_size=(8, 12), tubelet_size=(2, 4, 4),
        temporal_causal=True, **SMALL,
    )  # fmt: skip
    video = torch.randn(1, 1, 30, 8, 12, requires_grad=True)
    tokens = ViViTCore(encoder).dense(video)
    for step in range(15):
        (seen,) = torch.autograd.grad(tokens[:, :, step].square().sum(), video, retain_graph=True)
        by_frame = seen.abs().amax((0, 1, 3, 4))
        assert by_frame[2 * step : 2 * step + 2].min() > 0
        assert not by_frame[2 * step + 2 :].any()
