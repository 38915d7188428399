"""Time and memory of several calls, measured in turn in one run.

Measuring in turn spreads changes of the machine's speed evenly over all calls.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

# The profiler would print its starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def rounds(text: str) -> int:
    """Parse the number of rounds of a command."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 2")
    return int(text)


def device(text: str) -> str:
    """Parse the device of a command."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("torch finds no GPU here; use cpu")
    return text


def seconds(
    cases: dict[str, Callable[[], object]], count: int, device: str
) -> dict[str, list[float]]:
    """Return the seconds of each call in each of ``count`` rounds, after one call that is not timed.

    On CPUs this is the processor time of the one thread, which other programs do not lengthen; on
    GPUs it is wall time between two synchronisations.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in range(count):
        for name, call in cases.items():
            start = now(device)
            call()
            times[name].append(now(device) - start)
    return times


def now(device: str) -> float:
    """Return the time once the device has finished its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def ratio(times: list[float], reference: list[float]) -> str:
    """Return the median of the rounds' ratios, and in brackets the range of their middle half."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def mebibytes_a_clip(
    step: Callable[[Tensor], object],
    clips: Callable[[int], Tensor],
    batches: tuple[int, int],
    device: str,
) -> float:
    """Return the increase of the peak of allocated memory by one more clip in a batch, in MiB.

    It is computed from two batch sizes, so that gradients and other memory that does not grow
    cancel. Only tensors are counted, not the reserve of the allocator or the workspace of matrix
    libraries.

    Args:
        step: function of a batch; must leave no gradients behind.
        clips: function that makes a number of clips.
        batches: the two batch sizes; activations must dominate the memory.
        device: cpu or cuda.
    """
    few, many = (peak_bytes(partial(step, clips(batch)), device) for batch in batches)
    return (many - few) / (batches[1] - batches[0]) / 2**20


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Return the peak of what a call allocates in addition to earlier allocations, in bytes."""
    return _peak_on_gpu(call) if device == "cuda" else _peak_on_cpu(call)


def _peak_on_gpu(call: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(call: Callable[[], object]) -> int:
    """Return the largest running sum of the allocations that the profiler records."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return the table in Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
