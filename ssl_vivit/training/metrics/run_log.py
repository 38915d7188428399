"""The progress bar of a run, and the metrics that it logs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ssl_vivit.training.config import TrainingConfig
from ssl_vivit.training.metrics.step_metrics import StepMetrics
from ssl_vivit.training.metrics.tracking import Tracking
from ssl_vivit.training.processes import Host
from ssl_vivit.training.speed.throughput import Throughput
from ssl_vivit.training.speed.utilisation import Utilisation, peak_flops


class RunLog:
    """Logs the metrics of a run, and shows a progress bar on the main process.

    Args:
        run_dir: the run's directory.
        config: settings of training.
        run_config: the recipe's full resolved config, shown by the tracker.
        first_step: step that the run starts or continues from.
        accelerator: the run's Accelerator.
        host: exchanges values between the processes.

    Attributes:
        metrics: the last logged value of each metric.
        progress: the progress bar.
        throughput: measures clips per second and the wait for data.
        utilisation: measures model FLOPs utilisation.

    Raises:
        RunError: on all processes, if the tracker cannot be started.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainingConfig,
        run_config: dict[str, Any],
        first_step: int,
        accelerator: Accelerator,
        host: Host,
    ) -> None:
        self._config, self._world_size = config, host.world_size
        self._device = accelerator.device
        self._tracking: Tracking | None = None

        def start_tracking() -> None:
            self._tracking = Tracking(
                run_dir, config.tracker, config.project, run_config, first_step=first_step
            )

        host.from_main(start_tracking)
        self.metrics: dict[str, float] = {}
        self._on_bar: dict[str, str] = {}
        self.progress = tqdm(
            total=config.steps,
            initial=first_step,
            desc=run_dir.name,
            unit="step",
            disable=not host.is_main,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
        )
        self.throughput = Throughput()
        self.utilisation = Utilisation(peak_flops(device_name(self._device), config.precision))

    def due(self, step: int) -> bool:
        """Return whether the metrics of a step are logged."""
        return step % self._config.log_every == 0 or step in (1, self._config.steps)

    def add(self, record: StepMetrics, loss: float, norm: float, metrics: dict[str, float]) -> None:
        """Advance the progress bar by a finished step, and log the step's metrics if they are due.

        Args:
            record: number, learning rate and number of clips of the step.
            loss: loss, averaged over micro-batches and processes.
            norm: total norm of the gradients.
            metrics: the objective's metrics, averaged over processes.
        """
        self.throughput.add(record.clips * self._world_size)
        self.progress.update(record.step - self.progress.n)
        if not self.due(record.step):
            return
        speed = self.throughput.read()
        self.show(loss=f"{loss:.4f}", clips_per_s=f"{speed.clips_per_second:.1f}")
        values = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/lr": record.learning_rate,
            "train/clips_per_second": speed.clips_per_second,
            "train/data_wait": speed.data_wait,
            **{f"train/{name}": value for name, value in metrics.items()},
        }
        if self._device.type == "cuda":
            values["system/gpu_memory"] = torch.cuda.max_memory_allocated() / 2**30
        share = self.utilisation.share(speed.clips_per_second / self._world_size)
        if share is not None:
            values["system/mfu"] = share
        self.log(record.step, values)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log metrics of a step.

        Args:
            step: number of the step, from 1; 0 for metrics before the first step.
            values: values of the metrics by name.
        """
        self.metrics |= values
        if self._tracking is not None:
            self._tracking.log(step, values)

    def show(self, **values: str) -> None:
        """Show values on the progress bar, in addition to values from earlier calls."""
        self._on_bar |= values
        self.progress.set_postfix(self._on_bar, refresh=False)

    def flush(self) -> None:
        """Write all logged metrics to disk, so that they survive a crash of the machine."""
        if self._tracking is not None:
            self._tracking.flush()

    def close(self) -> None:
        """End the progress bar and the tracker."""
        self.progress.close()
        if self._tracking is not None:
            self._tracking.close()


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or ``"cpu"``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
