"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from ssl_vivit.errors import RunError
from ssl_vivit.objectives.contract import Layered, Objective, WithoutDecay
from ssl_vivit.training.config import OptimConfig

REFERENCE_BATCH = 256


def peak_learning_rate(config: OptimConfig, total_batch_size: int) -> float:
    """Return the learning rate after warm-up for a batch size (Goyal et al. 2017, section 2.1)."""
    ratio = total_batch_size / REFERENCE_BATCH
    scale = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.scaling]
    return config.learning_rate * scale


def schedule_factor(config: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate at a step as a fraction of its peak.

    The factor depends only on the step, so that a resumed run needs no schedule state.

    Args:
        config: the optimiser's settings.
        step: number of steps done before this one, 0 ≤ step < steps.
        steps: number of steps of the whole run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / (steps - config.warmup_steps)
    return config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(
    optimizer: Optimizer, learning_rate: float, *, step: int = 0, warmup_steps: int = 0
) -> None:
    """Set the learning rate of each parameter group to ``learning_rate`` times ``lr_scale``.

    A group with ``first_step`` above 0 has rate 0 before that step and then its own linear warm-up.

    Args:
        optimizer: an optimiser of :func:`build_optimizer`.
        learning_rate: learning rate of a group whose ``lr_scale`` is 1.
        step: number of steps done before this one.
        warmup_steps: length of the warm-up of a group with ``first_step``.
    """
    for group in optimizer.param_groups:
        share = group["lr_scale"]
        if group["first_step"]:
            share *= min(1.0, max(0, step - group["first_step"] + 1) / max(1, warmup_steps))
        group["lr"] = learning_rate * share


def build_optimizer(
    objective: Objective, config: OptimConfig, total_batch_size: int, *, fused: bool = False
) -> Optimizer:
    """Build timm's AdamW or LARS over :func:`parameter_groups`.

    Args:
        objective: the objective whose parameters are trained.
        config: the optimiser's settings.
        total_batch_size: samples in an optimisation step.
        fused: update all parameters in a few GPU kernels; results differ by rounding.

    Raises:
        RunError: if no parameter of the objective is trainable.
    """
    groups = parameter_groups(objective, config.weight_decay, config.layer_decay)
    if not groups:
        raise RunError(
            "no parameter of the objective is trainable; set requires_grad on at least one"
        )
    learning_rate = peak_learning_rate(config, total_batch_size)
    if config.name == "lars":
        return create_optimizer_v2(
            groups,
            opt="lars",
            lr=learning_rate,
            momentum=0.9,
            weight_decay=config.weight_decay,
            eps=1e-8,
        )
    adamw: dict[str, Any] = {"betas": tuple(config.betas)} | ({"fused": True} if fused else {})
    return create_optimizer_v2(groups, opt="adamw", lr=learning_rate, **adamw)


def parameter_groups(
    objective: Objective, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Group trainable parameters by weight decay, learning-rate factor and first training step.

    Vectors and scalars (biases, norms) have no weight decay, and neither have the parameters named
    by ``no_weight_decay()`` of the objective or of its submodules. If ``layer_decay`` is below 1,
    the parameters of the first submodule that is :class:`Layered` get timm's layer-wise factors.
    All other parameters, such as the head, have factor 1. These factors are multiplied by those of
    the objective's ``learning_rate_shares()``. The objective's ``first_steps()`` gives the
    step before which a parameter is not updated.

    Returns:
        Parameter groups with ``weight_decay``, ``lr_scale`` (the learning-rate factor) and
        ``first_step``.

    Raises:
        RunError: if ``layer_decay`` is below 1 and no submodule is :class:`Layered`.
    """
    exempt = {
        _join(prefix, name)
        for prefix, part in objective.named_modules()
        if isinstance(part, WithoutDecay)
        for name in part.no_weight_decay()
    }
    shares = _layer_shares(objective, layer_decay)
    factors, starts = objective.learning_rate_shares(), objective.first_steps()
    groups: dict[tuple[bool, float, int], dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
        share = shares.get(name, 1.0) * factors.get(name, 1.0)
        start = starts.get(name, 0)
        settings = {
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": share,
            "first_step": start,
        }
        group = groups.setdefault((decays, share, start), {"params": [], **settings})
        group["params"].append(parameter)
    return list(groups.values())


def _layer_shares(objective: nn.Module, layer_decay: float) -> dict[str, float]:
    if layer_decay == 1:
        return {}
    for prefix, part in objective.named_modules():
        if isinstance(part, Layered):
            matcher = part.group_matcher(coarse=False)
            layers = group_parameters(objective.get_submodule(prefix), matcher, reverse=True)
            top = max(layers.values())
            return {
                _join(prefix, name): layer_decay ** (top - layer) for name, layer in layers.items()
            }
    raise RunError(
        "training.optimizer.layer_decay is below 1, but the model has no group_matcher method; "
        "set layer_decay to 1"
    )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
