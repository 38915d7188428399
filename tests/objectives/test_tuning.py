"""Tuning modes: a frozen encoder has no gradient and stays in eval mode, and joins later if asked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU
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


def model(
    adapter: nn.Module | None = None, layers: int | str | None = None, **settings: object
) -> NeuralModel:
    torch.manual_seed(0)
    encoder = create_encoder(
        "vivit_neural_small", image_size=(8, 8), num_frames=8, embed_dim=8, num_heads=2,
        **{"spatial_depth": 1, "temporal_depth": 1, "drop_path": 0.5, "mlp_dropout": 0.5} | settings,
    )  # fmt: skip
    readouts = {"s": GaussianReadout(3, 8, sampling="mask")}
    return NeuralModel(encoder, adapter, None, readouts, stream_filters=4, layers=layers)


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
    with pytest.raises(NeuralModelError, match=r"remove --training.compile or --model.layers"):
        NeuralPrediction(model(layers=0), facts=[facts()]).to_compile()


def test_frozen_encoders_are_not_optimised_at_all() -> None:
    objective = TunedNeuralPrediction(model(), None, TuningConfig("frozen"), facts=[facts()])
    objective.train()
    assert not objective.encoder.training
    assert not any(name.startswith("model.encoder.") for name in gradients(objective))
    inside = {id(p) for p in objective.encoder.parameters()}
    groups = parameter_groups(objective, 0.1)
    assert not inside & {id(p) for group in groups for p in group["params"]}


def test_with_a_frozen_fitted_core_only_readouts_learn() -> None:
    torch.manual_seed(4)
    whole = model(StimulusAdapter("affine"))
    whole.modulator = ConvGRU(8, 0, 4, hidden=4)
    objective = TunedNeuralPrediction(
        whole, None, TuningConfig("frozen"), facts=[facts()], fitted_core=True
    )
    core = [part for name, part in whole.named_children() if name != "session_readouts"]
    assert len(core) == 4
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(objective, 0.1), lr=0.1)
    objective.train()
    first = gradients(objective)
    # Without dropout of the core and drawn positions, nothing is random.
    assert all(torch.equal(first[name], value) for name, value in gradients(objective).items())
    optimizer.step()
    for name, parameter in objective.named_parameters():
        if name.startswith("model.session_readouts."):
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name
    assert not torch.equal(
        whole.readouts["s"].features, before["model.session_readouts.0.features"]
    )
    assert not any(module.training for part in core for module in part.modules())
    assert all(module.training for module in whole.session_readouts.modules())


def test_features_of_what_is_frozen_are_cached_but_behind_an_adapter_that_learns() -> None:
    frozen = TuningConfig("frozen", feature_cache=1.0)
    late = TuningConfig("readout_first", readout_steps=7, feature_cache=1.0)
    for tuning, adapted, fitted, cached in (
        (frozen, False, False, True),
        (frozen, True, True, True),
        (frozen, True, False, False),
        (late, False, True, False),
        (TuningConfig("frozen"), False, True, False),
    ):
        whole = model(StimulusAdapter("scale") if adapted else None, layers="all")
        objective = TunedNeuralPrediction(whole, None, tuning, facts=[facts()], fitted_core=fitted)
        plain = TunedNeuralPrediction(
            copy.deepcopy(whole), None, tuning, facts=[facts()], fitted_core=fitted
        )
        plain.model.cache = None
        assert (whole.cache is not None) == cached
        encoded = []
        whole.encoder.tubelets.register_forward_hook(lambda *args, seen=encoded: seen.append(1))
        for _ in range(2):
            found = []
            for each in (objective, plain):
                torch.manual_seed(2)
                found.append(gradients(each))
            assert found[0].keys() == found[1].keys()
            for name, gradient in found[0].items():
                torch.testing.assert_close(gradient, found[1][name])
        objective.eval()
        with torch.no_grad():
            objective.rates(batch()["parts"])
        assert len(encoded) == (1 if cached else 3)


def test_a_fitted_core_joins_and_learns_as_one() -> None:
    tuning = TuningConfig("readout_first", readout_steps=7, encoder_share=0.1)
    for fitted in (True, False):
        objective = TunedNeuralPrediction(
            model(StimulusAdapter("scale")), None, tuning, facts=[facts()], fitted_core=fitted
        )
        prefixes = {name.split(".")[1] for name in objective.first_steps()}
        own = {"adapter", "frame_stream"} if fitted else set()
        assert prefixes == {"encoder"} | own
        assert objective.first_steps().keys() == objective.learning_rate_shares().keys()
        groups = parameter_groups(objective, 0.1)
        late = {id(p) for g in groups if g["first_step"] == 7 for p in g["params"]}
        joining = {
            id(p)
            for name, p in objective.named_parameters()
            if p.requires_grad and name in objective.first_steps()
        }
        assert late == joining


# Learned positions, a class token and registers, so that there is something of every kind.
DEEPER = {
    "spatial_depth": 2, "temporal_depth": 2, "temporal_positions": "learned",
    "spatial_positions": "learned", "class_token": True, "register_tokens": 1,
}  # fmt: skip
IN_ORDER = [
    ("tubelets.", "positions.spatial", "trunk.class_token", "trunk.spatial_registers"),
    ("trunk.spatial_blocks.0.",), ("trunk.spatial_blocks.1.",),
    ("trunk.spatial_norm.", "positions.temporal", "trunk.temporal_registers"),
    ("trunk.temporal_blocks.0.",), ("trunk.temporal_blocks.1.",), ("trunk.temporal_norm.",),
]  # fmt: skip
# Last blocks → the first part of that order which is trained.
FIRST_TRAINED = {1: 5, 2: 4, 3: 2, 4: 1}


@pytest.mark.parametrize("count", FIRST_TRAINED)
def test_what_comes_before_the_last_blocks_stays_to_the_bit(count) -> None:
    tuning = TuningConfig("last_blocks", last_blocks=count)
    objective = TunedNeuralPrediction(model(**DEEPER), None, tuning, facts=[facts()])
    before = {name: p.detach().clone() for name, p in objective.encoder.named_parameters()}
    groups = parameter_groups(objective, 0.1)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for _ in range(2):
        gradients(objective)
        optimizer.step()
    still = tuple(name for part in IN_ORDER[: FIRST_TRAINED[count]] for name in part)
    moves = tuple(name for part in IN_ORDER[FIRST_TRAINED[count] :] for name in part)
    assert all(name.startswith(still + moves) for name in before)
    for name, parameter in objective.encoder.named_parameters():
        if name.startswith(still):
            assert parameter.grad is None, name
            assert torch.equal(parameter, before[name]), name
        else:
            assert not torch.equal(parameter, before[name]), name
    for module in objective.encoder.modules():
        own = [*module.parameters()]
        if own:
            assert module.training == any(p.requires_grad for p in own)
    # Dropout and the like have no parameters; they are of their block.
    blocks = [*objective.encoder.trunk.spatial_blocks, *objective.encoder.trunk.temporal_blocks]
    for number, block in enumerate(blocks):
        assert {module.training for module in block.modules()} == {number >= 4 - count}
    assert objective.model.frame_stream.training
    # Factors on the learning rate are those of all blocks.
    full = TunedNeuralPrediction(model(**DEEPER), None, TuningConfig(), facts=[facts()])
    assert objective.learning_rate_shares() == full.learning_rate_shares()


def test_all_blocks_are_full_tuning_but_for_the_embedding() -> None:
    found = []
    for tuning in (TuningConfig(), TuningConfig("last_blocks", last_blocks=4)):
        objective = TunedNeuralPrediction(model(**DEEPER), None, tuning, facts=[facts()])
        torch.manual_seed(3)
        found.append(gradients(objective))
    full, last = found
    embedding = tuple(f"model.encoder.{name}" for name in IN_ORDER[0])
    assert {name for name in full if not name.startswith(embedding)} == last.keys()
    assert any(name.startswith(embedding) for name in full)
    assert all(torch.equal(full[name], last[name]) for name in last)


def test_blocks_that_nothing_reads_are_not_counted() -> None:
    read = model(**DEEPER)
    read.encoder.trunk.temporal_blocks[1].requires_grad_(False)
    tuning = TuningConfig("last_blocks", last_blocks=1)
    objective = TunedNeuralPrediction(read, None, tuning, facts=[facts()])
    first, last = objective.encoder.trunk.temporal_blocks
    assert all(p.requires_grad for p in first.parameters())
    assert not any(p.requires_grad for p in last.parameters())
    assert not any(p.requires_grad for p in objective.encoder.trunk.spatial_blocks.parameters())


def test_blocks_that_there_are_not_are_refused() -> None:
    tuning = TuningConfig("last_blocks", last_blocks=5)
    with pytest.raises(NeuralModelError, match="last_blocks is 5, but the encoder has 4 blocks"):
        TunedNeuralPrediction(model(**DEEPER), None, tuning, facts=[facts()])
    core = CausalResNet(CausalResNetConfig(widths=(4,), depths=(1,), strides=(1,)))
    other = NeuralModel(core, readouts={"s": GaussianReadout(3, 4)})
    with pytest.raises(NeuralModelError, match="the core is a CausalResNet"):
        TunedNeuralPrediction(other, None, tuning, facts=[facts()])


def test_optimiser_groups_have_first_step_and_share_of_the_encoder() -> None:
    tuning = TuningConfig("readout_first", readout_steps=7, encoder_share=0.1)
    objective = TunedNeuralPrediction(model(), None, tuning, facts=[facts()])
    inside = {id(p) for p in objective.encoder.parameters()}
    for group in parameter_groups(objective, 0.1, layer_decay=0.5):
        within = {id(p) in inside for p in group["params"]}
        assert len(within) == 1
        assert group["first_step"] == (7 if within == {True} else 0)
        assert group["lr_scale"] <= 0.1 if within == {True} else group["lr_scale"] == 1.0


def test_weight_decay_does_not_apply_to_positions_and_widths() -> None:
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
        (TuningConfig("readout_first"), "at least 1 and below training.steps 10"),
        (TuningConfig("readout_first", readout_steps=10), "at least 1 and below training.steps 10"),
        (TuningConfig("full", readout_steps=3), "needs tuning.mode readout_first"),
        (TuningConfig(encoder_share=0.0), "tuning.encoder_share"),
        (TuningConfig(held_out_steps=0), "tuning.held_out_steps"),
        (TuningConfig("last_blocks"), "give --tuning.last_blocks N"),
        (TuningConfig("full", last_blocks=2), "last_blocks 2 needs tuning.mode last_blocks"),
        (TuningConfig("last_blocks", last_blocks=0), "--tuning.last_blocks is 0"),
        (TuningConfig(patience=0), "--tuning.patience is 0"),
    ],
)
def test_settings_that_leave_nothing_to_do_are_refused(tuning, message) -> None:
    with pytest.raises(ValueError, match=message):
        tuning.check(10)
