"""Base class of objectives, with every method that :func:`ssl_vivit.training.fit` calls on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ssl_vivit.errors import RunError


class Step(NamedTuple):
    """The result of one forward pass of an objective.

    Attributes:
        loss: scalar, to be minimised; differentiable.
        metrics: name → detached scalar; the loop averages them over processes and logs them
            as ``train/<name>`` every ``training.log_every`` steps. The names are those of all
            processes and micro-batches of the step.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Objective(nn.Module):
    """Base class of objectives: a batch in, a :class:`Step` out.

    An objective defines ``forward`` and ``export``; everything else that ``fit`` calls has a default
    here. ``fit`` also takes a module of another class that defines both, see :func:`as_objective`.

    Attributes:
        export_name: name of the exported directory inside the run and its checkpoints.
        least_micro_batch: samples that a micro-batch, gathered from all processes, must hold.
        logs_step: whether the metrics of this step are logged. ``fit`` sets it before each step. An
            objective may leave out metrics that cost time while it is false.
    """

    export_name = "encoder"
    least_micro_batch = 1
    logs_step = True

    def forward(self, batch: dict[str, Any]) -> Step:
        """Loss and metrics of a batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(batch)")

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Write the model that the run is for (weights, config, model card) to ``directory``.

        ``fit`` calls it on a copy of the objective on the CPU, made before the first step, into
        which it loads the weights and buffers of the moment; perhaps on another thread.

        Args:
            directory: where to; its parent exists.
            training: facts for the model card (data, steps, versions).
        """
        raise NotImplementedError(f"{type(self).__name__} defines no export(directory, training=…)")

    def begin_step(self, step: int) -> None:
        """Called before each optimisation step with the number of steps done."""

    def to_compile(self) -> nn.Module:
        """The part that ``training.compile`` compiles; by default ``encoder``, or all without one."""
        return dict(self.named_children()).get("encoder", self)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, beside vectors and what parts name themselves."""
        return set()

    def learning_rate_shares(self) -> dict[str, float]:
        """Parameter → factor on its learning rate, where that is not 1."""
        return {}

    def first_steps(self) -> dict[str, int]:
        """Parameter → step at which it joins training, where that is not 0; it warms up from then."""
        return {}


def as_objective(module: nn.Module) -> Objective:
    """Give a module that defines ``forward`` and ``export`` the defaults of :class:`Objective`.

    The module itself gets a class that derives from its own and from :class:`Objective`, so the names
    of its parameters stay.

    Raises:
        RunError: for a module without ``export``.
    """
    if isinstance(module, Objective):
        return module
    own = type(module)
    if not isinstance(module, nn.Module) or not hasattr(own, "export"):
        raise RunError(
            f"{own.__name__} is no objective; derive it from ssl_vivit.objectives.Objective and "
            "define forward(batch) and export(directory, training=…)"
        )
    module.__class__ = type(own.__name__, (own, Objective), {})
    assert isinstance(module, Objective)
    return module


@runtime_checkable
class WithoutDecay(Protocol):
    """A part that names its parameters without weight decay, as timm's models do."""

    def no_weight_decay(self) -> set[str]: ...


@runtime_checkable
class Layered(Protocol):
    """A part that tells layer-wise learning-rate decay its layers, as timm's models do."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]: ...


@runtime_checkable
class Blocks(Protocol):
    """A part that names the classes of the blocks that FSDP shards, as transformers' models do."""

    _no_split_modules: Sequence[str]
