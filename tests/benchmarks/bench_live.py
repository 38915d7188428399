"""A step of a stream, compared with predictions of whole clips and of a sliding window.

    python tests/benchmarks/bench_live.py [--device cuda] [--rounds 100]

The model is vivit_neural_small with ConvGRU, frame stream and 1,000 neurons, on frames of 36×64 at
30 frames per second, in float32 on one CPU thread. The stream has a context of --window frames. In
turn with it, the script measures a prediction of a clip of 300 frames, and a prediction of the last
--window frames, which a sliding window would compute again at each frame. Three of four steps add a
frame to an incomplete tubelet, so the median is the time of such a step. The 99th percentile is the
time of a step that encodes a tubelet. Both are given as fractions of the median time of the other
two predictions.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from results import Results, Table, add_out, publish
from side_by_side import device, now, rounds

from ssl_vivit import create_encoder
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural import ConvGRU, GaussianReadout, NeuralModel, NeuralPredictor

NEURONS, RATE, CLIP, STRIDE = 1000, 30.0, 300, 4


def predictor(device: str) -> NeuralPredictor:
    encoder = create_encoder("vivit_neural_small")
    width = encoder.config.embed_dim
    readouts = {"a": GaussianReadout(NEURONS, width)}
    model = NeuralModel(encoder, None, ConvGRU(width, 2, STRIDE), readouts)
    facts = SessionFacts(
        name="a", unit_ids=tuple(range(NEURONS)), frames_per_second=RATE, kind="spikes",
        frame_size=(36, 64), video_mean=0.5, video_std=0.3, behaviour_channels=(0, 1),
        behaviour_mean=(0.0, 0.0), behaviour_std=(1.0, 1.0), pupil_mean=None, pupil_std=None,
        mean_response=(0.1,) * NEURONS, coordinates=None, split={},
    )  # fmt: skip
    return NeuralPredictor(model, [facts]).eval().to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=25, help="of 8 steps each")
    parser.add_argument("--window", type=int, default=80, help="frames")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, draw = predictor(args.device), np.random.default_rng(0)
    frames = args.window + 2 * STRIDE * args.rounds
    video = draw.integers(0, 256, (max(frames, CLIP), 36, 64), np.uint8)
    behaviour = draw.normal(size=(len(video), 2)).astype(np.float32)
    stream = model.stream(context=args.window / RATE)

    def seconds(call, *inputs: np.ndarray) -> float:
        start = now(args.device)
        call(*inputs)
        return now(args.device) - start

    def clip(end: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        return video[None, end - length : end], behaviour[None, end - length : end]

    for inputs in zip(video[: args.window], behaviour, strict=False):
        stream.step(*inputs)
    model.predict(*clip(CLIP, CLIP))
    steps, windows, clips = [], [], []
    for end in range(args.window, frames, 2 * STRIDE):
        part = slice(end, end + 2 * STRIDE)
        steps += [
            seconds(stream.step, *each) for each in zip(video[part], behaviour[part], strict=True)
        ]
        windows.append(seconds(model.predict, *clip(end, args.window)))
        clips.append(seconds(model.predict, *clip(CLIP, CLIP)))
    rows = [
        [name, *([f"{1000 * step:.1f} ms"] if args.device == "cuda" else []), *(f"1/{np.median(whole) / step:.0f}" for whole in (windows, clips))]
        for name, step in (("median step", np.median(steps)), ("99th percentile", np.quantile(steps, 0.99)))
    ]  # fmt: skip
    absolute = ["time"] if args.device == "cuda" else []
    head = ["vivit_neural_small", *absolute, f"of a window of {args.window} frames"]
    publish(
        Results(
            "live",
            "A stream",
            [
                Table(
                    "Time of a step of the live stream, as a fraction of the time in which a window "
                    "or a clip is predicted.",
                    [*head, f"of a clip of {CLIP} frames"],
                    rows,
                )
            ],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
