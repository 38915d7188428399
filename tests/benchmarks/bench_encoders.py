"""Models 1 to 4 compared with vit-pytorch's ViViT and transformers' VivitModel and VideoMAEModel.

    python tests/benchmarks/bench_encoders.py [--device cuda --bf16]

All models have equal width, depth, heads and tokens, and compute attention by
scaled_dot_product_attention. Model 1 returns all tokens, Models 2 to 4 one vector per clip. The
script measures the forward pass without gradients and the forward with the backward pass, all
models in turn. Ratios are medians of the rounds, in brackets the range of their middle half. Memory
is the increase of the peak of forward with backward by one more clip. On a CPU, the models are
small and run in float32 on one thread; on a GPU they have the size of ViViT-B/16x2.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from peers import OURS, PEERS, Contestant, Sizes, contestant
from results import Results, Table, add_out, publish
from side_by_side import device, mebibytes_a_clip, peak_bytes, ratio, rounds, seconds
from torch import Tensor

from ssl_vivit import ViViT, create_encoder
from ssl_vivit.evaluation.complexity import multiply_adds

SMALL = Sizes()
PAPER = Sizes(width=768, heads=12, depth=12, frames=32, side=224)


def clips_of(sizes: Sizes, batch: int, device: str) -> Tensor:
    return torch.randn(batch, 3, sizes.frames, sizes.side, sizes.side, device=device)


def forward(model: Contestant, video: Tensor, bf16: bool) -> None:
    with torch.no_grad(), torch.autocast(video.device.type, torch.bfloat16, enabled=bf16):
        model(video)


def forward_backward(model: Contestant, video: Tensor, bf16: bool) -> None:
    with torch.autocast(video.device.type, torch.bfloat16, enabled=bf16):
        loss = model(video).float().square().mean()
    loss.backward()
    model.zero_grad()


def against_products(count: int, device: str) -> Table:
    """Return the cost of training steps of named sizes in units of a 2048³ float32 matrix product.

    The arithmetic of a step is three times that of its forward pass. Arithmetic divided by time is
    the fraction of the rate that one large matrix product reaches.
    """
    square = torch.rand(2048, 2048, device=device)
    calls: dict[str, Callable[[], object]] = {"product": partial(torch.mm, square, square)}
    work = {}
    for name, batch in (("vivit_tiny", 2), ("vivit_small", 2), ("vivit_neural_baseline", 1)):
        encoder = create_encoder(name).to(device)
        encoder.freeze_pooling()
        config = encoder.config
        shape = (batch, config.in_channels, config.num_frames, *config.image_size)
        video = torch.randn(shape, device=device)
        label = f"{name}, {tuple(shape)}"
        work[label] = 3 * multiply_adds(encoder.eval(), video, tokens=True) / 2048**3
        calls[label] = partial(tokens_backward, encoder.train(), video)
    times = seconds(calls, count, device)
    rows = []
    for label, arithmetic in work.items():
        ratios = [a / b for a, b in zip(times[label], times["product"], strict=True)]
        measured = statistics.median(ratios)
        memory = peak_bytes(calls[label], device) / 1e9
        rows.append([label, f"{arithmetic:.1f}", f"{measured:.1f}", f"{arithmetic / measured:.2f}",
                     f"{memory:.2f}"])  # fmt: skip
    caption = "All patch tokens, forward with backward, in units of one 2048³ float32 product."
    return Table(caption, ["encoder", "arithmetic", "time", "share of the rate", "GB"], rows)


def tokens_backward(encoder: ViViT, video: Tensor) -> None:
    encoder(video, tokens=True).tokens.square().mean().backward()
    encoder.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--batch", type=int, help="clips a call; default: 1, on a GPU 4")
    parser.add_argument("--rounds", type=rounds, default=9)
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    gpu = args.device == "cuda"
    sizes = PAPER if gpu else SMALL
    video = clips_of(sizes, args.batch or (4 if gpu else 1), args.device)

    # Before other models occupy memory, which slows down allocations.
    steps = [] if gpu else [against_products(args.rounds, args.device)]
    entries, missing = [], set()
    made: dict[tuple[str, bool], Contestant] = {}
    for model in OURS:
        entries.append((model, True))
        made[model, True] = contestant(sizes, model, True).to(args.device)
        if model in PEERS:
            try:
                made[model, False] = contestant(sizes, model, False).to(args.device)
                entries.append((model, False))
            except ImportError as error:
                missing.add(str(error.name).partition(".")[0])
    for name in sorted(missing):
        print(f"{name} is not installed, so its rows are left out: pip install 'ssl_vivit[bench]'")

    def measure(step: Callable[[Contestant, Tensor, bool], None]) -> dict:
        calls = {entry: partial(step, made[entry], video, args.bf16) for entry in entries}
        return seconds(calls, args.rounds, args.device)

    def memory(entry: tuple[str, bool]) -> float:
        step = partial(forward_backward, made[entry], bf16=args.bf16)
        clips = partial(clips_of, sizes, device=args.device)
        return mebibytes_a_clip(step, clips, (1, 2) if gpu else (4, 8), args.device)

    work = {entry: multiply_adds(made[entry], video[:1]) / 1e9 for entry in entries}
    times = [measure(forward), measure(forward_backward)]
    memories = {entry: memory(entry) for entry in entries}

    rows = []
    for model, (peer, _) in PEERS.items():
        if (model, False) in entries:
            us, them = (model, True), (model, False)
            gflops = f"{work[them]:.2f} / {work[us]:.2f}"
            ratios = [ratio(t[them], t[us]) for t in times]
            shares = f"{memories[them] / memories[us]:.2f}"
            rows.append([f"{peer} / {model}", gflops, *ratios, shares])
    peers = ["theirs / ours", "GFLOPs", "forward", "forward + backward", "memory"]
    compared = [
        Table(
            "Cost of other implementations of equal size, divided by the cost of ours.", peers, rows
        )
    ]
    first = ("Model 1", True)
    head = ["ours / Model 1", "GFLOPs", "forward", "forward + backward", "memory"]
    rows = []
    for model in OURS:
        us = (model, True)
        ratios = [ratio(t[us], t[first]) for t in times]
        row = [model, f"{work[us]:.2f}", *ratios, f"{memories[us] / memories[first]:.2f}"]
        if gpu:
            row += [f"{len(video) / statistics.median(t[us]):.0f}" for t in times]
            row.append(f"{memories[us]:.0f}")
        rows.append(row)
    if gpu:
        head += ["clips/s forward", "clips/s forward + backward", "MiB a clip"]
    publish(
        Results(
            "encoders",
            "Encoders",
            [
                *compared,
                Table("Cost of our models, divided by the cost of Model 1.", head, rows),
                *steps,
            ],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
