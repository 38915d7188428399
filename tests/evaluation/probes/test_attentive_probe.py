"""The attentive probe, compared with timm's pooling, and on signals that cancel in a mean."""

import itertools

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import nn

from ssl_vivit.evaluation.features.extraction import TokenStore
from ssl_vivit.evaluation.probes.attentive import (
    AttentiveConfig,
    OneQuery,
    _shuffled,
    attentive_predict,
)
from ssl_vivit.evaluation.probes.linear import probe
from ssl_vivit.evaluation.probes.scores import scores
from ssl_vivit.objectives.targets import Target

EVENT = Target("has_collision", "event")


@pytest.mark.parametrize("heads", [1, 4])
def test_one_query_equals_timms_pooling_and_its_gradients(heads):
    torch.manual_seed(0)
    theirs = AttentionPoolLatent(16, num_heads=heads, norm_layer=nn.LayerNorm).double()
    nn.init.normal_(theirs.kv.bias)
    ours = OneQuery(16, num_heads=heads, norm_layer=nn.LayerNorm).double()
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(3, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(tokens), theirs(tokens))
    weight = torch.randn(3, 16, dtype=torch.float64)
    (ours(tokens) * weight).sum().backward()
    (theirs(tokens) * weight).sum().backward()
    for name, parameter in theirs.named_parameters():
        own = ours.get_parameter(name).grad
        torch.testing.assert_close(own, parameter.grad, msg=name)


def needle(n, seed, tmp_path, *, views=1):
    """Return tokens in which one token has the label, in a direction that cancels in the mean."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, views, 24, 16, generator=generator)
    labels = (torch.rand(n, generator=generator) > 0.5).float()
    tokens[..., :2] = 0.1 * tokens[..., :2]
    place = torch.randint(24, (n,), generator=generator)
    tokens[torch.arange(n), views - 1, place, 0] = 6.0
    tokens[torch.arange(n), views - 1, place, 1] = 6 * labels - 3
    # What the needle adds to the mean is taken away again from the others.
    tokens[:, :, :, 1] -= tokens[:, :, :, 1].mean(2, keepdim=True)
    store = TokenStore(tmp_path, tuple(tokens.shape))
    store.append(tokens)
    return tokens, store, {"has_collision": labels}


def test_a_signal_that_the_mean_lacks_is_found(tmp_path):
    train, train_store, train_labels = needle(200, 1, tmp_path)
    test, test_store, test_labels = needle(80, 2, tmp_path)
    of_means = probe(train.mean((1, 2)), train_labels, test.mean((1, 2)), test_labels, "linear",
                     targets=(EVENT,))  # fmt: skip
    assert of_means["has_collision"] < 0.65
    predicted = attentive_predict(
        train_store, train_labels, test_store, slice(0, 1),
        targets=(EVENT,), config=AttentiveConfig(steps=100, learning_rate=3e-3),
    )  # fmt: skip
    assert scores(predicted, test_labels, train_labels, (EVENT,))["has_collision"] > 0.95


def test_a_shuffled_signal_is_not_found(tmp_path):
    _, train_store, train_labels = needle(120, 1, tmp_path)
    _, test_store, test_labels = needle(80, 2, tmp_path)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    shuffled = {name: value[order] for name, value in train_labels.items()}
    predicted = attentive_predict(
        train_store, shuffled, test_store, slice(0, 1),
        targets=(EVENT,), config=AttentiveConfig(steps=40),
    )  # fmt: skip
    assert scores(predicted, test_labels, shuffled, (EVENT,))["has_collision"] < 0.65


def test_numbers_come_out_in_the_labels_units(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(150, 1, 6, 8, generator=generator)
    number = Target("mean_speed", "number")
    labels = {"mean_speed": 1000 + 50 * tokens[:, 0, :, 0].mean(1)}
    store = TokenStore(tmp_path, tuple(tokens.shape))
    store.append(tokens)
    predicted = attentive_predict(store, labels, store, slice(0, 1), targets=(number,))
    assert scores(predicted, labels, labels, (number,))["mean_speed"] > 0.9


def test_the_same_seed_gives_the_same_predictions_and_all_clips_are_seen(tmp_path):
    _, store, labels = needle(40, 1, tmp_path, views=2)
    config = AttentiveConfig(steps=9)

    def run(views, seed=0):
        return attentive_predict(
            store, labels, store, views, targets=(EVENT,), config=config, seed=seed
        )

    both, again = run(slice(0, 2)), run(slice(0, 2))
    assert torch.equal(both["has_collision"], again["has_collision"])
    assert not torch.equal(both["has_collision"], run(slice(0, 2), 1)["has_collision"])
    assert store.read(torch.tensor([3]), slice(0, 2)).shape == (1, 48, 16)
    assert not torch.equal(both["has_collision"], run(slice(0, 1))["has_collision"])


def test_the_validation_part_is_never_fitted(tmp_path):
    _, store, labels = needle(40, 1, tmp_path)
    _, test, _ = needle(5, 2, tmp_path)
    read, seen = store.read, {True: set(), False: set()}

    def recorded(index, views):
        seen[torch.is_grad_enabled()] |= {*index.tolist()}
        return read(index, views)

    store.read = recorded
    config = AttentiveConfig(steps=4, batch_size=16, validation=0.2)
    attentive_predict(store, labels, test, slice(0, 1), targets=(EVENT,), config=config)
    assert len(seen[False]) == 8
    assert seen[True] == {*range(40)} - seen[False]


def test_clips_come_in_another_order_in_each_epoch_and_with_each_seed():
    def epochs(seed):
        config = AttentiveConfig(steps=6, batch_size=4)
        parts = [part.tolist() for part in _shuffled(torch.arange(20, 30), config, seed)]
        assert [len(part) for part in parts] == [4, 4, 2] * 2
        return [[*itertools.chain(*some)] for some in (parts[:3], parts[3:])]

    first = epochs(0)
    assert all(sorted(epoch) == [*range(20, 30)] for epoch in first)
    assert first == epochs(0)
    assert len({tuple(epoch) for epoch in first + epochs(1)}) == 4


def test_a_store_keeps_what_was_added_and_leaves_no_file(tmp_path):
    tokens = torch.randn(5, 2, 3, 4)
    store = TokenStore(tmp_path, (7, 2, 3, 4))
    store.append(tokens[:2])
    store.append(tokens[2:])
    assert store.shape == (5, 2, 3, 4)
    got = store.read(torch.tensor([4, 1]), slice(1, 2))
    torch.testing.assert_close(got, tokens[[4, 1], 1], rtol=1e-3, atol=1e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 3, 7])
def test_tokens_that_are_not_finite_are_refused(tmp_path, place):
    tokens, store, labels = needle(8, 1, tmp_path)
    bad = TokenStore(tmp_path, tuple(tokens.shape))
    tokens[place, 0, 5, 2] = torch.inf
    bad.append(tokens)
    with pytest.raises(ValueError, match="tokens are not finite"):
        attentive_predict(bad, labels, store, slice(0, 1), targets=(EVENT,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--attentive.steps is 0; it must be at least 1"),
        ({"validation": 1.0}, "attentive.validation is 1.0"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentiveConfig(**settings)
