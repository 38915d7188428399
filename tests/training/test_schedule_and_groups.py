"""Learning rates and parameter groups, compared with formulas and timm's functions."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.utils.lars import LARS
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from toy_objective import toy

from ssl_vivit.errors import RunError
from ssl_vivit.objectives import Objective
from ssl_vivit.training import OptimConfig
from ssl_vivit.training.optim import (
    build_optimizer,
    parameter_groups,
    peak_learning_rate,
    schedule_factor,
    set_learning_rate,
)


def test_schedule_is_the_written_formula() -> None:
    config = OptimConfig(warmup_steps=4, min_ratio=0.1)
    got = [schedule_factor(config, step, 20) for step in range(20)]
    expected = [0.25, 0.5, 0.75, 1.0] + [
        0.1 + 0.9 * (1 + math.cos(math.pi * k / 16)) / 2 for k in range(16)
    ]
    assert got == pytest.approx(expected, abs=1e-15)


def test_cosine_agrees_with_timm() -> None:
    config = OptimConfig(warmup_steps=5, min_ratio=0.02)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.0)
    reference = CosineLRScheduler(
        optimizer, t_initial=25, lr_min=0.06, warmup_t=5, warmup_prefix=True, t_in_epochs=False
    )
    for step in range(5, 30):
        reference.step_update(step)
        assert 3.0 * schedule_factor(config, step, 30) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-12
        )


def test_constant_schedule_stays_at_the_peak() -> None:
    config = OptimConfig(warmup_steps=2, schedule="constant")
    assert [schedule_factor(config, s, 9) for s in (0, 1, 2, 8)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_learning_rate_scales_with_the_batch(scaling: str, factor: float) -> None:
    config = OptimConfig(learning_rate=0.5, scaling=scaling)  # type: ignore[arg-type]
    assert peak_learning_rate(config, 1024) == 0.5 * factor


def _by_parameter(groups: list[dict], key: str) -> dict[int, float]:
    return {id(p): group.get(key, 1.0) for group in groups for p in group["params"]}


def test_weight_decay_as_timm() -> None:
    model = toy()
    ours = parameter_groups(model, 0.05)
    timms = param_groups_weight_decay(model, 0.05, no_weight_decay_list=["encoder.position"])
    assert _by_parameter(ours, "weight_decay") == _by_parameter(timms, "weight_decay")
    assert all(p.requires_grad for group in ours for p in group["params"])


def test_layer_decay_of_the_encoder_as_timm_and_head_at_full_rate() -> None:
    model = toy()
    ours = _by_parameter(parameter_groups(model, 0.05, layer_decay=0.5), "lr_scale")
    timms = param_groups_layer_decay(model.encoder, 0.05, layer_decay=0.5)
    expected = _by_parameter(timms, "lr_scale") | {id(p): 1.0 for p in model.head.parameters()}
    assert ours == expected
    assert sorted(set(ours.values())) == [0.25, 0.5, 1.0]


def test_layer_decay_reaches_the_optimizer() -> None:
    model = toy()
    optimizer = build_optimizer(model, OptimConfig(learning_rate=1.0, layer_decay=0.5), 256)
    set_learning_rate(optimizer, 0.1)
    rates = _by_parameter(optimizer.param_groups, "lr")
    assert rates[id(model.encoder.stem.weight)] == pytest.approx(0.025)
    assert rates[id(model.head.bias)] == pytest.approx(0.1)


def test_adamw_step_is_torchs() -> None:
    config = OptimConfig(learning_rate=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    ours, reference = toy(dropout=0.0), toy(dropout=0.0)
    optimizer = build_optimizer(ours, config, 256)
    decayed = [p for p in reference.parameters() if p.ndim > 1 and p.requires_grad]
    position = reference.encoder.position
    plain = [p for p in reference.parameters() if p.ndim <= 1 and p.requires_grad] + [position]
    decayed = [p for p in decayed if p is not position]
    torchs = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.9),
    )
    batch = {"clips": torch.randn(4, 6), "target": torch.randn(4, 3)}
    for _ in range(3):
        for model, opt in ((ours, optimizer), (reference, torchs)):
            opt.zero_grad()
            model(batch).loss.backward()
            opt.step()
    for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


class Linear(Objective):
    """An objective of one layer without declarations."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)


def test_lars_first_step_by_hand() -> None:
    objective = Linear(3, 2)
    model = objective.linear
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = build_optimizer(
        objective, OptimConfig(name="lars", learning_rate=0.3, weight_decay=0.01), 256
    )
    model(torch.ones(1, 3)).sum().backward()
    gradient = model.weight.grad.clone()
    optimizer.step()
    trust = 0.001 * weight.norm() / (gradient.norm() + 0.01 * weight.norm() + 1e-8)
    torch.testing.assert_close(model.weight, weight - 0.3 * trust * (gradient + 0.01 * weight))
    torch.testing.assert_close(model.bias, bias - 0.3 * torch.ones(2))


def test_lars_is_the_one_of_lightly() -> None:
    objective, reference = Linear(3, 2), Linear(3, 2)
    reference.load_state_dict(objective.state_dict())
    config = OptimConfig(name="lars", learning_rate=0.3, weight_decay=0.01)
    optimizer = build_optimizer(objective, config, 256)
    groups = parameter_groups(reference, 0.01)
    theirs = LARS(groups, lr=0.3, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model, each in ((objective, optimizer), (reference, theirs)):
            each.zero_grad()
            model.linear(x).square().sum().backward()
            each.step()
    for own, other in zip(objective.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"min_ratio": 2.0}, "min_ratio"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_values_out_of_range_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OptimConfig(**{"warmup_steps": 0, **change}).check()


def test_layer_decay_without_layers_is_refused() -> None:
    with pytest.raises(RunError, match="group_matcher"):
        parameter_groups(Linear(2, 2), 0.1, layer_decay=0.5)
