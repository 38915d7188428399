"""A frozen encoder gets no gradient and stays in eval mode; the optimiser knows when it joins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.objectives.held_out_neurons import HeldOutNeurons
from ssl_vivit.objectives.neural_prediction import NeuralPrediction, NeuralPredictionConfig
from ssl_vivit.objectives.tuning import TunedNeuralPrediction, TuningConfig
from ssl_vivit.training.optim import parameter_groups


def facts(held_out: tuple[int, ...] = ()) -> SessionFacts:
    return SessionFacts(
        name="s", unit_ids=(10, 11, 12), frames_per_second=30.0, kind="spikes", frame_size=(8, 8),
        video_mean=0.4, video_std=0.2, behaviour_channels=(), behaviour_mean=(), behaviour_std=(),
        pupil_mean=None, pupil_std=None, mean_response=(0.2, 0.3, 0.1), coordinates=None,
        split={"train": (0,), "validation": (), "test": ()}, held_out_units=held_out,
    )  # fmt: skip


def model(adapter: nn.Module | None = None, **parts: Any) -> NeuralModel:
    torch.manual_seed(0)
    encoder = create_encoder(
        "vivit_neural_small", image_size=(8, 8), num_frames=8, embed_dim=8, num_heads=2,
        spatial_depth=1, temporal_depth=1, drop_path=0.5, mlp_dropout=0.5,
    )  # fmt: skip
    readouts = {"s": GaussianReadout(3, 8, sampling="mask")}
    return NeuralModel(encoder, adapter, None, readouts, stream_filters=4, **parts)


def batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    responses = torch.poisson(torch.full((2, 8, 3), 0.5), generator=generator)
    responses[:, :, 1] = float("nan")
    video = torch.randn(2, 1, 8, 8, 8, generator=generator)
    part = {"session": "s", "video": video, "behaviour": None, "pupil_centre": None,
            "responses": responses}  # fmt: skip
    return {"parts": [part]}


def gradients(objective: nn.Module) -> dict[str, Tensor]:
    objective.zero_grad()
    objective(batch()).loss.backward()
    return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}


def test_full_is_the_plain_objective() -> None:
    plain = NeuralPrediction(model(), facts=[facts()])
    tuned = TunedNeuralPrediction(model(), facts=[facts()])
    found = []
    for objective in (plain, tuned):
        torch.manual_seed(3)
        found.append(gradients(objective))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_frozen_encoder_is_without_noise_and_passes_gradients_to_the_adapter() -> None:
    found = []
    for recompute in (False, True):
        objective = TunedNeuralPrediction(
            model(StimulusAdapter("scale")), None, TuningConfig("frozen"), facts=[facts()]
        )
        objective.model.encoder.set_grad_checkpointing(recompute)
        objective.train()
        first, second = gradients(objective), gradients(objective)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert first.keys() == {n for n, p in objective.named_parameters() if p.requires_grad}
        assert first["model.session_readouts.0.features"].any()
        found.append(first["model.adapter.log_scale"])
    assert found[0] != 0
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_weights_of_blocks_learn_with_and_without_the_encoder(mode) -> None:
    objective = TunedNeuralPrediction(
        model(layers="all"), None, TuningConfig(mode), facts=[facts()]
    )
    objective.train()
    torch.manual_seed(3)
    found = gradients(objective)
    logits = objective.model.block_reader.logits
    assert logits.grad.any()
    # Shares add up to 1, so what one gains the others lose.
    torch.testing.assert_close(logits.grad.sum(), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert ("model.encoder.trunk.spatial_blocks.0.fused_in.weight" in found) == (mode == "full")
    (group,) = (
        group
        for group in parameter_groups(objective, 0.1, layer_decay=0.5)
        if any(parameter is logits for parameter in group["params"])
    )
    assert (group["weight_decay"], group["lr_scale"]) == (0.0, 1.0)
    torch.optim.SGD([group], lr=10.0).step()
    torch.testing.assert_close(logits[0], -logits[1])
    assert logits[0] != 0


def test_blocks_after_the_last_that_is_read_are_not_optimised() -> None:
    objective = NeuralPrediction(model(layers=0), facts=[facts()])
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    inside = {
        n for n, _ in objective.named_parameters() if n.startswith("model.encoder.trunk.temporal_")
    }
    assert inside
    assert inside <= frozen
    assert gradients(objective).keys() == dict(objective.named_parameters()).keys() - frozen


def test_an_encoder_of_which_another_block_is_read_is_not_compiled() -> None:
    assert NeuralPrediction(model(), facts=[facts()]).to_compile() is not None
    with pytest.raises(NeuralModelError, match=r"leave out --training.compile or --model.layers"):
        NeuralPrediction(model(layers=0), facts=[facts()]).to_compile()


def test_frozen_encoders_are_not_optimised_at_all() -> None:
    objective = TunedNeuralPrediction(model(), None, TuningConfig("frozen"), facts=[facts()])
    objective.train()
    assert not objective.encoder.training
    assert not any(name.startswith("model.encoder.") for name in gradients(objective))
    inside = {id(p) for p in objective.encoder.parameters()}
    groups = parameter_groups(objective, 0.1)
    assert not inside & {id(p) for group in groups for p in group["params"]}


def test_the_optimiser_knows_when_and_how_fast_the_encoder_learns() -> None:
    tuning = TuningConfig("readout_first", readout_steps=7, encoder_share=0.1)
    objective = TunedNeuralPrediction(model(), None, tuning, facts=[facts()])
    inside = {id(p) for p in objective.encoder.parameters()}
    for group in parameter_groups(objective, 0.1, layer_decay=0.5):
        within = {id(p) in inside for p in group["params"]}
        assert len(within) == 1
        assert group["first_step"] == (7 if within == {True} else 0)
        assert group["lr_scale"] <= 0.1 if within == {True} else group["lr_scale"] == 1.0


def test_weight_decay_leaves_positions_and_widths_alone() -> None:
    objective = TunedNeuralPrediction(model(StimulusAdapter("affine")), facts=[facts()])
    decayed = {
        id(p) for g in parameter_groups(objective, 0.1) if g["weight_decay"] for p in g["params"]
    }
    readout, adapter = objective.model.readouts["s"], objective.model.adapter
    assert not decayed & {id(p) for p in [*readout.parameters(), *adapter.parameters()]}
    assert decayed & {id(p) for p in objective.encoder.parameters()}
    assert decayed & {id(p) for p in objective.model.frame_stream.parameters()}


def test_only_what_belongs_to_held_out_neurons_moves() -> None:
    weights = {"feature_l1": 0.1}
    objective = HeldOutNeurons(
        model(), NeuralPredictionConfig(weights, spread_start=2.0, spread_passes=5),
        facts=[facts(held_out=(10, 12))],
    )  # fmt: skip
    before = {name: p.clone() for name, p in objective.named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in objective.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0
    )
    for _ in range(3):
        assert not objective.encoder.training
        optimizer.zero_grad()
        objective(batch()).loss.backward()  # of neuron 11, nothing is known
        optimizer.step()
    for name, parameter in objective.named_parameters():
        if name.startswith("model.session_readouts"):
            assert torch.equal(parameter[1], before[name][1]), name
            moved = not torch.equal(parameter[[0, 2]], before[name][[0, 2]])
            assert moved, name
        else:
            assert torch.equal(parameter, before[name]), name
    assert objective.model.readouts["s"].spread_scale == 1


def test_without_held_out_neurons_there_is_nothing_to_fit() -> None:
    with pytest.raises(ValueError, match="no neuron is held out"):
        HeldOutNeurons(model(), facts=[facts()])


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (TuningConfig("readout_first"), "between 1 and training.steps 10"),
        (TuningConfig("readout_first", readout_steps=10), "between 1 and training.steps 10"),
        (TuningConfig("full", readout_steps=3), "belongs to tuning.mode readout_first"),
        (TuningConfig(encoder_share=0.0), "tuning.encoder_share"),
        (TuningConfig(held_out_steps=0), "tuning.held_out_steps"),
    ],
)
def test_settings_that_leave_nothing_to_do_are_refused(tuning, message) -> None:
    with pytest.raises(ValueError, match=message):
        tuning.check(10)
