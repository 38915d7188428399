"""Positions of readouts on the screen, and scores of true rates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data_prep.synthetic_neural.simulation import SimulationConfig, simulate
from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.evaluation.neurons.receptive_fields import (
    found_centres,
    readout_spreads,
    true_fields,
)
from ssl_vivit.evaluation.neurons.scoring import score, score_true_rates
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.scoring.scores import NeuralScores

SIZE = (24, 40)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    config = SimulationConfig(
        neurons=5, train_trials=3, held_out_movies=2, repeats=3, seconds=1.0, size=(12, 20),
        stimuli="textures", mean_rate=(8.0, 12.0),
    )  # fmt: skip
    path = simulate(tmp_path_factory.mktemp("s") / "sim", config, progress=False)
    return build_sessions(NeuralDataConfig([str(path)], window=12))


@pytest.mark.parametrize("kind", ["scale", "affine"])
def test_positions_are_seen_through_the_adapter(kind):
    """The pixel at the reported place of the screen is the pixel that the neuron reads."""
    adapter = StimulusAdapter(kind)
    with torch.no_grad():
        if kind == "scale":
            adapter.log_scale.fill_(-0.3)
        else:
            adapter.matrix.copy_(torch.tensor([[0.8, 0.1], [-0.15, 0.9]]))
            adapter.shift.copy_(torch.tensor([0.05, -0.04]))
    encoder = create_encoder(
        "vivit_neural_small", image_size=SIZE, num_frames=4, embed_dim=8, num_heads=2,
        spatial_depth=1, temporal_depth=1,
    )  # fmt: skip
    readout = GaussianReadout(3, 8, mean_range=0.6)
    model = NeuralModel(encoder, adapter, None, {"s": readout})
    found = found_centres(model, "s", SIZE)
    y, x = np.meshgrid(
        *[(2 * np.arange(size) + 1) / size - 1 for size in SIZE], indexing="ij"
    )  # (H, W)
    for place, own in zip(found, readout.centres().detach().numpy(), strict=True):
        blob = np.exp(-((x - place[0]) ** 2 * 2.8 + (y - place[1]) ** 2) / 0.02)
        seen = adapter(torch.tensor(blob).float().view(1, 1, 1, *SIZE)).detach().numpy()[0, 0, 0]
        weight = seen / seen.sum()
        assert ((weight * x).sum(), (weight * y).sum()) == pytest.approx(tuple(own), abs=0.03)


@pytest.mark.parametrize("kind", [None, "scale", "affine"])
def test_covariances_on_the_screen_are_those_of_places_drawn_on_the_map(kind):
    adapter = None if kind is None else StimulusAdapter(kind)
    with torch.no_grad():
        if kind == "scale":
            adapter.log_scale.fill_(-0.3)
        elif kind == "affine":
            adapter.matrix.copy_(torch.tensor([[0.8, 0.1], [-0.15, 0.9]]))
            adapter.shift.copy_(torch.tensor([0.05, -0.04]))
    encoder = create_encoder(
        "vivit_neural_small", image_size=SIZE, num_frames=4, embed_dim=8, num_heads=2,
        spatial_depth=1, temporal_depth=1,
    )  # fmt: skip
    readout = GaussianReadout(1, 8)
    width = torch.tensor([[0.05, 0.02], [0.0, 0.08]])
    with torch.no_grad():
        readout.spread.copy_(width[None])
    model = NeuralModel(encoder, adapter, None, {"s": readout})
    noise = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0))
    drawn = GaussianReadout(len(noise), 8)
    with torch.no_grad():
        drawn.mean.copy_(readout.centres() + noise @ width.T)
    places = found_centres(NeuralModel(encoder, adapter, None, {"s": drawn}), "s", SIZE)
    expected = np.cov((places * np.array(SIZE[::-1]) / 2).T)
    assert readout_spreads(model, "s", SIZE)[0] == pytest.approx(expected, rel=0.05, abs=0.02)
    assert (
        readout_spreads(linear_nonlinear({"s": 2}, SIZE, behaviour_channels=0), "s", SIZE) is None
    )


def test_linear_filters_are_found_by_their_centre_of_mass():
    model = linear_nonlinear({"s": 2}, (12, 20), behaviour_channels=0)
    readout = model.readouts["s"]
    with torch.no_grad():
        readout.courses.fill_(1.0)
        readout.images.zero_()
        readout.images[0, 0, 0, 1, 8] = -3.0  # of 6×10 squares
        readout.images[1, 0, 0, 4, 2] = 2.0
    expected = [[17 / 10 - 1, 3 / 6 - 1], [5 / 10 - 1, 9 / 6 - 1]]
    assert np.allclose(found_centres(model, "s", (12, 20)), expected, atol=1e-6)


def test_true_rates_have_the_stored_scores_of_the_simulation(simulated):
    session = simulated.sessions[0]
    told = json.loads((session.path / "meta" / "ground_truth.json").read_text())["ceiling"]
    ceiling = score_true_rates(simulated.test).compute()
    assert ceiling["bps_sim"] == pytest.approx(told["bits_per_spike"], abs=1e-5)
    assert ceiling["correlation_sim"] == pytest.approx(told["correlation"], abs=1e-5)
    assert true_fields(session)["center"].shape == (5, 2)


class OneOfTwo:
    """The first of two processes, with given messages of the second process."""

    world_size, rank = 2, 0

    def __init__(self, other: list) -> None:
        self.other = other

    def gather(self, value):
        return [value, self.other.pop(0)]


class Recording:
    """The second process, which records its messages."""

    world_size, rank = 2, 1

    def __init__(self) -> None:
        self.said: list = []

    def gather(self, value):
        self.said.append(value)
        return [value, value]


def test_every_process_takes_its_share_and_calls_the_model_equally_often(simulated):
    trials = simulated.test
    calls = {0: 0, 1: 0}

    def rates_of(rank):
        def rates(part):
            calls[rank] += 1
            number = part["trial"].float().view(-1, 1, 1)
            return part["responses"].nan_to_num() * 0 + 0.1 + 0.01 * number

        return rates

    # Five trials of six: one process has three of them, the other two.
    few = type(trials)(trials.sessions, trials.facts, trials.trials[:5])
    second = Recording()
    score(rates_of(1), few, second, batch_size=1, device="cpu")
    assert calls[1] == 2
    found = score(rates_of(0), few, OneOfTwo(second.said), batch_size=1, device="cpu")
    assert calls[0] == 3
    whole = NeuralScores(few.facts)
    for batch in few.once(2, "cpu"):
        (part,) = batch["parts"]
        whole.update("sim", rates_of(0)(part), part["responses"])
    assert found.compute() == pytest.approx(whole.compute(), rel=1e-12)

    class Behind(Recording):
        def gather(self, value):
            return [value + 2, value] if isinstance(value, int) else super().gather(value)

    calls[1] = 0
    score(rates_of(1), few, Behind(), batch_size=1, device="cpu")
    assert calls[1] == 4
