"""Micro-batch and `--accumulation` of each preset by GPU memory, computed from shapes alone.

    python tests/benchmarks/bench_memory.py [--gpus 8 24 80]

Nothing is trained. For each pretraining preset, the script computes the memory of a step in
bfloat16, and the largest micro-batch (a power of two) that leaves a tenth of the GPU and 1 GiB for
its context, fragmentation of the allocator and the workspace of kernels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from results import Results, Table, add_out, publish
from torch import nn

from recipes.mae_clevrer import MaskedTubeletsRecipe
from recipes.simclr_clevrer import SimCLRRecipe
from ssl_vivit import objectives
from ssl_vivit.encoders import ViViT
from ssl_vivit.evaluation.training_memory import TrainingMemory, training_memory
from ssl_vivit.training import parse

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
GIB = 2**30


def memory_of(preset: str, *, checkpointing: bool = False, bf16: bool = True) -> TrainingMemory:
    """Return the memory of a preset's training step.

    Args:
        preset: name of the preset.
        checkpointing: whether activations of blocks are computed again in the backward pass.
        bf16: whether the forward pass runs under autocast.
    """
    contrastive = preset.startswith("simclr")
    recipe = SimCLRRecipe if contrastive else MaskedTubeletsRecipe
    config = parse(recipe, ["--config", str(CONFIGS / f"{preset}.yaml")])
    architecture = config.encoder.config()
    with torch.device("meta"):
        encoder = ViViT(architecture)
        encoder.set_grad_checkpointing(checkpointing)
        if contrastive:
            objective: nn.Module = objectives.SimCLR(encoder, config.objective)
        else:
            objective = objectives.MaskedTubelets(encoder, config.objective)
    shape = (config.data.clip.views, architecture.in_channels, architecture.num_frames,
             *architecture.image_size)  # fmt: skip
    return training_memory(
        objective,
        lambda samples: {"clips": torch.empty(samples, *shape), "key": [""] * samples},
        bf16=bf16,
    )


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=float, nargs="+", default=[8, 24, 80], help="GiB")
    add_out(parser)
    args = parser.parse_args()
    gpus = args.gpus
    presets = sorted(
        path.stem for path in CONFIGS.glob("*.yaml") if path.stem[:3] in ("sim", "mae")
    )
    head = ["preset", "batch", "fixed", "a sample", *(f"{gpu:g} GB" for gpu in gpus)]
    rows = []
    for preset in presets:
        recipe = SimCLRRecipe if preset.startswith("simclr") else MaskedTubeletsRecipe
        batch = parse(
            recipe, ["--config", str(CONFIGS / f"{preset}.yaml")]
        ).training.total_batch_size
        plain, again = (memory_of(preset, checkpointing=each) for each in (False, True))
        cells = [cell(batch, gpu * GIB * 0.9 - GIB, plain, again) for gpu in gpus]
        fixed, sample = f"{plain.fixed / GIB:.2f}", f"{plain.per_sample / GIB:.3f}"
        rows.append([f"`{preset}`", str(batch), fixed, sample, *cells])
    caption = "GiB of a training step in bfloat16, and micro-batch × accumulation by GPU memory."
    publish(Results("memory", "Memory of presets", [Table(caption, head, rows)]), "cpu", args.out)


def cell(batch: int, available: float, plain: TrainingMemory, again: TrainingMemory) -> str:
    """Return `--accumulation` for a preset's batch on one GPU, with checkpointing if necessary."""
    for memory, mark in ((plain, ""), (again, " c")):
        largest = memory.largest(available)
        if largest:
            return f"{max(1, -(-batch // largest))}{mark}"
    return "—"


if __name__ == "__main__":
    main()
