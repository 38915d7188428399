"""What a person can set about a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import PurePath
from typing import Any, Literal

from ssl_vivit.errors import RunError
from ssl_vivit.training.optim import OptimConfig


@dataclass
class TrainingConfig:
    """How long, how fast and where to train.

    Args:
        run_dir: the run's directory; by default runs/<name of the recipe>.
        steps: optimisation steps.
        total_batch_size: samples per optimisation step, over all processes and accumulation.
        accumulation: micro-batches per process and step; their gradients are averaged.
        precision: auto is bf16 on GPUs that have it, else fp32; fp16 needs a GPU and scales the loss.
        clip_grad_norm: largest norm of all gradients together; null leaves them as they are.
        compile: torch.compile the encoder.
        optimizer: optimiser and learning-rate schedule.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep_checkpoints: how many of the newest checkpoints stay; 0 keeps all.
        resume: never starts anew, auto continues from the run's newest whole checkpoint if there is
            one, a path continues from that checkpoint.
        log_every: steps between lines of metrics.jsonl and the tracker.
        tracker: wandb logs offline where no account is set up; none logs to metrics.jsonl alone.
        project: the tracker's project.
        seed: seed of what training draws, dropout for one.
    """

    run_dir: str | None = None
    steps: int = 10_000
    total_batch_size: int = 64
    accumulation: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    clip_grad_norm: float | None = 1.0
    compile: bool = False
    optimizer: OptimConfig = field(default_factory=OptimConfig)
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 3
    resume: str = "never"
    log_every: int = 10
    tracker: Literal["wandb", "none"] = "wandb"
    project: str = "ssl_vivit"
    seed: int = 0

    def check(self) -> None:
        """Refuse values that no run can have.

        Raises:
            RunError: naming the first such setting and what it may be.
        """
        for name in ("steps", "total_batch_size", "accumulation", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise RunError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep_checkpoints < 0:
            raise RunError(
                f"training.keep_checkpoints is {self.keep_checkpoints}; it must be at least 0 (0 keeps all)"
            )
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise RunError(
                f"training.clip_grad_norm is {self.clip_grad_norm}; it must be above 0, or null for none"
            )
        self.optimizer.check()


def to_plain(config: Any) -> Any:
    """A config dataclass as the dicts, lists, numbers and strings that YAML and JSON know."""
    if is_dataclass(config) and not isinstance(config, type):
        return {entry.name: to_plain(getattr(config, entry.name)) for entry in fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    if isinstance(config, PurePath):
        return str(config)
    return config
