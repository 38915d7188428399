"""Base class of objectives, with all methods that :func:`ssl_vivit.training.fit` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ssl_vivit.errors import RunError


class Step(NamedTuple):
    """Result of one forward pass of an objective.

    Attributes:
        loss: differentiable scalar to be minimised.
        metrics: detached scalars by name. The training loop averages metrics over processes and
            logs them as ``train/<name>`` every ``training.log_every`` steps. All processes and
            micro-batches of a step must have metrics of the same names.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Objective(nn.Module):
    """Base class of objectives, which compute a :class:`Step` from a batch.

    A subclass must define ``forward`` and ``export``. All other methods that ``fit`` calls have
    defaults. ``fit`` also accepts a module of another class that defines both; see
    :func:`as_objective`.

    Attributes:
        export_name: name of the exported directory inside the run and its checkpoints.
        least_micro_batch: smallest number of samples in a micro-batch, summed over all processes.
        logs_step: whether the metrics of this step are logged. ``fit`` sets it before each step. If
            it is false, an objective may leave out metrics that take time.
    """

    export_name = "encoder"
    least_micro_batch = 1
    logs_step = True

    def forward(self, batch: dict[str, Any]) -> Step:
        """Compute loss and metrics of a batch."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(batch)")

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Export the trained model (weights, config and model card) to a directory.

        ``fit`` calls this method on a copy of the objective on the CPU, possibly on another thread.
        The copy is made before the first step, and gets the current weights and buffers before each
        call.

        Args:
            directory: directory to write; its parent exists.
            training: entries of the model card about the training run, such as its data, its number
                of steps, and versions of packages.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define export(directory, training=…)"
        )

    def begin_step(self, step: int) -> None:
        """Prepare an optimisation step; ``step`` is the number of completed steps."""

    def to_compile(self) -> nn.Module:
        """Return the module to compile: ``encoder`` if there is one, else the whole objective."""
        return dict(self.named_children()).get("encoder", self)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay.

        Parameters with fewer than two dimensions, and those that ``no_weight_decay`` of a submodule
        returns, have no weight decay even if they are missing here.
        """
        return set()

    def learning_rate_shares(self) -> dict[str, float]:
        """Return factors of the learning rate by parameter name.

        Parameters that are missing here have factor 1.
        """
        return {}

    def first_steps(self) -> dict[str, int]:
        """Return the optimisation step at which training of a parameter starts, by parameter name.

        From this step on, the learning rate of the parameter is warmed up. Parameters that are
        missing here are trained from step 0.
        """
        return {}


def as_objective(module: nn.Module) -> Objective:
    """Add the defaults of :class:`Objective` to a module that defines ``forward`` and ``export``.

    The class of the module is replaced by one that derives from its own class and from
    :class:`Objective`. The names of its parameters do not change.

    Raises:
        RunError: if the module has no ``export``.
    """
    if isinstance(module, Objective):
        return module
    own = type(module)
    if not isinstance(module, nn.Module) or not hasattr(own, "export"):
        raise RunError(
            f"{own.__name__} is not an objective; derive it from ssl_vivit.objectives.Objective "
            "and define forward(batch) and export(directory, training=…)"
        )
    module.__class__ = type(own.__name__, (own, Objective), {})
    assert isinstance(module, Objective)
    return module


@runtime_checkable
class WithoutDecay(Protocol):
    """Protocol of modules that return names of parameters without weight decay, as in timm."""

    def no_weight_decay(self) -> set[str]: ...


@runtime_checkable
class Layered(Protocol):
    """Protocol of modules that return layers for layer-wise learning-rate decay, as in timm."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]: ...


@runtime_checkable
class Blocks(Protocol):
    """Protocol of modules that list the class names of blocks for FSDP, as in transformers."""

    _no_split_modules: Sequence[str]
