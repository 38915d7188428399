"""The Poisson objective, compared with a slow loop: sessions, processes, unknown responses."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_on_ranks
import torch
from safetensors.torch import load_file
from torch import nn

from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.linear import LinearNonlinearConfig
from ssl_vivit.objectives import NeuralPrediction, NeuralPredictionConfig
from ssl_vivit.objectives.neural_prediction import predict_parts

NEURONS = {"a.1": 3, "b": 5}


def facts(neurons=NEURONS):
    means = {"a.1": (0.5, 1.0, 0.0), "b": (0.2, 0.4, 0.6, 0.8, 1.0)}
    return [
        SessionFacts(
            name=name,
            unit_ids=tuple(range(count)),
            frames_per_second=30.0,
            kind="spikes",
            frame_size=(4, 6),
            video_mean=0.5,
            video_std=0.2,
            behaviour_channels=(0, 1),
            behaviour_mean=(0.0, 0.0),
            behaviour_std=(1.0, 1.0),
            pupil_mean=None,
            pupil_std=None,
            mean_response=means[name],
            coordinates=None,
            split={"train": (0, 1)},
        )
        for name, count in neurons.items()
    ]


def model(neurons=NEURONS, behaviour=2, **settings):
    torch.manual_seed(0)
    config = LinearNonlinearConfig(**{"filters": "full", "lags": 3, "pool": 2, **settings})
    built = linear_nonlinear(neurons, (4, 6), behaviour_channels=behaviour, config=config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return built.double()


def part(session, count=2, frames=6, seed=0, unknown=0.2):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, frames, NEURONS[session])
    responses = torch.poisson(torch.rand(shape, generator=generator) * 2, generator).double()
    responses[torch.rand(shape, generator=generator) < unknown] = math.nan
    random = torch.randn(count, 1, frames, 4, 6, generator=generator, dtype=torch.float64)
    behaviour = torch.randn(count, frames, 2, generator=generator, dtype=torch.float64)
    return {
        "session": session,
        "video": random,
        "behaviour": behaviour,
        "pupil_centre": None,
        "responses": responses,
    }


def of_rank(rank):
    if rank == 0:
        return [part("a.1", seed=1)]
    return [part("b", count=3, seed=2, unknown=0.6), part("b", frames=4, seed=3)]


def batch(*parts):
    return {"parts": list(parts), "key": ["x"]}


def slow_poisson(model, parts, eps=1e-12):
    """Compute the loss term by term."""
    terms = []
    for given in parts:
        rates = model(given["video"], given["behaviour"], given["session"])
        for rate, count in zip(rates.flatten(), given["responses"].flatten(), strict=True):
            if not math.isnan(count):
                terms.append(rate - count * torch.log(rate + eps))
    return torch.stack(terms).mean()


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def test_loss_and_gradients_are_those_of_a_slow_loop_over_what_is_known():
    parts = [part("a.1", seed=1), part("b", count=3, seed=2), part("b", frames=4, seed=3)]
    ours = NeuralPrediction(model(), facts=facts())
    step = ours(batch(*parts))
    step.loss.backward()
    reference = model()
    expected = slow_poisson(reference, parts)
    expected.backward()
    assert step.loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(ours.model)[name], gradient, rtol=0, atol=1e-9)


def test_values_at_unknown_responses_have_no_effect():
    given = part("b")
    given["responses"][:, 4:] = math.nan
    shorter = {
        **given,
        "video": given["video"][:, :, :4],
        "behaviour": given["behaviour"][:, :4],
        "responses": given["responses"][:, :4],
    }
    ours = NeuralPrediction(model(), facts=facts())
    long, short = ours(batch(given)), ours(batch(shorter))
    assert long.loss.item() == pytest.approx(short.loss.item(), abs=1e-12)
    assert long.metrics["bps"].item() == pytest.approx(short.metrics["bps"].item(), abs=1e-12)


def test_a_batch_without_any_known_response_has_no_loss():
    given = part("b")
    given["responses"].fill_(math.nan)
    ours = NeuralPrediction(model(), facts=facts())
    step = ours(batch(given))
    step.loss.backward()
    assert step.loss == 0
    assert step.metrics["bps"] == 0
    assert all(not gradient.any() for gradient in gradients(ours).values())


def test_one_call_of_the_core_serves_all_parts_of_one_size():
    """The result equals one call per part, and the number of calls is the number of sizes."""
    parts = [part("a.1", seed=1), part("b", seed=2), part("a.1", frames=4, seed=3)]
    ours = NeuralPrediction(model(), facts=facts()).eval()
    calls = []
    dense = ours.model.encoder.dense
    ours.model.encoder.dense = lambda video: calls.append(len(video)) or dense(video)
    together = ours(batch(*parts)).loss
    assert calls == [4, 2]
    assert together.item() == pytest.approx(slow_poisson(ours.model, parts).item(), abs=1e-9)


def test_a_movie_that_several_clips_show_is_encoded_once(monkeypatch):
    built = model()
    parts = [part("a.1", count=4), part("b", count=3)]
    for shown, places in zip(parts, ([0, 0, 2, 0], [0, 1, 1]), strict=True):
        shown["video"] = shown["video"][places]
    sizes = []
    encode = built.encoder.dense
    monkeypatch.setattr(
        built.encoder, "dense", lambda video: (sizes.append(len(video)), encode(video))[1]
    )
    gradients = []
    for shows in (None, ([0, 0, 2, 0], [0, 1, 1])):
        for index, each in enumerate(parts):
            each["shows"] = None if shows is None else shows[index]
        rates = predict_parts(built, parts)
        sum(r.square().sum() for r in rates).backward()
        gradients.append([*rates, *(p.grad.clone() for p in built.parameters())])
        built.zero_grad()
    assert sizes == [7, 4]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)
    alone = built(parts[0]["video"], parts[0]["behaviour"], "a.1")
    torch.testing.assert_close(gradients[1][0], alone)


@pytest.mark.parametrize("frames", [8, 21])
def test_patches_are_dropped_by_the_names_of_each_clip(frames):
    """The draw of a clip does not depend on other clips of the batch or on the number of windows."""
    encoder = create_encoder(
        "vivit_neural_small", image_size=(4, 6), tubelet_size=(2, 2, 2), num_frames=8,
        embed_dim=8, num_heads=1, spatial_depth=1, temporal_depth=1, patch_dropout=0.5,
        temporal_positions="learned",
    )  # fmt: skip
    readouts = {name: GaussianReadout(n, 8, sampling="mask") for name, n in NEURONS.items()}
    built = NeuralModel(encoder, readouts=readouts).double().train()
    names = [(3, 0, "a.1", trial, 0) for trial in range(3)]
    given = part("a.1", count=3, frames=frames)
    given["video"] = given["video"][[0, 0, 2]]

    def rates(*clips):
        chosen = {name: given[name][list(clips)] for name in ("video", "behaviour")}
        shows = [0, 0, 2] if len(clips) == 3 else None
        draw = [names[clip] for clip in clips]
        return predict_parts(built, [{**given, **chosen, "shows": shows, "draw": draw}])[0]

    together = rates(0, 1, 2)
    torch.testing.assert_close(rates(2, 1), together[[2, 1]], rtol=0, atol=1e-12)
    assert not torch.allclose(together[0], together[1])


class MeanReadout(nn.Module):
    """A readout in which every neuron reads the mean of the map."""

    def __init__(self, neurons, channels):
        super().__init__()
        self.weights = nn.Linear(channels, neurons)

    def forward(self, map, pupil_centre=None):
        return self.weights(map.mean((3, 4)).transpose(1, 2))


def test_positions_are_drawn_by_the_names_of_each_clip():
    core = CausalResNet(CausalResNetConfig(widths=(4,), depths=(1,), strides=(1,)))
    readouts = {"a.1": GaussianReadout(3, 4), "b": MeanReadout(5, 4)}
    built = NeuralModel(core, readouts=readouts).double().train()
    given, other = part("a.1"), part("b")
    given["video"] = given["video"][[0, 0]]
    # A readout of another kind takes no noise.
    other["draw"] = [(3, 0, "b", trial, 0) for trial in range(2)]

    def rates(*names):
        chosen = {name: given[name][: len(names)] for name in ("video", "behaviour")}
        named = [(3, epoch, "a.1", trial, 0) for epoch, trial in names]
        return predict_parts(built, [{**given, **chosen, "draw": named}, other])[0]

    together = rates((0, 0), (0, 1))
    torch.testing.assert_close(rates((0, 1))[0], together[1], rtol=0, atol=1e-12)
    assert not torch.allclose(together[0], together[1])
    assert not torch.allclose(rates((1, 1))[0], together[1])
    built.eval()
    assert torch.equal(rates((0, 0), (0, 1)), rates((1, 1), (1, 0)))


def test_bits_per_spike_are_against_the_mean_of_training():
    given = part("b", unknown=0.3)
    ours = NeuralPrediction(model(), facts=facts())
    bits = ours(batch(given)).metrics["bps"].item()
    rates = ours.model(given["video"], given["behaviour"], "b")
    gain, spikes = 0.0, 0.0
    for index in torch.cartesian_prod(*map(torch.arange, rates.shape)).tolist():
        rate, count = rates[tuple(index)].item(), given["responses"][tuple(index)].item()
        if not math.isnan(count):
            null = facts()[1].mean_response[index[-1]]
            gain += (null - count * math.log(null)) - (rate - count * math.log(rate))
            spikes += count
    assert bits == pytest.approx(gain / spikes / math.log(2), abs=1e-9)


def test_penalties_count_by_the_share_of_their_session():
    config = NeuralPredictionConfig(regularisation={"filter_l2": 0.1, "smoothness": 0.01})
    parts = [part("a.1", seed=1), part("b", seed=2)]
    ours = NeuralPrediction(model(), config, facts=facts())
    step = ours(batch(*parts))
    known = [int((~given["responses"].isnan()).sum()) for given in parts]
    expected = 0.0
    for given, count in zip(parts, known, strict=True):
        terms = ours.model.readout(given["session"]).regularisation()
        weighted = 0.1 * terms["filter_l2"] + 0.01 * terms["smoothness"]
        expected += weighted.item() * count / sum(known)
    assert step.metrics["regularisation"].item() == pytest.approx(expected, rel=1e-6)
    poisson = slow_poisson(ours.model, parts).item()
    assert step.loss.item() == pytest.approx(poisson + expected, rel=1e-6)
    alone = ours(batch(parts[1])).metrics["regularisation"].item()
    terms = ours.model.readout("b").regularisation()
    assert alone == pytest.approx(
        (0.1 * terms["filter_l2"] + 0.01 * terms["smoothness"]).item(), rel=1e-6
    )


SHARES = {"a.1": 0.25, "b": 0.75}


def slow_equal(model, parts, penalty=0.0):
    """Compute the loss with equal session weights, one response after another."""
    windows = sum(len(given["responses"]) for given in parts)
    loss = 0.0
    for name, share in SHARES.items():
        own = [given for given in parts if given["session"] == name]
        terms = []
        for given in own:
            rates = model(given["video"], given["behaviour"], name)
            for rate, count in zip(rates.flatten(), given["responses"].flatten(), strict=True):
                if not math.isnan(count):
                    terms.append(rate - count * torch.log(rate + 1e-12))
        there = sum(len(given["responses"]) for given in own)
        weight = there / (windows * share * len(SHARES))
        if terms:
            term = model.readout(name).regularisation()["filter_l2"]
            loss = loss + weight * (torch.stack(terms).mean() + penalty * term)
    return loss


@pytest.mark.parametrize(
    "sessions", [("a.1", "b", "b"), ("b",), ("a.1",), ("a.1", "b", "a.1", "b")], ids="-".join
)
def test_equal_weights_are_those_of_a_slow_loop(sessions):
    config = NeuralPredictionConfig(regularisation={"filter_l2": 0.1})
    parts = [
        part(name, count=1 + place, frames=6 - place, seed=place, unknown=0.2 * place)
        for place, name in enumerate(sessions)
    ]
    ours = NeuralPrediction(model(), config, facts=facts(), session_shares=SHARES)
    step = ours(batch(*parts))
    step.loss.backward()
    reference = model()
    expected = slow_equal(reference, parts, 0.1)
    expected.backward()
    assert step.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in gradients(reference).items():
        found = gradients(ours.model)[name]
        torch.testing.assert_close(
            found, torch.zeros_like(found) if gradient is None else gradient, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("shares", [None, SHARES])
def test_processes_with_equal_batches_have_the_loss_of_one_process(monkeypatch, shares):
    """DDP averages gradients, so each process divides by the mean number of responses."""
    parts = [part("a.1", seed=1), part("b", count=3, seed=2)]
    alone = NeuralPrediction(model(), facts=facts(), session_shares=shares)(batch(*parts)).loss
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda number: number.mul_(3))
    objective = NeuralPrediction(model(), facts=facts(), session_shares=shares)
    assert objective(batch(*parts)).loss.item() == pytest.approx(alone.item())
    assert objective.eval()(batch(*parts)).loss.item() == pytest.approx(alone.item())


def test_sessions_of_any_size_have_equal_weight_over_an_epoch():
    """Batches hold one session each, three of b for one of a.1, and b has more neurons."""
    parts = [part("a.1", seed=1), *(part("b", seed=seed, unknown=0.5) for seed in (2, 3, 4))]
    ours = NeuralPrediction(model(), facts=facts(), session_shares=SHARES)
    losses = [ours(batch(given)).loss.item() for given in parts]
    means = [slow_poisson(ours.model, [given]).item() for given in parts]
    expected = 0.5 * means[0] + 0.5 * sum(means[1:]) / 3
    assert sum(losses) / 4 == pytest.approx(expected, rel=1e-6)


def test_a_session_without_a_known_response_weighs_nothing():
    unknown = part("a.1", seed=1)
    unknown["responses"].fill_(math.nan)
    parts = [unknown, part("b", seed=2)]
    ours = NeuralPrediction(model(), facts=facts(), session_shares=SHARES)
    step = ours(batch(*parts))
    assert step.loss.item() == pytest.approx(slow_equal(ours.model, parts).item(), rel=1e-6)
    step.loss.backward()
    assert not any(p.grad.any() for p in ours.model.readout("a.1").parameters())


def test_sessions_that_the_batch_lacks_get_gradients_of_zero():
    config = NeuralPredictionConfig(regularisation={"filter_l2": 0.1})
    ours = NeuralPrediction(model(), config, facts=facts())
    ours(batch(part("a.1"))).loss.backward()
    absent, present = ours.model.readout("b"), ours.model.readout("a.1")
    for parameter in absent.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert all(parameter.grad.any() for parameter in present.parameters())


def test_a_frozen_readout_stays_without_gradient():
    ours = NeuralPrediction(model(), facts=facts())
    ours.model.readout("b").requires_grad_(False)
    ours(batch(part("a.1"))).loss.backward()
    assert all(parameter.grad is None for parameter in ours.model.readout("b").parameters())


def test_half_precision_rates_are_scored_in_full():
    single = model().float()
    given = {
        name: value.float() if isinstance(value, torch.Tensor) else value
        for name, value in part("b").items()
    }
    ours = NeuralPrediction(single, facts=facts())
    exact = ours(batch(given)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = ours(batch(given)).loss
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(exact.item(), abs=0.02)


def convolutional():
    """Return a convolutional core with Gaussian readouts."""
    torch.manual_seed(0)
    core = CausalResNet(CausalResNetConfig(widths=(4,), depths=(1,), strides=(1,)))
    readouts = {name: GaussianReadout(count, 4) for name, count in NEURONS.items()}
    return NeuralModel(core, readouts=readouts).double()


def test_widths_go_to_one_in_equal_ratios_and_resume():
    config = NeuralPredictionConfig(spread_start=8.0, spread_passes=3)
    ours = NeuralPrediction(convolutional(), config, facts=facts())
    scales = []
    for _ in range(5):
        ours(batch(part("b"))).loss.backward()
        scales.append(float(ours.model.readout("a.1").spread_scale))
    assert scales == pytest.approx([8, 4, 2, 1, 1])
    ours.eval()(batch(part("b")))
    assert ours.passes == 5
    saved = copy.deepcopy(ours.state_dict())
    saved["passes"].fill_(1)
    again = NeuralPrediction(convolutional(), config, facts=facts())
    again.load_state_dict(saved)
    again(batch(part("b")))
    assert float(again.model.readout("b").spread_scale) == pytest.approx(4)


def test_widths_are_unchanged_by_default():
    ours = NeuralPrediction(convolutional(), facts=facts())
    ours.model.readout("b").spread_scale = 3.0
    ours(batch(part("b")))
    assert float(ours.model.readout("b").spread_scale) == 3


def test_penalties_of_gaussian_readouts_are_theirs():
    config = NeuralPredictionConfig(regularisation={"feature_l1": 0.5, "spread": 2.0})
    ours = NeuralPrediction(convolutional(), config, facts=facts()).eval()
    step = ours(batch(part("b")))
    readout = ours.model.readout("b")
    features = sum(row.abs().sum() for row in readout.features) / NEURONS["b"]
    widths = sum((one**2).sum() for one in readout.spread) / NEURONS["b"]
    expected = (0.5 * features + 2 * widths).item()
    assert step.metrics["regularisation"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def on_two_processes(script, folder):
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
         Path(__file__).with_name(script), folder],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


def test_sharded_processes_with_other_frame_rates_equal_one(tmp_path):
    """Without even calls, the process that lacks a frame rate would leave the other one waiting."""
    on_two_processes("sharded_on_ranks.py", tmp_path)
    found = load_file(tmp_path / "sharded.safetensors")
    whole = sharded_on_ranks.objective()
    whole.begin_step(0)
    parts = [*sharded_on_ranks.of_rank(0)["parts"], *sharded_on_ranks.of_rank(1)["parts"]]
    whole(batch(*parts)).loss.backward()
    assert found["mean"].abs().max() == 1
    assert torch.equal(found.pop("mean"), whole.model.readouts["fast"].mean)
    found.pop("loss")
    expected = gradients(whole)
    assert {name for name, gradient in expected.items() if gradient is not None} == found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10, msg=name)


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    """The processes have different sessions and numbers of known responses; equal to 1e-10 in float64."""
    on_two_processes("neural_prediction_on_ranks.py", tmp_path)
    config = NeuralPredictionConfig(regularisation={"filter_l2": 0.1})
    ours = NeuralPrediction(model(), config, facts=facts())
    step = ours(batch(*of_rank(0), *of_rank(1)))
    step.loss.backward()
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    equal = NeuralPrediction(model(), config, facts=facts(), session_shares=SHARES)
    equal_loss = equal(batch(*of_rank(0), *of_rank(1))).loss
    equal_loss.backward()
    value = sum(rank.pop("equal/loss") for rank in ranks) / 2
    assert value.item() == pytest.approx(equal_loss.item(), rel=1e-6)
    for name, parameter in equal.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(
                rank.pop(f"equal/{name}"), parameter.grad, rtol=1e-6, atol=1e-9
            )
    for name in ("loss", "poisson", "regularisation"):
        value = sum(rank.pop(name) for rank in ranks) / 2
        expected = step.loss if name == "loss" else step.metrics[name]
        assert value.item() == pytest.approx(expected.item(), abs=1e-9)
    for name, parameter in ours.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank[name], parameter.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"regularisation": {"feature_l9": 1.0}}, "'feature_l9'.*filter_l2, smoothness"),
        ({"regularisation": {"filter_l2": -1.0}}, "filter_l2 -1.0 must not be negative"),
        ({"eps": 0.0}, "objective.eps"),
        ({"spread_start": 0.0}, "spread_start"),
    ],
)
def test_settings_that_do_not_fit_are_named(config, said):
    with pytest.raises(ValueError, match=said):
        NeuralPrediction(model(), NeuralPredictionConfig(**config), facts=facts())


def test_windows_shorter_than_a_tubelet_are_refused_only_in_training():
    settings = {"embed_dim": 8, "num_heads": 1, "spatial_depth": 1, "temporal_depth": 1}
    encoder = create_encoder(
        "vivit_neural_small", image_size=(4, 6), tubelet_size=(4, 2, 2), num_frames=8, **settings
    )
    readouts = {name: GaussianReadout(count, 8) for name, count in NEURONS.items()}
    objective = NeuralPrediction(NeuralModel(encoder, readouts=readouts).double(), facts=facts())
    objective.train()(batch(part("a.1", frames=4)))
    short = batch(part("a.1", frames=4), part("b", frames=3))
    with pytest.raises(NeuralModelError, match="3 frames of session 'b' are shorter than one"):
        objective(short)
    assert objective.eval()(short).loss.isfinite()


def test_shares_of_other_sessions_are_refused():
    with pytest.raises(
        ValueError, match=r"session_shares are of sessions b, but the model has a\.1, b"
    ):
        NeuralPrediction(model(), facts=facts(), session_shares={"b": 1.0})


def test_facts_of_other_sessions_are_refused():
    with pytest.raises(
        ValueError, match=r"SessionFacts are of sessions b, but the model has a\.1, b"
    ):
        NeuralPrediction(model(), facts=facts({"b": 5}))
