"""ConvGRU with input convolutions before the loop, compared with convolutions inside the loop.

    python tests/benchmarks/bench_convgru.py [--device cuda] [--hidden 384]

Forward with backward on tokens (1, 384, 75, 9, 16) in float32 on one CPU thread, as multiples of
the time of one 2048³ float32 matrix product. All versions are measured in turn: medians of the
rounds, in brackets the range of their middle half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from results import Results, Table, add_out, publish
from side_by_side import device, ratio, rounds, seconds
from torch import Tensor, nn

from ssl_vivit.neural.modulators import ConvGRU, gru_step

SHAPE = (1, 384, 75, 9, 16)


def all_inside(model: ConvGRU, map: Tensor) -> Tensor:
    """Compute the ConvGRU with every convolution inside the loop."""
    state = map.new_zeros(map.shape[0], model.hidden, *map.shape[3:])
    out = []
    for step in map.unbind(2):
        state = gru_step(model.input(step), model.recurrent(state), state)
        out.append(step + model.project(state))
    return rearrange(out, "t b d h w -> b d t h w")


def textbook(layers: nn.ModuleList, map: Tensor) -> Tensor:
    """Compute a ConvGRU with the reset gate before the candidate's convolution."""
    gates, candidate = layers
    state = torch.zeros_like(map[:, :, 0])
    out = []
    for step in map.unbind(2):
        both = torch.sigmoid(gates(torch.cat([step, state], 1)))
        reset, update = both.chunk(2, dim=1)
        new = torch.tanh(candidate(torch.cat([step, reset * state], 1)))
        state = torch.lerp(new, state, update)
        out.append(state)
    return torch.stack(out, 2)


def backward(model: nn.Module, step: Callable[[Tensor], Tensor], map: Tensor) -> None:
    step(map).square().mean().backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=5)
    parser.add_argument("--hidden", type=int, default=SHAPE[1], help="channels of the state")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    map = torch.randn(SHAPE, device=args.device, requires_grad=True)
    model = ConvGRU(SHAPE[1], hidden=args.hidden).to(args.device)
    with torch.no_grad():
        torch.testing.assert_close(model(map)[0], all_inside(model, map))
    cases: dict[str, Callable[[], object]] = {
        "ConvGRU": partial(backward, model, lambda video: model(video)[0], map),
        "ConvGRU with the input convolutions inside the loop": partial(
            backward, model, partial(all_inside, model), map
        ),
    }
    if args.hidden == SHAPE[1]:
        convolutions = nn.ModuleList(
            nn.Conv2d(2 * args.hidden, n * args.hidden, 3, padding=1) for n in (2, 1)
        ).to(args.device)
        cases["textbook cell"] = partial(
            backward, convolutions, partial(textbook, convolutions), map
        )
    square = torch.rand(2048, 2048, device=args.device)
    cases["product"] = partial(torch.mm, square, square)
    times = seconds(cases, args.rounds, args.device)
    product = times.pop("product")
    rows = [[name, ratio(found, product)] for name, found in times.items()]
    publish(
        Results(
            "convgru",
            "ConvGRU",
            [
                Table(
                    "Forward with backward in units of one 2048³ float32 matrix product.",
                    [f"{tuple(SHAPE)}, state {args.hidden}", "2048³ products"],
                    rows,
                )
            ],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
