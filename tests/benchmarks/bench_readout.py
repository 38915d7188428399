"""GaussianReadout compared with grid_sample and with one product over all pixels.

    python tests/benchmarks/bench_readout.py [--device cuda] [--neurons 8000] [--frames 300]

Forward with backward in training, with gradients to the map and to all parameters: a batch of one,
384 channels on a 9×16 grid, float32, one CPU thread, all versions in turn. Times are multiples of
the time of one 2048³ float32 matrix product: medians of the rounds, in brackets the range of their
middle half. Memory is the peak of what a step allocates, without map and parameters. grid_sample
reads every frame separately, as neuralpredictors' FullGaussian2d does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from results import Results, Table, add_out, publish
from side_by_side import device, peak_bytes, ratio, rounds, seconds
from torch import Tensor

from ssl_vivit.neural import GaussianReadout
from ssl_vivit.neural.readout.positions import corners

CHANNELS, SIZE = 384, (9, 16)


def by_readout(readout: GaussianReadout, map: Tensor, pupil: Tensor | None = None) -> Tensor:
    return readout(map, pupil)


def by_grid_sample(readout: GaussianReadout, map: Tensor) -> Tensor:
    images = rearrange(map, "b d t h w -> (b t) d h w")
    places = readout.positions(len(map)).repeat_interleave(map.shape[2], 0)
    seen = F.grid_sample(images, places[:, :, None], align_corners=False)[..., 0]
    assert readout.bias is not None
    return (seen * readout.features.T).sum(1) + readout.bias


def by_all_pixels(readout: GaussianReadout, map: Tensor) -> Tensor:
    """Multiply the weights of all neurons with all pixels, then select four products per neuron."""
    pixel, weight = corners(readout.positions(1)[0], SIZE, align_corners=False)
    seen = torch.einsum("dtp,nd->tnp", map[0].flatten(2), readout.features)
    picked = seen.gather(2, pixel.expand(len(seen), -1, -1))
    assert readout.bias is not None
    return (picked * weight).sum(-1) + readout.bias


def backward(
    readout: GaussianReadout, step: Callable[..., Tensor], map: Tensor, *more: Tensor
) -> None:
    step(readout, map, *more).sum().backward()
    readout.zero_grad()
    map.grad = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=5)
    parser.add_argument("--neurons", type=int, default=8000)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument(
        "--alone", action="store_true", help="measure only the two point readouts, in seconds"
    )
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build = partial(GaussianReadout, args.neurons, CHANNELS, mean_range=0.9)
    tokens = torch.randn(1, args.frames, *SIZE, CHANNELS, device=args.device)
    map = rearrange(tokens, "b t h w d -> b d t h w").requires_grad_()
    point, mask = build().to(args.device), build(sampling="mask").to(args.device)
    narrow = build(sampling="mask", spread=0.1).to(args.device)
    moving = build(shifter=True).to(args.device)
    assert moving.shifter is not None
    moving.shifter.layers[-1].weight.data.fill_(0.05)
    pupil = torch.randn(1, args.frames, 2, device=args.device)
    cases: dict[str, Callable[[], object]] = {
        "ours, point": partial(backward, point, by_readout, map),
        "ours, point, moving with the pupil": partial(backward, moving, by_readout, map, pupil),
    }
    if not args.alone:
        cases["ours, mask, spread 0.1"] = partial(backward, narrow, by_readout, map)
        cases["ours, mask, spread 0.3"] = partial(backward, mask, by_readout, map)
        cases["one product over all pixels"] = partial(backward, point, by_all_pixels, map)
        cases["grid_sample on every frame"] = partial(backward, point, by_grid_sample, map)
    square = torch.rand(2048, 2048, device=args.device)
    timed = {**cases, "product": partial(torch.mm, square, square)}
    times = seconds(timed, args.rounds, args.device)
    rows = [
        [name, ratio(times[name], times["product"]), f"{peak_bytes(call, args.device) / 1e9:.2f}"]
        for name, call in cases.items()
    ]
    head = f"{args.neurons} neurons, {args.frames} frames, forward with backward"
    publish(
        Results(
            "readout",
            "Readout",
            [
                Table(
                    "Time in units of one 2048³ float32 matrix product, and the peak of memory.",
                    [head, "2048³ products", "GB"],
                    rows,
                )
            ],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
