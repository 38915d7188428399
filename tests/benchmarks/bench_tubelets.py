"""Tubelet embedding by one matrix product, compared with an equal Conv3d.

    python tests/benchmarks/bench_tubelets.py [--device cuda]

The input is a contiguous video, the output contiguous tokens (b, t, n, d), in float32 and bfloat16,
on one thread of a CPU. Both are measured in turn: forward, and forward with the gradients of the
weights. The script prints the time of Conv3d divided by the time of the product: the median of the
rounds and the range of their middle half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from results import Results, Table, add_out, publish
from side_by_side import device, ratio, rounds, seconds
from torch import Tensor

from ssl_vivit.encoders import named_config
from ssl_vivit.encoders.tubelets import TubeletEmbedding

CASES = {
    "vivit_small, 2 × 3×20×256×256": ("vivit_small", 2),
    "vivit_base_16x2, 1 × 3×32×224×224": ("vivit_base_16x2", 1),
    "vivit_neural_small, 2 × 1×300×36×64": ("vivit_neural_small", 2),
}


def product(embed: TubeletEmbedding, video: Tensor) -> Tensor:
    return embed(video)[0]


def conv3d(embed: TubeletEmbedding, video: Tensor) -> Tensor:
    tokens = F.conv3d(video, embed.weight, embed.bias, embed.config.kernel_stride)
    return rearrange(tokens, "b d t h w -> b t (h w) d").contiguous()


def backward(embedding: Callable[[], Tensor]) -> None:
    embedding().square().sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=11)
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    for label, (name, batch) in CASES.items():
        config = named_config(name)
        row = [label]
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            embed = TubeletEmbedding(config).to(args.device, dtype)
            clips = (batch, config.in_channels, config.num_frames, *config.image_size)
            video = torch.randn(clips).to(args.device, dtype)
            calls = {
                "product": partial(product, embed, video),
                "conv3d": partial(conv3d, embed, video),
            }
            tolerance = 1e-4 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(
                calls["product"](), calls["conv3d"](), atol=tolerance, rtol=tolerance
            )
            with torch.no_grad():
                forward = seconds(calls, args.rounds, args.device)
            trained = {name: partial(backward, call) for name, call in calls.items()}
            both = seconds(trained, args.rounds, args.device)
            row += [ratio(times["conv3d"], times["product"]) for times in (forward, both)]
        rows.append(row)
    head = ["Conv3d over matrix product", "float32 forward", "+ backward"]
    publish(
        Results(
            "tubelets",
            "Tubelet embedding",
            [
                Table(
                    "Time of a Conv3d over that of the matrix product that embeds tubelets.",
                    [*head, "bfloat16 forward", "+ backward"],
                    rows,
                )
            ],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
