"""Probes, compared with loops and closed forms, and tested on planted signals."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.probes.linear import (
    PENALTIES,
    nearest_neighbours,
    predict,
    probe,
    ridge,
    standardised,
)
from ssl_vivit.evaluation.probes.scores import CLEVRER_TARGETS, chance, score
from ssl_vivit.objectives.targets import Target

PRESENCE, COUNT, *_ = CLEVRER_TARGETS
EVENT = CLEVRER_TARGETS[3]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_neighbours_equal_a_loop():
    train, test, labels = draw(30, 6), draw(5, 6, seed=1), draw(30, 3, seed=2)
    got = nearest_neighbours(train, labels, test, neighbours=7, temperature=0.2)
    for i in range(5):
        cosines = [float(F.cosine_similarity(test[i], train[j], dim=0)) for j in range(30)]
        nearest = sorted(range(30), key=lambda j: -cosines[j])[:7]
        weights = [math.exp(cosines[j] / 0.2) for j in nearest]
        expected = sum(w * labels[j] for w, j in zip(weights, nearest, strict=True)) / sum(weights)
        torch.testing.assert_close(got[i], expected)


def test_neighbours_choose_the_classes_of_lightly():
    train, test = draw(60, 8).float(), draw(40, 8, seed=1).float()
    classes = torch.arange(60) % 4
    theirs = knn_predict(F.normalize(test, dim=1), F.normalize(train, dim=1).T, classes, 4, 20, 0.1)
    ours = nearest_neighbours(train, F.one_hot(classes).float(), test)
    assert torch.equal(ours.argmax(1), theirs[:, 0])


@pytest.mark.parametrize(("d", "noise"), [(4, 4), (60, 2)])
def test_ridge_equals_the_normal_equations_with_the_best_penalty_of_five_folds(d, noise):
    x, z = standardised(draw(40, d), draw(9, d, seed=1))
    y = x[:, :2] + noise * draw(40, 2, seed=2) + 5

    def solve(x, y, z, penalty):
        centre, level = x.mean(0), y.mean(0)
        gram = (x - centre).T @ (x - centre) + penalty * len(x) * torch.eye(d, dtype=x.dtype)
        return (z - centre) @ torch.linalg.solve(gram, (x - centre).T @ (y - level)) + level

    candidates = [solve(x, y, z, penalty) for penalty in PENALTIES]
    chosen = set()
    for seed in range(6):
        got = ridge(x, {"y": y}, z, seed=seed)["y"]
        distances = torch.stack([(got - c).abs().max() for c in candidates])
        best = int(distances.argmin())
        assert distances[best] < 1e-8

        order, errors = named_generator(seed, "folds").permutation(40), []
        for penalty in PENALTIES:
            error = 0.0
            for fold in range(5):
                out = order[fold * 8 : fold * 8 + 8]
                kept = sorted({*range(40)} - {*out.tolist()})
                error += (solve(x[kept], y[kept], x[out], penalty) - y[out]).square().sum().item()
            errors.append(error)
        assert best == errors.index(min(errors))
        chosen.add(best)
    assert len(chosen) > 1, "which penalty is chosen depends on the folds"


def planted(n, seed, signal=1.0):
    """Return features in which a few directions have the labels."""
    features = draw(n, 20, seed=seed)
    hidden = signal * features @ draw(20, 50, seed=99) / 20**0.5 + 0.3 * draw(n, 50, seed=seed + 50)
    labels = {
        "presence": (hidden[:, :48] > 0.5).float(),
        "num_objects": (hidden[:, 48] * 2 + 5).round().long(),
        "num_collisions": (hidden[:, 49] * 2 + 3).round().long(),
        "has_collision": (hidden[:, 49] > 0).float(),
        "mean_speed": hidden[:, 48] * 0.1,
    }
    return features.float() * 7 + 3, labels


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (
            "linear",
            {"presence": 0.8, "num_objects": 0.8, "has_collision": 0.95, "mean_speed": 0.85},
        ),
        ("knn", {"presence": 0.4, "num_objects": 0.1, "has_collision": 0.7, "mean_speed": 0.1}),
    ],
)
def test_a_planted_signal_is_found_and_a_shuffled_one_is_not(kind, least):
    train, train_labels = planted(400, 1)
    test, test_labels = planted(200, 2)
    found = probe(train, train_labels, test, test_labels, kind)
    assert all(found[name] > value for name, value in least.items()), found
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    shuffled = {name: values[order] for name, values in train_labels.items()}
    lost = probe(train, shuffled, test, test_labels, kind)
    for target in CLEVRER_TARGETS:
        level = chance(test_labels[target.name], target, shuffled[target.name])
        assert lost[target.name] < level + 0.1, (target.name, lost, level)


def test_scale_and_offset_of_features_change_nothing():
    train, labels = planted(60, 1)
    test, _ = planted(20, 2)
    factors, offsets = torch.logspace(-3, 3, 20), torch.linspace(-50, 50, 20)
    for kind in ("knn", "linear"):
        plain = predict(train.double(), labels, test.double(), kind)
        moved = predict(
            train.double() * factors + offsets, labels, test.double() * factors + offsets, kind
        )
        for name in plain:
            torch.testing.assert_close(plain[name], moved[name], rtol=1e-5, atol=1e-6)


def test_constant_features_predict_the_mean():
    train, test = standardised(torch.full((9, 2), 0.1), torch.tensor([[0.1, 7.0]]))
    assert not train.any()
    assert not test.any()
    _, labels = planted(9, 1)
    predicted = predict(torch.ones(9, 2), labels, torch.ones(3, 2), "linear")
    torch.testing.assert_close(
        predicted["mean_speed"], labels["mean_speed"].mean().expand(3, 1).double()
    )


def average_precision(scores, labels):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if labels[i]:
            hits += 1
            total += hits / rank
    return total / hits


def test_presence_is_the_mean_average_precision_of_kinds_seen_in_both_parts():
    target = Target("presence", "kinds", 5)
    labels = (draw(30, 5) > 0.8).float()
    labels[:, 1] = 0  # never in the test part
    labels[:, 2] = 1  # always in the test part
    train_labels = torch.ones(8, 5)
    train_labels[:, 3] = 0  # never in the training part
    scores = draw(30, 5, seed=1) * 100
    expected = [average_precision(scores[:, k].tolist(), labels[:, k].tolist()) for k in (0, 4)]
    got = score(scores, labels, target, train_labels)
    assert got == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_presence_of_a_single_kind_is_its_average_precision():
    labels = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    scores = torch.tensor([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1]])
    got = score(scores, labels, Target("presence", "kinds", 2), torch.ones(4, 2))
    assert got == pytest.approx((1 + 2 / 3) / 2)


def test_large_scores_do_not_become_ties():
    """Scores are not converted to probabilities, which are equal in float32 for logits above 40."""
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0])
    scores = torch.tensor([[50.0], [60.0], [40.0], [70.0]])
    assert score(scores, labels, EVENT, labels) == 1.0


def test_event_is_the_share_of_pairs_in_order():
    labels = (draw(25) > 0).float()
    scores = draw(25, 1, seed=1).round(decimals=0)
    pairs = [
        (scores[i] > scores[j]).item() + 0.5 * (scores[i] == scores[j]).item()
        for i in range(25)
        for j in range(25)
        if labels[i] and not labels[j]
    ]
    got = score(scores, labels, EVENT, labels)
    assert got == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_number_is_the_explained_share_of_variance():
    labels, predicted = draw(12), draw(12, 1, seed=1)
    rest = sum((float(labels[i]) - float(predicted[i])) ** 2 for i in range(12))
    total = sum((float(v) - float(labels.mean())) ** 2 for v in labels)
    assert score(predicted, labels, COUNT, labels) == pytest.approx(1 - rest / total, abs=1e-6)


def test_figures_that_the_labels_cannot_give_are_nan():
    ones = torch.ones(4)
    assert math.isnan(score(draw(4, 1), ones, EVENT, ones))
    assert math.isnan(score(draw(4, 1), ones, COUNT, ones))
    assert math.isnan(score(draw(4, 48), torch.zeros(4, 48), PRESENCE, torch.zeros(4, 48)))


def test_chance_of_presence_is_the_mean_over_all_orders():
    target = Target("presence", "kinds", 1)
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])[:, None]
    every = [
        average_precision(order, labels[:, 0].tolist())
        for order in itertools.permutations(range(5))
    ]
    assert chance(labels, target, labels) == pytest.approx(sum(every) / len(every))


def test_chance_of_classes_is_the_most_frequent_one():
    target = Target("class", "class", 3)
    assert chance(torch.tensor([2, 2, 0, 1]), target, torch.tensor([0, 2, 2])) == 0.5


def test_classes_are_probed_by_accuracy():
    target = Target("class", "class", 3)
    train, test = draw(90, 5), draw(60, 5, seed=1)
    classes = [x[:, :3].argmax(1) for x in (train, test)]
    found = probe(train, {"class": classes[0]}, test, {"class": classes[1]}, "linear",
                  targets=(target,))  # fmt: skip
    assert found["class"] > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 3}, "too few"),
        ({"bad": True}, "not finite"),
    ],
)
def test_mistakes(change, message):
    train, labels = planted(change.get("n", 10), 1)
    if "bad" in change:
        train[0, 0] = torch.nan
    with pytest.raises(ValueError, match=message):
        probe(train, labels, train, labels, "knn")
