"""Growth of time and memory with frames, image size, batch and neurons.

    python tests/benchmarks/bench_growth.py [--device cuda] [--out docs/published/benchmarks]

Forward with backward of Models 1 to 4 and of the Gaussian readout, all cases in turn. Along each
axis one number changes; the others stay at 16 frames, 112 pixels and a batch of 1. Time is the
shortest of the rounds. Memory is the peak of what a step allocates, including gradients. Exponents
are slopes of least-squares lines of log cost over log value, over all values and over the last two.
The script exits with status 1 if time or memory of Model 2 grows with frames by an exponent above
1.1. On a CPU, the models are narrow and run on one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from peers import Contestant, Sizes, contestant
from results import Results, Table, add_out, publish
from side_by_side import device, peak_bytes, rounds, seconds
from torch import Tensor

from ssl_vivit.neural import GaussianReadout

SMALL = Sizes(width=128, heads=4, depth=4, temporal_depth=2)
LARGE = Sizes(width=384, heads=6, depth=8, temporal_depth=2)
MODELS = ("Model 1", "Model 2", "Model 3", "Model 4")
READOUT = "Gaussian readout"
AXES: dict[str, tuple[int, ...]] = {
    "frames": (8, 16, 32, 64),
    "image size": (112, 160, 224, 320),
    "batch": (1, 2, 4, 8),
    "neurons": (500, 1000, 2000, 4000, 8000),
}
LIMIT = 1.1


@dataclass
class Curve:
    """Time and memory of one model along one axis.

    Attributes:
        values: values along the axis.
        seconds: time of a step at each value.
        bytes: peak of what a step allocates at each value.
    """

    values: Sequence[int]
    seconds: list[float]
    bytes: list[int]


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of the least-squares line of log cost over log value."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def encoder_step(sizes: Sizes, model: str, batch: int, device: str) -> Callable[[], None]:
    """Run forward and backward pass of an encoder."""
    encoder = contestant(sizes, model, True).to(device)
    video = torch.randn(batch, 3, sizes.frames, sizes.side, sizes.side, device=device)
    return partial(_forward_backward, encoder, video)


def _forward_backward(encoder: Contestant, video: Tensor) -> None:
    encoder(video).square().mean().backward()
    encoder.zero_grad()


def readout_step(neurons: int, device: str) -> Callable[[], None]:
    """Run forward and backward pass of a readout of 96 channels on a 9×16 grid at 75 time steps."""
    readout = GaussianReadout(neurons, 96, mean_range=0.9).to(device)
    tokens = torch.randn(1, 96, 75, 9, 16, device=device, requires_grad=True)

    def step() -> None:
        readout(tokens).sum().backward()
        readout.zero_grad()
        tokens.grad = None

    return step


def all_steps(sizes: Sizes, device: str) -> dict[tuple[str, str, int], Callable[[], None]]:
    """Return (model, axis, value) → step; a point that several axes share has one step."""
    steps: dict[tuple[str, str, int], Callable[[], None]] = {}
    for model in MODELS:
        shared: dict[tuple[Sizes, int], Callable[[], None]] = {}
        for axis, values in AXES.items():
            for value in () if axis == "neurons" else values:
                changed, batch = sizes, 1
                if axis == "batch":
                    batch = value
                else:
                    changed = replace(sizes, **{"frames" if axis == "frames" else "side": value})
                point = changed, batch
                if point not in shared:
                    shared[point] = encoder_step(changed, model, batch, device)
                steps[model, axis, value] = shared[point]
    for value in AXES["neurons"]:
        steps[READOUT, "neurons", value] = readout_step(value, device)
    return steps


def measure(sizes: Sizes, count: int, device: str) -> dict[tuple[str, str], Curve]:
    """Return (model, axis) → curve."""
    steps = all_steps(sizes, device)
    different = {str(id(step)): step for step in steps.values()}
    times = seconds(different, count, device)
    memory = {name: peak_bytes(step, device) for name, step in different.items()}
    curves: dict[tuple[str, str], Curve] = {}
    for (model, axis, value), step in steps.items():
        curve = curves.setdefault((model, axis), Curve([], [], []))
        curve.values = [*curve.values, value]
        curve.seconds.append(min(times[str(id(step))]))
        curve.bytes.append(memory[str(id(step))])
    return curves


def tables(curves: dict[tuple[str, str], Curve], gpu: bool) -> list[Table]:
    """Return a table per axis: costs as multiples of that at the smallest value, and exponents."""
    made: list[Table] = []
    sizes = LARGE if gpu else SMALL
    for axis, values in AXES.items():
        rows = []
        for (model, along), curve in curves.items():
            if along != axis:
                continue
            smallest = f"{1e3 * curve.seconds[0]:.2f} ms", f"{curve.bytes[0] / 2**20:.1f} MiB"
            for what, costs, least in zip(
                ("time", "memory"), (curve.seconds, curve.bytes), smallest, strict=True
            ):
                cells = [least if gpu else "1", *(f"{cost / costs[0]:.2f}" for cost in costs[1:])]
                slopes = exponent(values, costs), exponent(values[-2:], costs[-2:])
                rows.append([f"{model}, {what}", *cells, *(f"{slope:.2f}" for slope in slopes)])
        caption = f"Growth with {axis}, as multiples of the cost at {values[0]}."
        if not made:
            caption = (
                f"Forward with backward of encoders of width {sizes.width} with {sizes.depth} "
                f"blocks; {sizes.frames} frames of {sizes.side}×{sizes.side} pixels and a batch of "
                f"1 where the table names no others. {caption}"
            )
        if axis == "neurons":
            caption = f"The readout of 96 channels on a 9×16 grid at 75 time steps. {caption}"
            if not gpu:
                caption += (
                    " Where many neurons read each pixel, it takes pixels in turn on a CPU, which "
                    "needs less memory than blocks of them."
                )
        head = [axis, *map(str, values), "exponent", "of the last two"]
        made.append(Table(caption, head, rows))
    return made


def figure(curves: dict[tuple[str, str], Curve]) -> Figure:
    """Draw time and memory as multiples of the smallest, with a column for each axis."""
    drawn = Figure(figsize=(9, 5), layout="constrained")
    panels = drawn.subplots(2, len(AXES), sharex="col")
    styles = {model: (f"C{n}", "osD^v"[n]) for n, model in enumerate([*MODELS, READOUT])}
    for column, (axis, values) in enumerate(AXES.items()):
        for (model, along), curve in curves.items():
            if along != axis:
                continue
            colour, marker = styles[model]
            for row, costs in enumerate((curve.seconds, curve.bytes)):
                relative = [cost / costs[0] for cost in costs]
                panels[row, column].plot(
                    values, relative, color=colour, marker=marker, markersize=4, label=model
                )
        straight = [value / values[0] for value in values]
        for panel in panels[:, column]:
            panel.plot(values, straight, color="0.6", linestyle=":", label="exponent 1")
            panel.set(xscale="log", yscale="log")
            panel.set_xticks(values, [f"{v // 1000}k" if v >= 1000 else str(v) for v in values])
            low, high = (int(np.floor(np.log2(edge))) for edge in panel.get_ylim())
            powers = [2**power for power in range(low, high + 1)]
            panel.set_yticks(powers, [f"{power:g}" for power in powers])
            panel.minorticks_off()
            panel.tick_params(labelsize=8)
        panels[1, column].set_xlabel(f"{axis} (pixels)" if axis == "image size" else axis)
    panels[0, 0].set_ylabel("time, relative")
    panels[1, 0].set_ylabel("memory, relative")
    handles = {}
    for panel in panels[0]:
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    order = [*MODELS, READOUT, "exponent 1"]
    drawn.legend(
        [handles[label] for label in order], order, loc="outside upper center", ncols=6, fontsize=8
    )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=3)
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    gpu = args.device == "cuda"
    curves = measure(LARGE if gpu else SMALL, args.rounds, args.device)
    frames = curves["Model 2", "frames"]
    found = {
        "time": exponent(frames.values, frames.seconds),
        "memory": exponent(frames.values, frames.bytes),
    }
    name = f"growth{'_gpu' if gpu else ''}.png" if args.out else ""
    publish(
        Results("growth", "Growth with frames, size, batch and neurons", tables(curves, gpu), name),
        args.device,
        args.out,
    )
    if args.out:
        figure(curves).savefig(Path(args.out, name), dpi=100)
    passed = max(found.values()) <= LIMIT
    print(
        f"Model 2's exponents in frames, time {found['time']:.2f} and memory "
        f"{found['memory']:.2f}, are {'at most' if passed else 'not all at most'} {LIMIT}"
    )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
