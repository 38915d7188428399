"""Jobs that run at intervals during training, such as probes. They do not change its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ssl_vivit.training.processes import Host


@dataclass(frozen=True)
class Moment:
    """The state of a run that is passed to a periodic job, on every process.

    Attributes:
        step: number of optimisation steps done.
        model: the wrapped objective, in eval mode.
        run_dir: the run's directory.
        accelerator: the run's Accelerator, with its device and processes.
        host: exchanges numbers and CPU tensors between processes.
        progress: the progress bar; ``progress.write(line)`` prints above it.
        export: ``export(directory)`` writes the current model; every process must call it.
        end: ``end(reason)`` ends the run after this step as if it were the last one. The reason is
            printed and saved in the checkpoint. If one process calls it, every process must.
        warming_up: True during the warm-up of the learning rate.
    """

    step: int
    model: nn.Module
    run_dir: Path
    accelerator: Accelerator
    host: Host
    progress: tqdm
    export: Callable[[Path], None]
    end: Callable[[str], None]
    warming_up: bool = False

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the objective other than ``forward``; works under DDP and FSDP2 too."""
        # Imported here, since it loads accelerate, which --help does not need.
        from ssl_vivit.training.processes import call

        return call(self.accelerator, self.model, method, *args)


@dataclass(frozen=True)
class Periodic:
    """A job and the steps at which it runs.

    The job runs on every process, without gradients. The states of the random generators are
    restored after it, so the trained weights are bit-identical to those of a run without the job.

    Args:
        every: steps between calls.
        run: the job. It returns a dictionary of metrics to be logged by name, or None.
        at_start: also run before the first step of a new run.
        at_end: also run after the last step.
        on_bar: names of metrics to show on the progress bar.
    """

    every: int
    run: Callable[[Moment], dict[str, float] | None]
    at_start: bool = False
    at_end: bool = True
    on_bar: tuple[str, ...] = ()

    def due(self, step: int, steps: int) -> bool:
        if step == 0:
            return self.at_start
        return step % self.every == 0 or (self.at_end and step == steps)
