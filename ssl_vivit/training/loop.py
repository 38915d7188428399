"""The training loop: trains an objective on batches and writes a run directory.

One iteration is one optimisation step. The processes agree through the host, not the GPUs, on
events that save or end a run (a signal, a loss that is not finite), so GPUs never wait for them.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ssl_vivit import command
from ssl_vivit.data.phases import phase
from ssl_vivit.errors import RunError, UserError
from ssl_vivit.evaluation_mode import evaluation_mode
from ssl_vivit.objectives.contract import Objective, as_objective
from ssl_vivit.training import random_state
from ssl_vivit.training.batches import Batches, Recognised, repeated, split_batch
from ssl_vivit.training.checkpoints.files import step_of
from ssl_vivit.training.checkpoints.run_checkpoints import RunCheckpoints, copy_on_host
from ssl_vivit.training.config import TrainingConfig, run_directory, to_plain
from ssl_vivit.training.launcher import resolve_settings
from ssl_vivit.training.metrics.run_log import RunLog, device_name
from ssl_vivit.training.metrics.step_metrics import StepMetrics, clips_of
from ssl_vivit.training.metrics.tracking import wandb_mode
from ssl_vivit.training.optim import (
    build_optimizer,
    peak_learning_rate,
    schedule_factor,
    set_learning_rate,
)
from ssl_vivit.training.periodic import Moment, Periodic
from ssl_vivit.training.processes import (
    Host,
    accelerator_state_kept,
    join_processes,
    locked_run,
    parts_to_compile,
    prepare,
    start_accelerator,
    synchronise_norms,
)
from ssl_vivit.training.run_directory import check_claim, open_run, place
from ssl_vivit.training.signals import Interruption
from ssl_vivit.training.speed.profile import StepProfile


@dataclass(frozen=True)
class FitResult:
    """Result of :func:`fit`.

    Attributes:
        run_dir: the run's directory.
        step: number of optimisation steps done.
        metrics: the last logged value of each metric.
        checkpoint: the newest complete checkpoint.
        encoder: directory of the exported model; None if the run has not reached its last step.
        interrupted: name of the signal that ended the run early, or None.
    """

    run_dir: Path
    step: int
    metrics: dict[str, float]
    checkpoint: Path | None
    encoder: Path | None
    interrupted: str | None


def fit(
    objective: nn.Module,
    batches: Batches | Iterable[dict[str, Any]],
    config: TrainingConfig,
    *,
    until: int | None = None,
    run_config: dict[str, Any] | None = None,
    periodic: Sequence[Periodic] = (),
    card: dict[str, Any] | None = None,
) -> FitResult:
    """Train an objective.

    SIGINT, SIGTERM and SIGUSR1 save a checkpoint and end the run: the result then has
    ``interrupted`` set, and the process may exit with status 0, since no step is lost. Until
    ``fit`` returns, no other run can write in the run's directory.

    Args:
        objective: the model and loss to train: an :class:`~ssl_vivit.objectives.Objective`, or a
            module with its ``forward`` and ``export`` methods.
        batches: a loader with ``stream`` and ``steps_per_epoch``, or an iterable of micro-batches
            that can be iterated repeatedly, such as a list.
        config: settings of training.
        until: step after which this call saves a checkpoint and returns; a later call can continue
            from there. None is ``config.steps``. The learning-rate schedule always spans
            ``config.steps``.
        run_config: the recipe's full resolved config, saved as config.yaml; None saves ``config``.
        periodic: jobs that run at intervals, such as probes.
        card: entries to add to the model card of the exported model, such as the data.

    Raises:
        RunError: if the run cannot start or go on; the message says what is wrong and what to do.
        ValueError: if a setting is out of its range.
    """
    own_class: Any = type(objective)
    objective = as_objective(objective)
    config.check()
    full_config = run_config if run_config is not None else {"training": to_plain(config)}
    with accelerator_state_kept(), ExitStack() as held, Interruption() as interruption:
        run = _Run(
            objective, batches, config, until, full_config, periodic, card or {}, held, interruption
        )
        try:
            return run.run_steps()
        finally:
            run.close()
            if type(objective).__module__ == as_objective.__module__:
                objective.__class__ = own_class  # as_objective's class cannot be pickled


def check_run(
    objective: type[Objective], config: TrainingConfig, run_config: dict[str, Any]
) -> None:
    """Check the settings of a run before its data are opened.

    The checks are those of :func:`fit` that need no data. Recipes call this function on all
    processes before they render, simulate or open data.

    Args:
        objective: class of the objective.
        config: settings of training.
        run_config: the recipe's full resolved config. When a run is continued, ``fit`` later checks
            by contents that the data are unchanged.

    Raises:
        RunError: if the run cannot start; the message says what is wrong and what to do.
        ValueError: if a setting is out of its range.
    """
    config.check()
    settled, _ = resolve_settings(config, join_processes().device)
    host = Host()
    split_batch(settled, host)
    _refuse_small_micro_batches(objective, settled)

    def check() -> None:
        if config.tracker == "wandb":
            wandb_mode()
        check_claim(config, run_config)

    host.from_main(check)


def _refuse_small_micro_batches(objective: type[Objective], config: TrainingConfig) -> None:
    least, held = objective.least_micro_batch, config.total_batch_size // config.accumulation
    if held < least:
        mend = f"raise training.total_batch_size to {least * config.accumulation} or more"
        if config.total_batch_size >= least:
            mend += ", or lower training.accumulation"
        raise RunError(
            f"{objective.__name__} needs {least} samples in a micro-batch of all processes; "
            f"training.total_batch_size {config.total_batch_size} divided by training.accumulation "
            f"{config.accumulation} is {held}: {mend}"
        )


class _Run:
    def __init__(
        self,
        objective: Objective,
        batches: Batches | Iterable[dict[str, Any]],
        config: TrainingConfig,
        until: int | None,
        run_config: dict[str, Any],
        periodic: Sequence[Periodic],
        card: dict[str, Any],
        held: ExitStack,
        interruption: Interruption,
    ) -> None:
        config, told = resolve_settings(config, join_processes().device)
        self.config, self.periodic = config, periodic
        self.last = config.steps if until is None else min(until, config.steps)
        self.interruption, self.stopping = interruption, False
        # The reason that a periodic job gave for ending the run early.
        self.ended: str | None = None
        self.accelerator = start_accelerator(config)
        self.host = Host()
        for line in told:
            self._say(line)
        if not interruption.possible:
            self._say(
                "fit runs outside of the main thread: signals do not save a checkpoint, and the "
                "program's own signal handlers are kept"
            )
        self.split = split_batch(config, self.host)
        _refuse_small_micro_batches(type(objective), config)
        if config.tracker == "wandb":
            wandb_mode()  # raises for an unknown WANDB_MODE before the run's directory is claimed
        if isinstance(batches, Batches):
            # Raises for too few samples before the run's directory is claimed.
            batches.steps_per_epoch(config.total_batch_size)
        objective = synchronise_norms(objective, self.host, self.accelerator)
        self.objective, self.export_name = objective, objective.export_name
        self.run_dir = run_directory(config)

        def claim() -> str:
            contents = batches.contents() if isinstance(batches, Recognised) else {}
            return str(open_run(config, run_config, self._say, contents) or "")

        held.enter_context(locked_run(self.run_dir))
        found = self.host.from_main(claim)
        checkpoint = Path(found) if found else None
        self.step = step_of(checkpoint) if checkpoint else 0
        if config.resume == "auto" and checkpoint is None:
            self._say(f"resume   no checkpoint in {self.run_dir}: the run starts at step 0")

        # The weights of a checkpoint are loaded into a copy on the CPU, from which a thread exports
        # while training continues.
        exporter = copy_on_host(objective) if self.host.is_main else objective
        on_gpu = self.accelerator.device.type == "cuda"
        optimizer = build_optimizer(
            objective, config.optimizer, config.total_batch_size, fused=on_gpu
        )
        if config.compile:
            for part in parts_to_compile(objective, by_block=self.accelerator.is_fsdp2):
                part.compile()
        self.forward = vars(objective).get("forward")
        self.model, self.optimizer = prepare(self.accelerator, objective, optimizer)
        random_state.seed_process(config.seed, self.step, self.host.rank)
        self.checkpoints = RunCheckpoints(
            self.run_dir, config, card, self.model, self.optimizer, exporter,
            self.accelerator, self.host, checkpoint,
        )  # fmt: skip
        if checkpoint is not None:
            self.ended = self.checkpoints.restore(checkpoint, self._say)

        device = self.accelerator.device
        if isinstance(batches, Batches):
            self.stream = batches.stream(self.split, start_step=self.step, device=device)
        else:
            self.stream = repeated(batches, self.split, self.step, device)
        self.peak = peak_learning_rate(config.optimizer, config.total_batch_size)
        # On a GPU the metrics of a step are read while the next step runs.
        self.lag = 1 if on_gpu else 0
        self.pending: deque[StepMetrics] = deque()
        self._introduce()
        self.log = RunLog(self.run_dir, config, run_config, self.step, self.accelerator, self.host)
        self.profile = StepProfile(
            self.step,
            config.profile if self.host.is_main else 0,
            device,
            self.run_dir / "profile.json",
            self._say,
        )

    def _introduce(self) -> None:
        """Print device, precision, steps and directory; warn of an unusual number of steps."""
        config, accelerator = self.config, self.accelerator
        precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
        processes = f"{self.host.world_size} processes" if self.host.world_size > 1 else "1 process"
        begun = f", from step {self.step}" if self.step else ""
        self._say(f"device   {device_name(accelerator.device)}, {precision}, {processes}")
        if (accelerator.device.type, precision) == ("cpu", "bf16") and (
            torch.backends.cpu.get_cpu_capability() == "AVX2"
        ):
            self._say("this CPU emulates bf16; --training.precision fp32 is usually faster")
        self._say(f"steps    {config.steps} of {config.total_batch_size} samples{begun}")
        self._say(f"results  {self.run_dir}")
        warmup = config.optimizer.warmup_steps
        if self.step >= config.steps:
            self._say(
                f"{self.run_dir} has done {self.step} steps, and training.steps is {config.steps}: "
                "there are no steps left to train"
            )
        elif config.steps < warmup:
            self._say(
                f"training.steps {config.steps} is fewer than training.optimizer.warmup_steps "
                f"{warmup}: the learning rate reaches {config.steps / warmup:.0%} of its peak"
            )

    def run_steps(self) -> FitResult:
        self.model.train()
        if self.step == 0:
            self._run_periodic()
        while self.step < self.last and self.ended is None:
            self.profile.begin_step(self.step)
            with phase("wait for data"), self.log.throughput.waiting():
                micro_batches, failure = self._fetch()
            with phase("logging"):
                self._read_record(self.lag, failure)
            if self.stopping:
                break
            self._advance(micro_batches)
            with phase("evaluation"):
                self._run_periodic()
            ends = self.step == self.last or self.ended is not None
            if ends or self.step % self.config.checkpoint_every == 0:
                with phase("checkpoint"):
                    self._save()
        self.profile.begin_step(self.step)
        self.profile.end()
        self._read_all_records()
        self.checkpoints.join()
        if self.ended is not None:
            self.log.progress.close()  # An open bar would overwrite the line.
            self._say(f"ended    after step {self.step} of {self.config.steps}: {self.ended}")
        elif self.step < self.config.steps:
            return self._stopped()
        return self._finished()

    def close(self) -> None:
        # Accelerate wraps forward in autocast. Unwrap it, or a later fit would keep this precision.
        vars(self.objective).pop("forward", None)
        vars(self.objective).pop("_original_forward", None)
        if self.forward is not None:
            vars(self.objective)["forward"] = self.forward
        if isinstance(self.stream, Generator):
            self.stream.close()
        self.profile.end()
        try:
            self.checkpoints.close()
        except UserError as error:  # another error has ended the run
            self._say(f"error: {error}")
        self.log.close()

    def _advance(self, micro_batches: list[dict[str, Any]]) -> None:
        """Take one optimisation step."""
        learning_rate = self.peak * schedule_factor(
            self.config.optimizer, self.step, self.config.steps
        )
        self.objective.begin_step(self.step)
        self.objective.logs_step = self.log.due(self.step + 1)
        warmup = self.config.optimizer.warmup_steps
        set_learning_rate(self.optimizer, learning_rate, step=self.step, warmup_steps=warmup)
        steps = []
        with self.log.utilisation.counting(sum(map(clips_of, micro_batches))):
            for batch in micro_batches:
                with self.accelerator.accumulate(self.model):
                    # Accelerate enters autocast itself, except for FSDP2 models.
                    with phase("forward"), self.accelerator.autocast():
                        step = self.model(batch)
                    with phase("backward"):
                        self.accelerator.backward(step.loss)
                    with phase("optimiser"):
                        if self.accelerator.sync_gradients:
                            norm = self._clip()
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                steps.append(step)
        self.step += 1
        self.pending.append(
            StepMetrics.of(self.step, steps, norm, micro_batches, learning_rate=learning_rate)
        )

    def _clip(self) -> torch.Tensor:
        from torch.distributed.tensor import DTensor  # imported here: it loads slowly

        limit = self.config.clip_grad_norm
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), float("inf") if limit is None else limit
        )
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _fetch(self) -> tuple[list[dict[str, Any]], str | None]:
        """Return a step's micro-batches and None, or an empty list and an error message.

        The error arose from the data, or from the checkpoint that this process is writing. If a
        signal ended the wait for data, the list is empty and there is no error message.
        """
        try:
            self.checkpoints.raise_failure()
            return list(islice(self.stream, self.config.accumulation)), None
        except KeyboardInterrupt:
            if self.interruption.received is None:
                raise
            return [], None  # a signal ended the wait for a server
        except (UserError, ValueError) as error:
            return [], str(error)

    def _read_record(self, lag: int, failure: str | None = None) -> None:
        """Read and log the metrics of the oldest step whose metrics have not been logged yet.

        The metrics are averaged over all processes. Processes also share signals and errors here.

        Args:
            lag: number of newest steps whose metrics are not read yet, since the GPU may still be
                computing them.
            failure: message of this process's error, or None.

        Raises:
            RunError: on all processes, if one of them has a failure or the loss or gradient norm is
                not finite.
        """
        record = self.pending.popleft() if len(self.pending) > lag else None
        signalled = float(self.interruption.received is not None)
        failed = float(failure is not None)
        means = self.host.mean([signalled, failed, *(record.read() if record else ())])
        self.stopping |= means[0] > 0
        if record is not None:
            self._report(record, means[2:])
        if means[1] > 0:
            rank, told = next((n, line) for n, line in enumerate(self.host.gather(failure)) if line)
            raised = RunError(told)
            raised.rank = rank
            raise raised

    def _report(self, record: StepMetrics, means: list[float]) -> None:
        """Check the metrics of a step, averaged over processes, and log them."""
        losses, norm, metrics = record.split(means)
        self._refuse_nonfinite(record, losses, norm)
        self.log.add(record, sum(losses) / len(losses), norm, metrics)

    def _read_all_records(self) -> None:
        while self.pending:
            self._read_record(0)

    def _refuse_nonfinite(self, record: StepMetrics, losses: list[float], norm: float) -> None:
        # Infinite gradients are normal under fp16 loss scaling, which skips such steps.
        scaled = self.accelerator.scaler is not None
        loss_is_fine = all(map(math.isfinite, losses))
        if loss_is_fine and (scaled or math.isfinite(norm)):
            return
        what = "gradient norm" if loss_is_fine else "loss"
        suspects = list(chain(*record.keys)) if loss_is_fine else record.suspects()
        self.checkpoints.join()
        keys = sorted({key for part in self.host.gather(suspects) for key in part})
        shown = ", ".join(keys[:16]) + (f" and {len(keys) - 16} more" if len(keys) > 16 else "")
        raise RunError(
            f"the {what} is not finite at step {record.step}; samples: {shown or 'unknown'}; "
            f"last good checkpoint: {self.checkpoints.newest or 'none'}. Lower "
            "--training.optimizer.learning_rate or try --training.precision fp32"
        )

    def _run_periodic(self) -> None:
        due = [job for job in self.periodic if job.due(self.step, self.config.steps)]
        if not due:
            return
        self._read_all_records()
        moment = Moment(
            self.step, self.model, self.run_dir, self.accelerator, self.host, self.log.progress,
            self._export, self._end, warming_up=self.step < self.config.optimizer.warmup_steps,
        )  # fmt: skip
        with self.log.throughput.paused():
            # Wait for the writer, since jobs may export with the objective that it uses. Jobs may
            # also fork worker processes, which could deadlock on a lock of the writer's thread.
            self.checkpoints.join()
            for job in due:
                with evaluation_mode(self.model), random_state.preserved(), torch.no_grad():
                    numbers = self._numbers_of(job, moment)
                if numbers:
                    self.log.log(self.step, numbers)
                    shown = {name: numbers[name] for name in job.on_bar if name in numbers}
                    self.log.show(**{n.split("/")[-1]: f"{v:.3f}" for n, v in shown.items()})

    def _numbers_of(self, job: Periodic, moment: Moment) -> dict[str, float] | None:
        """Run a job and return its metrics; None if a signal ended the job's wait for a server."""
        try:
            return job.run(moment)
        except KeyboardInterrupt:
            # Other processes may be waiting for this one inside the job, so no clean end is
            # possible.
            if self.interruption.received is None or self.host.world_size > 1:
                raise
            return None

    def _end(self, reason: str) -> None:
        if self.step < self.config.steps:
            self.ended = reason

    def _export(self, directory: Path) -> None:
        self.checkpoints.export(directory, self.step)

    def _save(self) -> None:
        self._read_all_records()
        with self.log.throughput.paused():
            self.checkpoints.save(self.step, self.ended, self.log.flush)

    def _say(self, line: str) -> None:
        if self.host.is_main:
            tqdm.write(line, file=sys.stderr)

    def _stopped(self) -> FitResult:
        """Save the step if a signal ended the run; in any case, return a result without export."""
        received = [name for name in self.host.gather(self.interruption.received) if name]
        if received:
            saved = self.checkpoints.newest is not None and step_of(self.checkpoints.newest)
            if self.step and saved != self.step:
                self._save()
                self.checkpoints.join()
            where = (
                f"saved in {self.checkpoints.newest.name}"
                if self.checkpoints.newest
                else "before the first step"
            )
            self.log.progress.close()  # An open bar would be printed after the line.
            self._say(
                f"{received[0]}: {self.run_dir} stopped after step {self.step}, {where}; "
                f"continue with {command.continued_by or '--training.resume auto'}"
            )
        return self._result(None, received[0] if received else None)

    def _finished(self) -> FitResult:
        assert self.checkpoints.newest is not None
        exported = self.run_dir / self.export_name
        source = self.checkpoints.newest / self.export_name
        self.host.from_main(lambda: place(source, exported))
        return self._result(exported, None)

    def _result(self, encoder: Path | None, interrupted: str | None) -> FitResult:
        return FitResult(
            self.run_dir, self.step, self.log.metrics, self.checkpoints.newest, encoder, interrupted
        )
