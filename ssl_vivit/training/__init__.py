"""Training: one loop for all objectives, one directory for a run."""

from ssl_vivit.training.command_line import parse, run
from ssl_vivit.training.config import TrainingConfig, to_plain
from ssl_vivit.training.errors import RunError
from ssl_vivit.training.loop import FitResult, fit
from ssl_vivit.training.optim import OptimConfig
from ssl_vivit.training.periodic import Moment, Periodic

__all__ = [
    "FitResult",
    "Moment",
    "OptimConfig",
    "Periodic",
    "RunError",
    "TrainingConfig",
    "fit",
    "parse",
    "run",
    "to_plain",
]
