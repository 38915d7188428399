"""Jobs at intervals beside training, such as probes and figures. They do not change training."""

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
    """The state of a run at which a periodic job is called, on every process.

    Attributes:
        step: optimisation steps done.
        model: the wrapped objective, in eval mode.
        run_dir: the run's directory.
        accelerator: knows device and processes.
        host: exchanges numbers and tensors of the CPU between processes.
        progress: the progress bar; ``progress.write(line)`` prints above it.
        export: writes the model as it is now to a directory; every process must call it.
        end: ends the run after this step as if it were the last one; takes the reason, which is
            printed and saved in the checkpoint. Every process must call it, or none.
        warming_up: whether the learning rate still rises.
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
        """Call a method of the objective other than ``forward``, under DDP and FSDP2 too."""
        # Imported here, since it loads accelerate, for which --help need not wait.
        from ssl_vivit.training.processes import call

        return call(self.accelerator, self.model, method, *args)


@dataclass(frozen=True)
class Periodic:
    """A job and the steps at which it runs.

    It runs on every process, without gradients, and the random generators are put back after it,
    so a run with it trains to the same bits as one without.

    Args:
        every: steps between calls.
        run: the job; the numbers that it returns are logged under their names.
        at_start: also before the first step of a run (not when a run is continued).
        at_end: also after the last step.
        on_bar: names of numbers that stay beside the loss on the progress bar.
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
