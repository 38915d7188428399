"""Cost of one vector per clip without patch tokens, compared with computing all tokens.

    python tests/benchmarks/bench_class_only.py [--device cuda]

The models are Models 1 and 2 with class tokens. "All tokens" is `encoder(video)`. The last row of
each model is `encoder(video, tokens=False)`: in Model 2 only class tokens pass through the temporal
transformer, and the last (spatial) block of both models computes only the class token. For Model 2,
a row between them has the first of these two changes alone. The script checks that pooled vectors
are equal. Costs are fractions of the cost of all tokens: medians of the rounds, in brackets the
range of their middle half. Memory is the increase of the peak of forward with backward by one more
clip.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from peers import Sizes, ours
from results import Results, Table, add_out, publish
from side_by_side import device, mebibytes_a_clip, ratio, rounds, seconds
from torch import Tensor, nn

from ssl_vivit.evaluation.complexity import multiply_adds, whole_blocks

SIZES = Sizes()


def pooled(encoder: nn.Module, tokens: bool, whole: bool, video: Tensor) -> Tensor:
    if not whole:
        return encoder(video, tokens=tokens).pooled
    with whole_blocks(encoder):
        return encoder(video, tokens=tokens).pooled


def backward(encoder: nn.Module, tokens: bool, whole: bool, video: Tensor) -> None:
    pooled(encoder, tokens, whole, video).square().mean().backward()
    encoder.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=9)
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def clips(batch: int) -> Tensor:
        return torch.randn(batch, 3, SIZES.frames, SIZES.side, SIZES.side, device=args.device)

    rows = []
    for name, variant in (("Model 1", "joint"), ("Model 2", "factorized_encoder")):
        torch.manual_seed(0)
        encoder = ours(SIZES, variant, tokens=False).model.to(args.device)
        video = clips(1)
        first = f"{name}, all tokens"
        ways = {first: (True, False)}
        if variant == "factorized_encoder":
            ways[f"{name}, class tokens through time"] = (False, True)
        ways[f"{name}, and one query in the last block"] = (False, False)
        with torch.no_grad():
            vectors = {way: pooled(encoder, *flags, video) for way, flags in ways.items()}
            for vector in vectors.values():
                torch.testing.assert_close(vector, vectors[first], atol=1e-4, rtol=1e-4)
            calls = {way: partial(pooled, encoder, *flags, video) for way, flags in ways.items()}
            forward = seconds(calls, args.rounds, args.device)
        calls = {way: partial(backward, encoder, *flags, video) for way, flags in ways.items()}
        both = seconds(calls, args.rounds, args.device)
        memory, work = {}, {}
        for way, (tokens, whole) in ways.items():
            step = partial(backward, encoder, tokens, whole)
            memory[way] = mebibytes_a_clip(step, clips, (4, 8), args.device)
            work[way] = multiply_adds(_Way(encoder, tokens, whole), video)
        for way in ways:
            shares = [ratio(times[way], times[first]) for times in (forward, both)]
            counted = f"{work[way] / work[first]:.2f}"
            rows.append([way, counted, *shares, f"{memory[way] / memory[first]:.2f}"])
    head = ["share of all tokens", "multiply-adds", "forward", "forward + backward", "memory"]
    publish(
        Results(
            "class_only",
            "Without patch tokens",
            [
                Table(
                    "Cost as a fraction of the cost with all patch tokens. Time is the median of "
                    "the rounds and the range of their middle half.",
                    head,
                    rows,
                )
            ],
        ),
        args.device,
        args.out,
    )


class _Way(nn.Module):
    """A module that computes pooled vectors in one of the ways, so that its FLOPs can be counted."""

    def __init__(self, encoder: nn.Module, tokens: bool, whole: bool) -> None:
        super().__init__()
        self.encoder, self.tokens, self.whole = encoder, tokens, whole

    def forward(self, video: Tensor) -> Tensor:
        return pooled(self.encoder, self.tokens, self.whole, video)


if __name__ == "__main__":
    main()
