"""Settings of a training run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from ssl_vivit.settings import check_least


@dataclass
class OptimConfig:
    """The optimiser and its learning rate over time.

    Args:
        name: adamw (Loshchilov & Hutter 2019) or lars (You et al. 2017) with momentum 0.9.
        learning_rate: peak learning rate at total_batch_size 256; ``scaling`` adapts it to other
            sizes.
        scaling: how the learning rate grows with total_batch_size / 256: in proportion (linear),
            with its square root (sqrt), or not at all (none).
        weight_decay: decay of weight matrices; norms, biases, positions and tokens have none.
        betas: decay rates of AdamW's two moment estimates; lars ignores them.
        layer_decay: ratio of a layer's learning rate to that of the next layer (Clark et al.
            2020); 1 gives all layers the full rate.
        warmup_steps: steps over which the learning rate rises linearly to its peak.
        schedule: after warm-up, cosine falls to min_ratio of the peak at the last step; constant
            stays at the peak.
        min_ratio: final learning rate of the cosine schedule, as a fraction of the peak.
    """

    name: Literal["adamw", "lars"] = "adamw"
    learning_rate: float = 5e-4
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0
    warmup_steps: int = 500
    schedule: Literal["cosine", "constant"] = "cosine"
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check that all values are in their range.

        Raises:
            ValueError: if a value is out of range; the message names the setting and its range.
        """
        group = "training.optimizer."
        check_least(self, group, warmup_steps=0, learning_rate=0, weight_decay=0)
        if not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"training.optimizer.layer_decay is {self.layer_decay}; it must lie in (0, 1]"
            )
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(
                f"training.optimizer.min_ratio is {self.min_ratio}; it must lie in [0, 1]"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.optimizer.betas are {self.betas}; each must lie in [0, 1)")


@dataclass
class TrainingConfig:
    """Settings of a training run: length, batch, precision, directory.

    Args:
        run_dir: the run's directory; null is runs/<name of the recipe>.
        steps: number of optimisation steps.
        total_batch_size: samples per optimisation step, over all processes and accumulation.
        accumulation: micro-batches per process and step; their gradients are averaged.
        precision: auto is bf16 on GPUs that support it, else fp32; fp16 needs a GPU and scales the
            loss.
        clip_grad_norm: gradients are scaled down if their total norm is above this; null never
            scales them.
        compile: compile the encoder with torch.compile.
        optimizer: optimiser and learning-rate schedule.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        keep_checkpoints: number of newest checkpoints to keep; 0 keeps all checkpoints.
        resume: ``never`` starts a new run. ``auto`` continues from the newest complete checkpoint in
            run_dir, or starts a new run if there is none. A path continues from that checkpoint.
        profile: number of steps to profile, from the fourth step on; 0 profiles none. The time of
            each phase is printed, and a trace for ui.perfetto.dev is written to profile.json in
            run_dir.
        log_every: steps between two logged lines in metrics.jsonl and the tracker.
        tracker: wandb, which logs offline if no account is set up; none writes only metrics.jsonl.
        project: the tracker's project; null is the value of WANDB_PROJECT, or ssl_vivit if that is
            not set.
        seed: seed of the random numbers of training, such as dropout.
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
    profile: int = 0
    log_every: int = 10
    tracker: Literal["wandb", "none"] = "wandb"
    project: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check that all values are in their range.

        Raises:
            ValueError: if a value is out of range; the message names the setting and its range.
        """
        check_least(self, "training.", steps=1, total_batch_size=1, accumulation=1)
        check_least(self, "training.", checkpoint_every=1, log_every=1, keep_checkpoints=0, seed=0)
        check_least(self, "training.", profile=0)
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise ValueError(
                f"training.clip_grad_norm is {self.clip_grad_norm}; it must be above 0, or null "
                "for no clipping"
            )
        self.optimizer.check()


def run_directory(config: TrainingConfig) -> Path:
    """Return the directory of the run: ``training.run_dir``, or runs/<name of the recipe>."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("runs") / (Path(sys.argv[0]).stem or "run")


def to_plain(config: Any) -> Any:
    """Convert a config dataclass to dicts, lists, numbers and strings for YAML and JSON."""
    if is_dataclass(config) and not isinstance(config, type):
        return {entry.name: to_plain(getattr(config, entry.name)) for entry in fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    if isinstance(config, PurePath):
        return str(config)
    return config
