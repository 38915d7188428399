"""What every objective returns, and what the training loop asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Step(NamedTuple):
    """The result of one forward pass of an objective.

    Attributes:
        loss: scalar, to be minimised; differentiable.
        metrics: name → detached scalar; the loop averages them over processes and logs them
            as ``train/<name>``.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@runtime_checkable
class Objective(Protocol):
    """An ``nn.Module`` around a model: a batch in, a :class:`Step` out.

    Where it has them, the loop also heeds ``export_name``, what the exported directory is called
    ("encoder" without), and ``begin_step(step)``, called with the steps done before each one.
    """

    def __call__(self, batch: dict[str, Any]) -> Step: ...

    def export(self, directory: Path, *, training: dict[str, Any]) -> None:
        """Write the model that the run is for (weights, config, model card) to ``directory``.

        Args:
            training: facts for the model card (objective, data, steps, versions).
        """
        ...
