"""Every pretraining preset leads to a model of neurons, with and without every neural preset."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from recipes.finetune_neural import NeuralRecipe, fine_tune
from recipes.mae_clevrer import MaskedTubeletsRecipe
from recipes.simclr_clevrer import SimCLRRecipe
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.encoders import ViViT
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.objectives import MaskedTubelets, SimCLR
from ssl_vivit.training import parse

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
PRETRAINING = sorted([*CONFIGS.glob("simclr_*.yaml"), *CONFIGS.glob("mae_*.yaml")])
NEURAL = [None, *sorted(CONFIGS.glob("neural_*.yaml"))]
RECORDED = ROOT / "tests" / "assets" / "mouse_v1_gratings" / "session_fov4_cut"
# Width and depth alone are shrunk, so that geometry, positions and variants are the presets' own.
SHRUNK = {"embed_dim": 16, "num_heads": 2}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> dict[str, str]:
    """Return a simulated session whose size, frame rate and length no preset has, and a recorded session."""
    folder = tmp_path_factory.mktemp("sessions")
    config = SimulationConfig(
        neurons=3, train_trials=2, held_out_movies=1, repeats=1, seconds=2.4, size=(27, 45),
        frames_per_second=25.0, stimuli="textures", mean_rate=(8.0, 12.0),
    )  # fmt: skip
    simulated = simulate(folder / "simulated", config, progress=False)
    recorded = shutil.copytree(RECORDED, folder / "recorded")
    return {"simulated": str(simulated), "recorded": str(recorded)}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    """Return the exported encoder of each pretraining preset, written by the preset's objective."""
    folder = tmp_path_factory.mktemp("encoders")
    return {preset.stem: exported(preset, folder / preset.stem) for preset in PRETRAINING}


def exported(preset: Path, directory: Path, **changes) -> Path:
    """Export a smaller version of a preset's encoder, with some settings changed."""
    recipe = SimCLRRecipe if preset.stem.startswith("simclr") else MaskedTubeletsRecipe
    config = parse(recipe, ["--config", str(preset)])
    settings = config.encoder.overrides | changes
    depth = (
        {"depth": 2}
        if settings.get("variant", "factorized_encoder") != "factorized_encoder"
        else {"spatial_depth": 1, "temporal_depth": 1}
    )
    torch.manual_seed(0)
    encoder = ViViT(replace(config.encoder, overrides=settings | SHRUNK | depth).config())
    channels = encoder.config.in_channels
    clip = config.data.clip
    prepared = {
        "pixel_range": [0.0, 1.0], "mean": [0.45] * channels, "std": [0.1] * channels,
        "fps": clip.fps or 25.0, "frame_stride": clip.frame_stride,
        "resize": list(encoder.config.image_size),
    }  # fmt: skip
    if recipe is SimCLRRecipe:
        objective = SimCLR(encoder, config.objective, preprocessing=prepared)
    else:
        small = replace(config.objective, decoder_dim=16, decoder_depth=1)
        objective = MaskedTubelets(encoder, small, preprocessing=prepared)
    objective.export(directory, training={})
    return directory


def neural_config(preset: Path | None, encoder: Path, session: str, run_dir: Path) -> NeuralRecipe:
    """Return a preset with a short run; None takes the defaults of the recipe."""
    told = [] if preset is None else ["--config", str(preset)]
    config = parse(NeuralRecipe, [*told, "--encoder.path", str(encoder)])
    modulator = replace(config.model.modulator, hidden=4)
    return replace(
        config,
        data=replace(config.data, sessions=session, window=min(config.data.window, 24),
                     drop_first=0, validation_share=0.0),
        model=replace(config.model, modulator=modulator, stream_filters=2),
        tuning=replace(config.tuning, readout_steps=0),
        training=replace(config.training, run_dir=str(run_dir), steps=1, total_batch_size=1,
                         tracker="none", precision="fp32", optimizer=replace(config.training.optimizer, warmup_steps=0)),
        evaluation=replace(config.evaluation, fields=0, keep_best=False, every=100),
    )  # fmt: skip


def cases() -> list[tuple[Path, Path | None, str]]:
    return list(itertools.product(PRETRAINING, NEURAL, ("simulated", "recorded")))


def quick() -> list[tuple[Path, Path | None, str]]:
    """Return each pretraining preset, and each neural preset, with both sessions."""
    chosen = []
    for place, pretraining in enumerate(PRETRAINING):
        for shift, session in enumerate(("simulated", "recorded")):
            chosen.append((pretraining, NEURAL[(place + shift) % len(NEURAL)], session))
    return chosen


def named(value) -> str:
    return value.stem if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("pretraining", "preset", "session"), quick(), ids=named)
def test_an_encoder_becomes_a_model_of_neurons(
    pretraining, preset, session, sessions, encoders, tmp_path
):
    assert_goes_the_road(encoders[pretraining.stem], preset, sessions[session], tmp_path)


@pytest.mark.parametrize("preset", PRETRAINING, ids=named)
def test_positions_in_time_of_pretraining_presets_allow_any_length(preset):
    recipe = SimCLRRecipe if preset.stem.startswith("simclr") else MaskedTubeletsRecipe
    config = parse(recipe, ["--config", str(preset)]).encoder.config()
    assert "learned" not in (config.temporal_positions, config.joint_positions)
    assert {config.temporal_positions, config.joint_positions} & {"rotary", "sinusoidal"}


@pytest.mark.parametrize("session", ["simulated", "recorded"])
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("simclr_vivit_sample", {"temporal_positions": "learned"}),
        ("mae_vivit_small_joint", {"joint_positions": "learned"}),
    ],
)
def test_an_encoder_with_a_learned_table_becomes_a_model_of_bounded_context(
    preset, changes, session, sessions, tmp_path, capsys
):
    encoder = exported(CONFIGS / f"{preset}.yaml", tmp_path / "encoder", **changes)
    assert_goes_the_road(encoder, None, sessions[session], tmp_path)
    assert (
        "each frame is read from the window that contains most frames before it"
        in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pretraining", "preset", "session"),
    [case for case in cases() if case not in quick()],
    ids=named,
)
def test_every_other_pair_of_presets_does_so(
    pretraining, preset, session, sessions, encoders, tmp_path
):
    assert_goes_the_road(encoders[pretraining.stem], preset, sessions[session], tmp_path)


def assert_goes_the_road(encoder: Path, preset: Path | None, path: str, folder: Path) -> None:
    """Fine-tune; then check scores, causality, and predictions of the loaded model."""
    config = neural_config(preset, encoder, path, folder / "run")
    table = fine_tune(config, PartialState())
    assert table is not None
    assert "--encoder.weights fresh" in table
    tiers = yaml.safe_load((folder / "run" / "scores.json").read_text())["tiers"]
    assert tiers
    for tier in tiers.values():
        assert tier["scores"]
        assert all(np.isfinite(value) for value in tier["scores"].values())

    predictor, session = load_neural_model(folder / "run"), Session(path)
    trial = int(session.tiers["train"][0])
    video = session.video(trial)[None].astype(np.float32)
    behaviour = session.behaviour(trial)[None]
    whole = predictor.predict(video, behaviour)
    frames = video.shape[1]
    assert whole.shape == (1, frames, len(session.unit_ids))
    assert torch.isfinite(whole).all()
    # A trial that ends earlier has the same rates up to there.
    start = predictor.predict(video[:, : frames - 7], behaviour[:, : frames - 7])
    torch.testing.assert_close(start, whole[:, : frames - 7], rtol=1e-4, atol=1e-6)
    is_causal(predictor.model, frames, session.frame_size)


def is_causal(model, frames: int, size: tuple[int, int]) -> None:
    """Return whether gradients to later frames are exactly zero, and those to the frame itself are not."""
    model = model.eval()
    video = torch.randn(1, 1, frames, *size, requires_grad=True)
    rates = model(video)
    for t in (0, 5, frames // 2, frames - 2):
        (seen,) = torch.autograd.grad(rates[:, t].sum(), video, retain_graph=True)
        by_frame = seen.abs().amax((0, 1, 3, 4))
        assert not by_frame[t + 1 :].any()
        if model.frame_stream is not None:
            assert by_frame[t] > 0
