"""Training: one loop for all objectives, one directory for a run."""

from typing import TYPE_CHECKING

from ssl_vivit.errors import RunError
from ssl_vivit.lazy_names import lazy_names

if TYPE_CHECKING:
    from ssl_vivit.training.command_line import parse, run, with_lists, with_settings
    from ssl_vivit.training.config import OptimConfig, TrainingConfig, to_plain
    from ssl_vivit.training.loop import FitResult, check_run, fit
    from ssl_vivit.training.periodic import Moment, Periodic
    from ssl_vivit.training.processes import join_processes, locked_run

__all__ = [
    "FitResult",
    "Moment",
    "OptimConfig",
    "Periodic",
    "RunError",
    "TrainingConfig",
    "check_run",
    "fit",
    "join_processes",
    "locked_run",
    "parse",
    "run",
    "to_plain",
    "with_lists",
    "with_settings",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FitResult": "ssl_vivit.training.loop",
        "Moment": "ssl_vivit.training.periodic",
        "OptimConfig": "ssl_vivit.training.config",
        "Periodic": "ssl_vivit.training.periodic",
        "TrainingConfig": "ssl_vivit.training.config",
        "check_run": "ssl_vivit.training.loop",
        "fit": "ssl_vivit.training.loop",
        "join_processes": "ssl_vivit.training.processes",
        "locked_run": "ssl_vivit.training.processes",
        "parse": "ssl_vivit.training.command_line",
        "run": "ssl_vivit.training.command_line",
        "to_plain": "ssl_vivit.training.config",
        "with_lists": "ssl_vivit.training.command_line",
        "with_settings": "ssl_vivit.training.command_line",
    },
)
