"""Model and optimiser state as plain named tensors, whatever way the model is wrapped.

Works for a bare module, DDP and FSDP2: names and shapes are those of the bare module, so a
checkpoint does not remember how many processes wrote it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from ssl_vivit.errors import RunError


class TrainingState(NamedTuple):
    """Everything that optimisation steps change.

    Attributes:
        model: parameter or buffer name → tensor.
        optimizer: ``<parameter>/<key>`` → tensor.
        groups: JSON: the optimiser's groups with their settings and parameter names under
            ``groups``, its states that are no tensors under ``state``.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    groups: dict[str, Any]


def gather_state(model: nn.Module, optimizer: Optimizer) -> TrainingState:
    """Collect the full state on the CPU of the main process; all processes must call it.

    Returns:
        The state; on the other processes an empty one.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    per_parameter: dict[str, Any] = state.get("state", {})  # type: ignore[assignment]
    for name, entries in per_parameter.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            elif value is not None:
                values.setdefault(name, {})[key] = value
    groups = [dict(group) for group in state.get("param_groups", [])]  # type: ignore[arg-type, call-overload]
    return TrainingState(weights, tensors, {"groups": groups, "state": values})  # type: ignore[arg-type]


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's part of :func:`gather_state`; all processes must call it."""
    return get_model_state_dict(  # type: ignore[return-value]
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def scatter_state(model: nn.Module, optimizer: Optimizer, state: TrainingState) -> None:
    """Load a full state, of which every process has a copy, into model and optimiser.

    Settings of the groups (weight decay and so on) stay those of ``optimizer``.

    Raises:
        RunError: if the state is that of another model or other parameter groups.
    """
    per_parameter: dict[str, dict[str, Any]] = {
        name: dict(entries) for name, entries in state.groups["state"].items()
    }
    for name, tensor in state.optimizer.items():
        parameter, key = name.rsplit("/", 1)
        per_parameter.setdefault(parameter, {})[key] = tensor
    template = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True)
    )
    current: Any = template.get("param_groups", [])
    members = [sorted(group["params"]) for group in current]
    if members != [sorted(group["params"]) for group in state.groups["groups"]]:
        raise RunError("the checkpoint's optimiser has other parameter groups than this model")
    # A parameter that had no gradient yet has no state; strict would refuse its absence.
    options = StateDictOptions(full_state_dict=True, strict=False)
    loaded: Any = {"state": per_parameter, "param_groups": current}
    set_optimizer_state_dict(model, optimizer, loaded, options=options)
    _forget_states_of_others(model, optimizer, set(per_parameter))
    try:
        set_model_state_dict(
            model, dict(state.model), options=StateDictOptions(full_state_dict=True)
        )
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise RunError(
            f"the checkpoint is of another model: {' '.join(first[1:2] or first)}"
        ) from None


def _forget_states_of_others(model: nn.Module, optimizer: Optimizer, names: set[str]) -> None:
    """Drop the zero states that loading gives to parameters which the checkpoint has none for."""
    for name, parameter in model.named_parameters():
        if name.removeprefix("module.") not in names:
            optimizer.state.pop(parameter, None)
