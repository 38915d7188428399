"""A masked-tubelets step with 0.9 hidden, compared with an encoder that sees all, and with VideoMAE.

    python tests/benchmarks/bench_masked_tubelets.py [--device cuda]

Forward with backward of the whole objective in float32 on one CPU thread, all models in turn.
Ratios are medians of the rounds, in brackets the range of their middle half. The encoder that sees
all tubelets passes only the visible ones to an equal decoder. transformers'
VideoMAEForPreTraining has the sizes of our Model 1. The last table has multiples of the time of one
2048³ float32 matrix product.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from results import Results, Table, add_out, publish
from side_by_side import device, mebibytes_a_clip, ratio, rounds, seconds
from torch import Tensor, nn

from ssl_vivit import create_encoder
from ssl_vivit.objectives import MaskedTubelets
from ssl_vivit.objectives.config import MaskKind
from ssl_vivit.objectives.pixel_targets import squared_errors

Step = Callable[[Tensor], Tensor]


def objective(
    size: str, variant: str, mask: MaskKind, frames: int, side: int, tubelet: int
) -> MaskedTubelets:
    encoder = create_encoder(
        size, variant=variant, num_frames=frames, image_size=(side, side),
        tubelet_size=(tubelet, 16, 16),
    )  # fmt: skip
    return MaskedTubelets(encoder, mask=mask)


def masked(model: MaskedTubelets, video: Tensor) -> Tensor:
    return model({"clips": video[:, None]}).loss


def unmasked(model: MaskedTubelets, video: Tensor) -> Tensor:
    """Return the loss with an encoder that sees every token, and an equal decoder."""
    mask = model.draw_mask(video)
    out = model.encoder(video)
    visible, _ = mask.tokens(out.grid)
    kept = visible[..., None].expand(-1, -1, out.tokens.shape[-1])
    tokens = out.tokens.flatten(1, 2).gather(1, kept)[:, None]
    predicted = model.decoder(tokens, mask, out.grid)
    return squared_errors(predicted, model.targets(video, mask)).mean()


def videomae(frames: int, side: int) -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    config = VideoMAEConfig(
        image_size=side, num_frames=frames, hidden_size=192, num_hidden_layers=12,
        num_attention_heads=3, intermediate_size=768, decoder_hidden_size=96,
        decoder_num_hidden_layers=4, decoder_num_attention_heads=2, decoder_intermediate_size=384,
    )  # fmt: skip
    return VideoMAEForPreTraining(config)


def of_videomae(model: nn.Module, positions: int, video: Tensor) -> Tensor:
    steps = video.shape[2] // 2
    hidden = torch.zeros(len(video), positions, dtype=torch.bool, device=video.device)
    for row in hidden:
        row[torch.randperm(positions)[: int(0.9 * positions)]] = True
    mask = hidden.repeat(1, steps)
    return model(video.transpose(1, 2), bool_masked_pos=mask).loss


def backward(model: nn.Module, step: Step, video: Tensor) -> None:
    step(video).backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=5)
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def clips(batch: int, frames: int, side: int) -> Tensor:
        return torch.rand(batch, 3, frames, side, side, device=args.device)

    rows = []
    models: tuple[tuple[str, str, MaskKind], ...] = (
        ("Model 1", "joint", "tube"),
        ("Model 2", "factorized_encoder", "tube"),
        ("Model 2", "factorized_encoder", "random"),
        ("Model 3", "factorized_self_attention", "tube"),
        ("Model 3", "factorized_self_attention", "random"),
    )
    for name, variant, mask in models:
        model = objective("small", variant, mask, 20, 256, 4).to(args.device)
        calls = {
            kind: partial(backward, model, partial(step, model))
            for kind, step in (("masked", masked), ("unmasked", unmasked))
        }
        video = clips(1, 20, 256)
        times = seconds(
            {kind: partial(call, video) for kind, call in calls.items()}, args.rounds, args.device
        )
        memory = {
            kind: mebibytes_a_clip(call, partial(clips, frames=20, side=256), (2, 4), args.device)
            for kind, call in calls.items()
        }
        share = f"{memory['masked'] / memory['unmasked']:.2f}"
        rows.append([f"{name}, small, 20×256×256, {mask}", ratio(*times.values()), share])
    caption = (
        "Cost of a step in which nine tenths of the tubelets are hidden, divided by the cost of a "
        "step in which all are visible."
    )
    head = ["0.9 hidden / all visible to the encoder", "time", "memory"]
    saved = Table(caption, head, rows)

    video = clips(4, 16, 112)
    model = objective("tiny", "joint", "tube", 16, 112, 2).to(args.device)
    square = torch.rand(2048, 2048, device=args.device)
    cases: dict[str, Callable[[], object]] = {
        "ours": partial(backward, model, partial(masked, model), video),
        "product": partial(torch.mm, square, square),
    }
    try:
        other = videomae(16, 112).to(args.device)
        step = partial(of_videomae, other, 49)
        cases["transformers"] = partial(backward, other, step, video)
    except ImportError:
        print(
            "transformers is not installed, so its row is left out: pip install 'ssl_vivit[bench]'"
        )
    times = seconds(cases, args.rounds, args.device)
    rows = [["Model 1, tiny, 4 × 3×16×112×112", ratio(times["ours"], times["product"])]]
    if "transformers" in times:
        rows.append(
            ["transformers VideoMAEForPreTraining", ratio(times["transformers"], times["product"])]
        )
    publish(
        Results(
            "masked_tubelets",
            "Masked tubelets",
            [
                saved,
                Table(
                    "A step in units of one 2048³ float32 matrix product.",
                    ["0.9 hidden, forward with backward", "2048³ products"],
                    rows,
                ),
            ],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
