"""Training: one loop for all objectives, one directory for a run."""

from ssl_vivit.errors import RunError
from ssl_vivit.training.command_line import parse, run, with_lists
from ssl_vivit.training.config import TrainingConfig, to_plain
from ssl_vivit.training.loop import FitResult, fit
from ssl_vivit.training.optim import OptimConfig
from ssl_vivit.training.periodic import Moment, Periodic
from ssl_vivit.training.processes import join_processes

__all__ = [
    "FitResult",
    "Moment",
    "OptimConfig",
    "Periodic",
    "RunError",
    "TrainingConfig",
    "fit",
    "join_processes",
    "parse",
    "run",
    "to_plain",
    "with_lists",
]
