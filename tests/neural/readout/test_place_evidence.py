"""Evidence of places, compared with multivariate normal densities."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from ssl_vivit.neural.readout.place_evidence import (
    PlaceSums,
    log_evidence,
    posterior_of_places,
)


def parts(missing=False):
    torch.manual_seed(0)
    found = [(torch.randn(20, 5, 2), torch.randn(20, 4)) for _ in range(3)]
    if missing:
        found[1][1][3:9, 2] = torch.nan
    return found


def sums_of(trials):
    sums = PlaceSums()
    for x, y in trials:
        sums.add(x, y)
    return sums


def test_sums_are_centred_products_of_all_trials():
    trials = parts(missing=True)
    gram, cross, spread = sums_of(trials)._standardised()
    x = torch.cat([x for x, _ in trials]).double()
    y = torch.cat([y for _, y in trials]).double()
    x = torch.cat([x, x.mean(1, keepdim=True)], 1)
    x = x - x.mean(0)
    x = x / x.square().mean((0, 1)).sqrt()
    for place in range(6):
        torch.testing.assert_close(gram[place], x[:, place].T @ x[:, place])
        for neuron in range(4):
            known = ~y[:, neuron].isnan()
            own = y[known, neuron] - y[known, neuron].mean()
            share = known.double().mean()
            expected = x[known, place].T @ own / share.sqrt()
            torch.testing.assert_close(cross[place, :, neuron], expected, atol=1e-4, rtol=1e-4)
            assert float(spread[neuron]) == pytest.approx(float(own.square().sum()), rel=1e-5)


@pytest.mark.parametrize("prior", [0.003, 0.1])
def test_evidence_is_the_ratio_of_normal_densities(prior):
    trials = parts()
    sums = sums_of(trials)
    gram, cross, spread = sums._standardised()
    found = log_evidence(gram, cross, spread, sums.known.double(), 1.0, prior)
    x = torch.cat([x for x, _ in trials]).double()
    y = torch.cat([y for _, y in trials]).double()
    x = x - x.mean(0)
    # The scale of features is that of places and of the whole screen together.
    own = gram[:5].diagonal(dim1=1, dim2=2)
    x = x * (own / x.square().sum(0)).sqrt()
    for place in range(5):
        covariance = torch.eye(60).double() + prior * x[:, place] @ x[:, place].T
        for neuron in range(4):
            centred = y[:, neuron] - y[:, neuron].mean()
            noise = float(centred @ torch.linalg.solve(covariance, centred)) / 60
            with_place = MultivariateNormal(torch.zeros(60).double(), noise * covariance)
            without = MultivariateNormal(
                torch.zeros(60).double(), torch.eye(60).double() * centred.square().mean()
            )
            expected = with_place.log_prob(centred) - without.log_prob(centred)
            assert float(found[place, neuron]) == pytest.approx(float(expected), abs=1e-3)


def test_frames_that_count_as_one_are_as_if_there_were_fewer():
    sums = sums_of(parts())
    gram, cross, spread = sums._standardised()
    known = sums.known.double()
    thrice = log_evidence(3 * gram, 3 * cross, 3 * spread, known, 3.0, 0.01)
    torch.testing.assert_close(thrice, log_evidence(gram, cross, spread, known, 1.0, 0.01))
    once, pooled = sums.explained(torch.ones(4) > 0), torch.ones(4) > 0
    found = sums_of(parts() * 3).explained(pooled, inflation=3.0)
    torch.testing.assert_close(found.places, once.places)
    assert found.log_evidence == pytest.approx(once.log_evidence)


def test_posterior_is_that_of_a_slow_computation():
    torch.manual_seed(1)
    evidence = 3 * torch.randn(7, 9).double()
    evidence[:, 8] = -torch.inf
    pooled = torch.arange(9) < 6
    found = posterior_of_places(evidence, pooled)
    prior = [0.97 / 6] * 6 + [0.03]
    share = 1 / 3
    for _ in range(31):
        each = []
        for neuron in range(9):
            likely = [p * math.exp(e) for p, e in zip(prior, evidence[:, neuron], strict=True)]
            total = share * sum(likely) + 1 - share
            each.append([share * one / total for one in likely])
        posterior = torch.tensor(each).double().T
        last, share = share, (1 + float(posterior[:, :6].sum())) / 9
    torch.testing.assert_close(found.places, posterior[:6], atol=1e-6, rtol=1e-5)
    assert (found.places[:, 8] == 0).all()
    totals = [
        math.log(last * sum(p * math.exp(e) for p, e in zip(prior, evidence[:, n], strict=True))
                 + 1 - last)
        for n in range(6)
    ]  # fmt: skip
    assert found.log_evidence == pytest.approx(sum(totals), abs=1e-6)


def test_widths_of_the_prior_are_averaged_by_their_evidence():
    sums = sums_of(parts())
    pooled = torch.ones(4, dtype=torch.bool)
    gram, cross, spread = sums._standardised()
    each = [
        posterior_of_places(
            log_evidence(gram, cross, spread, sums.known.double(), 1.0, prior), pooled
        )
        for prior in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    ]
    weights = [math.exp(one.log_evidence) for one in each]
    expected = sum(w * one.places for w, one in zip(weights, each, strict=True)) / sum(weights)
    found = sums.explained(pooled)
    torch.testing.assert_close(found.places, expected)
    assert found.log_evidence == pytest.approx(math.log(sum(weights) / 6))


def test_neurons_decide_together_how_many_have_a_place():
    """Weak evidence for a place is accepted if other neurons have strong evidence."""
    # One with weak evidence of a place, 19 with strong evidence or none.
    weak, strong = torch.zeros(5, 20).double(), torch.zeros(5, 20).double()
    weak[0], strong[0] = 1.2, 1.2
    strong[1, 1:] = 20.0
    everyone = torch.ones(20, dtype=torch.bool)
    assert float(posterior_of_places(strong, everyone).places[:, 0].sum()) > 0.9
    assert float(posterior_of_places(weak - 2, everyone).places[:, 0].sum()) < 0.1
