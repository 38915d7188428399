"""Resampled scores equal scores of parts with repeated videos; standard errors are known."""

import math

import pytest
import torch

from ssl_vivit.evaluation.probes.scores import score, weighted_score
from ssl_vivit.evaluation.probes.uncertainty import Estimate, video_weights
from ssl_vivit.objectives.targets import Target

KINDS = Target("presence", "kinds", 5)
EVENT = Target("has_collision", "event")
NUMBER = Target("mean_speed", "number")
CLASS = Target("class", "class", 3)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(target, n, seed=0):
    """Return labels, and predictions with ties that correlate with them."""
    hidden = draw(n, target.width, seed=seed)
    predicted = (hidden + draw(n, target.width, seed=seed + 1)).round(decimals=1)
    if target.kind == "kinds":
        labels = (hidden > 0.7).float()
        labels[:, 2] = 0  # never in the test part
        return predicted, labels
    if target.kind == "class":
        return predicted, hidden.argmax(1)
    return predicted, hidden[:, 0] if target.kind == "number" else (hidden[:, 0] > 0.4).float()


@pytest.mark.parametrize("target", [KINDS, EVENT, NUMBER, CLASS], ids=lambda t: t.kind)
def test_each_resample_is_scored_as_the_videos_that_it_repeats(target):
    predicted, labels = part(target, 14)
    train_labels = torch.ones_like(labels)
    if target is KINDS:
        train_labels[:, 4] = 0  # never in the training part
    weights = video_weights([f"video_{i}" for i in range(14)], 30)
    got = weighted_score(predicted, labels, target, train_labels, weights)
    for b, counts in enumerate(weights.long()):
        index = torch.arange(14).repeat_interleave(counts)
        expected = score(predicted[index], labels[index], target, train_labels)
        assert float(got[b]) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_resample_with_constant_labels_has_no_score():
    weights = torch.tensor([[2.0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.float64)
    labels = torch.tensor([1.0, 0, 0, 1])
    for target in (EVENT, NUMBER):
        got = weighted_score(draw(4, 1), labels, target, labels, weights)
        assert got.isnan().all(), target


def test_draws_of_a_video_do_not_depend_on_other_videos():
    whole, some = video_weights(["a", "b", "c"]), video_weights(["c", "a"])
    assert torch.equal(some, whole[:, [2, 0]])
    assert not torch.equal(whole[:, 0], whole[:, 1])
    assert whole.mean() == pytest.approx(1.0, abs=0.1)
    assert whole.var() == pytest.approx(1.0, abs=0.2)


def test_the_spread_is_the_standard_error_of_an_accuracy():
    right = torch.arange(500) % 5 > 0  # four of five
    predicted = torch.stack((right, ~right, torch.zeros(500)), 1).double()
    labels = torch.zeros(500, dtype=torch.long)
    weights = video_weights([str(i) for i in range(500)])
    got = weighted_score(predicted, labels, CLASS, labels, weights).std()
    assert float(got) == pytest.approx(math.sqrt(0.8 * 0.2 / 500), rel=0.15)


def test_an_estimates_error_is_over_seeds_and_videos():
    scores, resampled = draw(3).tolist(), draw(3, 50, seed=1).numpy()
    found = Estimate.of([*scores, math.nan], [*resampled, resampled[0]])
    mean = sum(scores) / 3
    over_seeds = math.sqrt(sum((value - mean) ** 2 for value in scores) / 2 / 3)
    means = [sum(column) / 3 for column in resampled.T]
    over_videos = math.sqrt(sum((m - sum(means) / 50) ** 2 for m in means) / 49)
    assert found == pytest.approx((mean, over_seeds, over_videos))
    assert found.error == pytest.approx(math.sqrt(over_seeds**2 + over_videos**2))
    assert str(found) == f"{mean:.3f} ± {found.error:.3f}"


@pytest.mark.parametrize("target", [KINDS, EVENT, NUMBER], ids=lambda t: t.kind)
def test_the_spread_is_that_of_scores_on_other_videos(target):
    fresh = []
    for seed in range(150):
        predicted, labels = part(target, 120, seed=10 * seed)
        fresh.append(score(predicted, labels, target, torch.ones_like(labels)))
    spread = float(torch.tensor(fresh).std())
    told = []
    for seed in range(5):
        predicted, labels = part(target, 120, seed=10 * seed)
        weights = video_weights([f"{seed}_{i}" for i in range(120)])
        told.append(weighted_score(predicted, labels, target, torch.ones_like(labels), weights))
    assert float(torch.stack(told).std(1).mean()) == pytest.approx(spread, rel=0.25)
