"""Collect the full state of training from all processes, and load it into them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ssl_vivit.errors import RunError


class TrainingState(NamedTuple):
    """Everything that optimisation steps change.

    Attributes:
        model: parameters and buffers of the model by name.
        optimizer: tensors of the optimiser's state. The keys are ``<parameter name>/<key of the
            state>``, such as ``head.weight/exp_avg``.
        groups: JSON object with two entries. ``groups`` lists the optimiser's parameter groups with
            their settings and parameter names. ``state`` has the optimiser states that are no
            tensors.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    groups: dict[str, Any]


def gather_state(model: nn.Module, optimizer: Optimizer) -> TrainingState:
    """Copy the full state to the host memory of the main process. All processes must call this.

    The copies share no memory with model and optimiser, so training can continue at once.

    Returns:
        The state with contiguous tensors; an empty state on the other processes.
    """
    # Imported where it is used: it takes half as long to load as torch itself.
    from torch.distributed.checkpoint import state_dict

    options = _full(model)
    weights = state_dict.get_model_state_dict(model, options=options)
    state = state_dict.get_optimizer_state_dict(model, optimizer, options=options)
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return TrainingState({}, {}, {})
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
    return TrainingState(
        copies_on_host(weights),  # type: ignore[arg-type]
        copies_on_host(tensors),
        {"groups": groups, "state": values},
    )


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """Collect the weights on the main process. All processes must call this.

    Returns:
        Parameters and buffers by name. Without sharding these are the tensors of the model itself,
        not copies.
    """
    from torch.distributed.checkpoint import state_dict

    return state_dict.get_model_state_dict(model, options=_full(model))  # type: ignore[return-value]


def copies_on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to host memory; copies of GPU tensors are in pinned memory.

    Copies to pinned memory are fast, and the host waits only once, for all of them.
    """
    copies = {}
    for name, tensor in tensors.items():
        copy = torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda"
        )
        copies[name] = copy.copy_(tensor, non_blocking=True)
    if any(tensor.device.type == "cuda" for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies


def _full(model: nn.Module) -> Any:
    """Return torch's options for a full state; FSDP2's sharded tensors go to the CPU one by one."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions
    from torch.distributed.tensor import DTensor

    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return StateDictOptions(full_state_dict=True, cpu_offload=sharded)


def scatter_state(model: nn.Module, optimizer: Optimizer, state: TrainingState) -> None:
    """Load a full state into model and optimiser. Every process must have a copy of the state.

    Settings of parameter groups, such as weight decay, stay as they are in ``optimizer``.
    Parameters that were not trained when the state was gathered may be trained now.

    Raises:
        RunError: if the state is of another model, or of parameters that are not trained now.
    """
    from torch.distributed.checkpoint import state_dict

    full = state_dict.StateDictOptions(full_state_dict=True)
    # A parameter that had no gradient yet has no state; strict would refuse its absence.
    lenient = state_dict.StateDictOptions(full_state_dict=True, strict=False)
    per_parameter: dict[str, dict[str, Any]] = {
        name: dict(entries) for name, entries in state.groups["state"].items()
    }
    for name, tensor in state.optimizer.items():
        parameter, key = name.rsplit("/", 1)
        per_parameter.setdefault(parameter, {})[key] = tensor
    template = state_dict.get_optimizer_state_dict(model, optimizer, options=full)
    current: Any = template.get("param_groups", [])
    # Names of parameters in the unwrapped objective, in the order of the optimiser.
    trained = {
        name: parameter
        for named, group in zip(current, optimizer.param_groups, strict=True)
        for name, parameter in zip(named["params"], group["params"], strict=True)
    }
    # Parameters that wait for their first step are in the groups, but have no state yet.
    if lost := sorted(per_parameter.keys() - trained.keys()):
        raise RunError(
            f"the checkpoint has optimiser states of {len(lost)} parameters that are not trained "
            f"now, such as {lost[0]}; train them again, or start a new run"
        )
    loaded: Any = {"state": per_parameter, "param_groups": current}
    state_dict.set_optimizer_state_dict(model, optimizer, loaded, options=lenient)
    for name, parameter in trained.items():
        if name not in per_parameter:  # Loading filled the missing state with zeros.
            optimizer.state.pop(parameter, None)
        elif not optimizer.state.get(parameter):
            raise RunError(
                f"the checkpoint's optimiser state of {name} could not be loaded; remove the "
                "checkpoint to continue from an earlier one"
            )
    try:
        state_dict.set_model_state_dict(model, dict(state.model), options=full)
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise RunError(
            f"the checkpoint is of another model: {' '.join(first[1:2] or first)}"
        ) from None
