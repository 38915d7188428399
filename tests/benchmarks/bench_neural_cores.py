"""Size, speed and memory of the cores of models of neurons.

    python tests/benchmarks/bench_neural_cores.py [--device cuda] [--rounds 3] [--bf16]

A step predicts the rates of 1,000 neurons for one window of 80 frames of 36×64, and computes the
Poisson loss and its gradients, without a modulator; in float32 on one CPU thread by default. All
cores are measured in turn. Times are ratios to the step of the ResNet. Memory is what a step
allocates in addition to the model. The ViViT cores are those of the presets named in each row, the
other cores those of recipes/configs/neural_sample.yaml.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import Results, Table, add_out, publish
from side_by_side import device, peak_bytes, ratio, rounds, seconds

from recipes.finetune_neural import NeuralRecipe
from ssl_vivit import training
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural import NeuralModel
from ssl_vivit.neural.building import build_neural_model

NEURONS, FRAMES = 1000, 80
CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
SMALL_X3D = {"baseline.x3d.widths": [8, 16, 32]}
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "linear–nonlinear, separable filters": ("ln_separable", "neural_sample", {}),
    "linear–nonlinear, full filters": ("ln", "neural_sample", {}),
    "causal 3D ResNet": ("resnet", "neural_sample", {}),
    "causal X3D, 8, 16 and 32 channels": ("x3d", "neural_sample", SMALL_X3D),
    "ViViT of the sample, tubelets 12×12×12": ("vivit", "neural_sample", {}),
    "ViViT small, tubelets 8×8×8": ("vivit", "neural_small_8x8x8", {}),
    "ViViT small, tubelets 4×4×4": ("vivit", "neural_small", {}),
    "ViViT baseline, tubelets 4×4×4": ("vivit", "neural_baseline", {}),
}
REFERENCE = "causal 3D ResNet"


def model_of(core: str, preset: str, settings: dict[str, Any]) -> NeuralModel:
    """Return a fresh model of one session."""
    config = training.parse(
        NeuralRecipe, ["--config", str(CONFIGS / f"{preset}.yaml"), "--core", core]
    )
    facts = SessionFacts(
        name="a", unit_ids=tuple(range(NEURONS)), frames_per_second=30.0, kind="spikes",
        frame_size=(36, 64), video_mean=0.5, video_std=0.3, behaviour_channels=(),
        behaviour_mean=(), behaviour_std=(), pupil_mean=None, pupil_std=None,
        mean_response=(0.1,) * NEURONS, coordinates=None, split={},
    )  # fmt: skip
    around = training.with_settings(config, {"model.modulator.kind": "none", **settings})
    built = build_neural_model(
        config.core, config.encoder, around.model, around.baseline, [facts],
        longest=FRAMES, window=FRAMES,
    )  # fmt: skip
    return built.model


def step(model: NeuralModel, video: torch.Tensor, bf16: bool) -> None:
    with torch.autocast(video.device.type, torch.bfloat16, enabled=bf16):
        rates = model(video)
    torch.nn.functional.poisson_nll_loss(
        rates.float(), torch.zeros_like(rates), log_input=False
    ).backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=rounds, default=3)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    video = torch.randn(1, 1, FRAMES, 36, 64, device=args.device)
    models = {name: model_of(*row).to(args.device).train() for name, row in ROWS.items()}
    cases: dict[str, Callable[[], object]] = {
        name: partial(step, model, video, args.bf16) for name, model in models.items()
    }
    times = seconds(cases, args.rounds, args.device)
    head = [
        "",
        "parameters of the core",
        "of a neuron",
        f"time of a step / {REFERENCE}",
        "memory of a step",
    ]
    rows = [
        [
            name,
            f"{sum(p.numel() for p in model.encoder.parameters()) / 1e6:.3f} M",
            f"{sum(p.numel() for p in model.session_readouts.parameters()) / NEURONS:.0f}",
            ratio(times[name], times[REFERENCE]),
            f"{peak_bytes(cases[name], args.device) / 2**20:.0f} MiB",
        ]
        for name, model in models.items()
    ]
    publish(
        Results(
            "neural_cores",
            "Cores of neural models",
            [Table(f"A training step, {args.rounds} rounds in turn.", head, rows)],
        ),
        args.device,
        args.out,
    )


if __name__ == "__main__":
    main()
