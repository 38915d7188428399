"""Measure the time of each phase of a training step, and write a trace of torch's profiler."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ssl_vivit.data.phases import record_phases
from ssl_vivit.files import replaced_file

# Steps before the profile: the first ones compile, allocate memory and fill the loader's queue.
SKIPPED = 3
PHASES = (
    "wait for data", "copy", "augmentation", "forward", "backward", "optimiser", "logging",
    "evaluation", "checkpoint",
)  # fmt: skip


class PhaseTimes:
    """Adds up the time of each phase of training steps, such as forward, backward or logging.

    On the host, the time of a phase inside another phase does not count for the outer phase.

    Args:
        device: device of training. On a GPU, times of the GPU's stream are measured as well.

    Attributes:
        host: seconds on the host, by name of the phase.
    """

    def __init__(self, device: torch.device) -> None:
        self.host: dict[str, float] = defaultdict(float)
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._inside: list[float] = []

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Context manager that adds the time of its block to the phase ``name``."""
        begin = self._event()
        start = time.perf_counter()
        self._inside.append(0.0)
        try:
            with record_function(name):
                yield
        finally:
            seconds = time.perf_counter() - start
            self.host[name] += seconds - self._inside.pop()
            if self._inside:
                self._inside[-1] += seconds
            if begin is not None:
                end = self._event()
                assert end is not None
                self._events.append((name, begin, end))

    def device(self) -> dict[str, float]:
        """Wait for the GPU, and return seconds on its stream for the name of each phase.

        Here the time of an outer phase includes its inner phases. On a CPU the result is empty.
        """
        if self._events:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for name, begin, end in self._events:
            seconds[name] += begin.elapsed_time(end) / 1000
        return seconds

    def _event(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class StepProfile:
    """Profiles some steps of a run.

    Args:
        first: number of steps already done; the profile skips three more steps.
        steps: number of steps to profile; 0 profiles none.
        device: device of training.
        path: file of the trace, for chrome://tracing and ui.perfetto.dev.
        say: function that prints a line.
    """

    def __init__(
        self,
        first: int,
        steps: int,
        device: torch.device,
        path: Path,
        say: Callable[[str], None],
    ) -> None:
        self._first, self._steps = first + SKIPPED, steps
        self._device, self._path, self._say = device, path, say
        self._times: PhaseTimes | None = None
        self._done = 0

    def begin_step(self, step: int) -> None:
        """Begin or end the profile if that is due; called before each step of training.

        Args:
            step: number of steps already done.
        """
        self._done = step - self._first
        if self._done == self._steps:
            self.end()
        elif self._done == 0:
            # Without a GPU, a CUDA build of PyTorch would print an error.
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._trace = profile(activities=activities)
            self._trace.start()
            self._times = PhaseTimes(self._device)
            self._began = time.perf_counter()
            record_phases(self._times)

    def end(self) -> None:
        """End a profile that has begun: print the table and write the trace."""
        if self._times is None:
            return
        record_phases(None)
        times, self._times = self._times, None
        steps = self._done
        if not steps:
            self._trace.stop()
            return
        device = times.device()
        whole = (time.perf_counter() - self._began) / steps
        self._trace.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(self._path) as part:
            self._trace.export_chrome_trace(str(part))
        trace = f"trace    {self._path}, for ui.perfetto.dev or chrome://tracing"
        self._say("\n".join([*_table(times.host, device, steps, whole), trace]))


def _table(
    host: dict[str, float], device: dict[str, float], steps: int, whole: float
) -> Iterator[str]:
    on_gpu = ", ms on the GPU" if device else ""
    yield f"profile  {steps} steps, {1000 * whole:.1f} ms each; columns: ms per step, % of step{on_gpu}"
    rest = whole - sum(host.values()) / steps
    rows = [(name, host[name] / steps) for name in PHASES if name in host]
    for name, seconds in [*rows, ("rest", max(0.0, rest))]:
        line = f"         {name:<14}{1000 * seconds:>9.1f}{seconds / whole:>7.0%}"
        yield line + (f"{1000 * device[name] / steps:>9.1f}" if name in device else "")
