"""Save the state of a run in checkpoints, restore it, and export the model."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from ssl_vivit import command
from ssl_vivit.errors import RunError
from ssl_vivit.objectives.contract import Objective
from ssl_vivit.training import random_state
from ssl_vivit.training.checkpoints.files import (
    prune,
    read_checkpoint,
    read_generators,
    write_checkpoint,
)
from ssl_vivit.training.checkpoints.state import (
    TrainingState,
    gather_state,
    gather_weights,
    scatter_state,
)
from ssl_vivit.training.checkpoints.writer import CheckpointWriter
from ssl_vivit.training.config import TrainingConfig, to_plain
from ssl_vivit.training.optim import peak_learning_rate
from ssl_vivit.training.processes import Host


class RunCheckpoints:
    """The checkpoints of a run.

    A thread of the main process writes a checkpoint while training continues. All processes must
    call every method, except :meth:`raise_failure` and :meth:`close`.

    Args:
        run_dir: the run's directory.
        config: settings of training.
        card: entries that the caller adds to the model card of exports, such as the data.
        model: the wrapped objective.
        optimizer: its wrapped optimiser.
        exporter: copy of the objective by :func:`copy_on_host`, which exports the saved weights;
            used on the main process.
        accelerator: the run's Accelerator.
        host: exchanges values between the processes.
        newest: checkpoint that the run continues from, or None.

    Attributes:
        newest: the newest complete checkpoint, or None.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainingConfig,
        card: dict[str, Any],
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        exporter: Objective,
        accelerator: Accelerator,
        host: Host,
        newest: Path | None,
    ) -> None:
        self._run_dir, self._config, self._given_card = run_dir, config, card
        self._model, self._optimizer = model, optimizer.optimizer
        self._exporter, self._scaler, self._host = exporter, accelerator.scaler, host
        self._writer = CheckpointWriter()
        self.newest = newest

    def save(self, step: int, ended: str | None, flush: Callable[[], None]) -> None:
        """Copy the state of the run to the host, and begin to write it.

        Args:
            step: number of optimisation steps done.
            ended: reason why a periodic job ended the run after this step, or None.
            flush: function that the thread calls first; it writes the run's metrics to disk.
        """
        self.join()
        state = gather_state(self._model, self._optimizer)
        tensors, values = random_state.capture()
        bytes_of = {name: tensor.tolist() for name, tensor in tensors.items()}
        generators = self._host.gather({"tensors": bytes_of, "values": values})
        facts, card = self._facts(step, ended), self._card(step)

        def write() -> str:
            flush()
            self._exporter.load_state_dict(state.model)
            path = write_checkpoint(
                self._run_dir / "checkpoints",
                step,
                state,
                facts,
                generators,
                lambda directory: self._exporter.export(directory, training=card),  # type: ignore[operator]
                self._exporter.export_name,
            )
            prune(path, self._config.keep_checkpoints)
            return str(path)

        if self._host.is_main:
            self._writer.start(write)

    def join(self) -> None:
        """Wait for the checkpoint that is being written, if any.

        Raises:
            RunError: on all processes, if the checkpoint cannot be written.
        """
        written = self._host.from_main(self._writer.join)
        if written is not None:
            self.newest = Path(written)

    def raise_failure(self) -> None:
        """Raise the error of the thread if it has failed already; do not wait for it."""
        self._writer.raise_failure()

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and end the thread."""
        self._writer.close()

    def restore(self, path: Path, say: Callable[[str], None]) -> str | None:
        """Continue from a checkpoint, which the main process reads and sends to the others.

        Args:
            path: the checkpoint.
            say: function called with a message if precision or number of processes have changed.

        Returns:
            The reason why a periodic job ended the run after this checkpoint, or None.

        Raises:
            RunError: if the checkpoint is damaged or of another model.
        """
        state = TrainingState({}, {}, {})

        def read() -> dict[str, Any]:
            nonlocal state
            state, facts = read_checkpoint(path)
            alike = facts["world_size"] == self._host.world_size
            ranks = range(self._host.world_size) if alike else ()
            generators = [read_generators(path, rank) for rank in ranks]
            return {"facts": facts, "groups": state.groups, "generators": generators}

        try:
            said = self._host.from_main(read)
            facts, generators = said["facts"], said["generators"]
            state = TrainingState(
                self._host.tensors_of_main(state.model),
                self._host.tensors_of_main(state.optimizer),
                said["groups"],
            )
            ended: str | None = facts.get("ended")
            scatter_state(self._model, self._optimizer, state)
            before, now = facts.get("precision"), self._config.precision
            if before not in (None, now):
                say(f"{path.name} was trained in {before}, training continues in {now}")
            if self._scaler is not None and facts["grad_scaler"]:
                self._scaler.load_state_dict(facts["grad_scaler"])
            if generators:
                own = generators[self._host.rank]
                bytes_of = own["tensors"].items()
                tensors = {name: torch.tensor(b, dtype=torch.uint8) for name, b in bytes_of}
                random_state.restore(tensors, own["values"])
            else:
                say(
                    f"{path.name} was saved by {facts['world_size']} processes, now there are "
                    f"{self._host.world_size}: samples keep their order, random generators are "
                    "seeded anew"
                )
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"checkpoint {path} cannot be read ({error}); remove it to continue from an earlier one"
            ) from error
        return ended

    def export(self, directory: Path, step: int) -> None:
        """Export the current model; under FSDP2, gather its weights first.

        Raises:
            RunError: on all processes, if the directory cannot be written.
        """
        # The thread uses the exporter too.
        self.join()
        weights = gather_weights(self._model)

        def write() -> None:
            self._exporter.load_state_dict(weights)
            try:
                self._exporter.export(directory, training=self._card(step))
            except OSError as error:
                raise RunError(f"{directory} cannot be written: {error.strerror}") from error

        self._host.from_main(write)

    def _facts(self, step: int, ended: str | None) -> dict[str, Any]:
        config = self._config
        return {
            "data": {"next_step": step, "samples": step * config.total_batch_size},
            "schedule": {
                "peak_learning_rate": peak_learning_rate(config.optimizer, config.total_batch_size),
                "steps": config.steps,
                **to_plain(config.optimizer),
            },
            "seed": config.seed,
            "ended": ended,
            "world_size": self._host.world_size,
            "total_batch_size": config.total_batch_size,
            "accumulation": config.accumulation,
            "precision": config.precision,
            "grad_scaler": None if self._scaler is None else self._scaler.state_dict(),
            "versions": _versions(),
        }

    def _card(self, step: int) -> dict[str, Any]:
        return {
            **self._given_card,
            **({} if command.started_by is None else {"command": command.started_by}),
            "seed": self._config.seed,
            "steps": step,
            "total_batch_size": self._config.total_batch_size,
            "versions": _versions(),
        }


def copy_on_host(objective: Objective) -> Objective:
    """Copy an objective to the CPU.

    Raises:
        RunError: if it holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(objective).cpu()
    except (TypeError, RuntimeError) as error:
        raise RunError(
            f"{type(objective).__name__} cannot be copied ({error}), but fit exports from a copy "
            "during training: keep locks, open files, generators and tensors with a gradient "
            "history out of the objective"
        ) from error


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results."""
    packages = ("ssl_vivit", "torch", "timm", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
