"""Print the tables of docs/explanation/many_gpus.md: what processes send each other in a step.

python docs/published/many_gpus.py
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes.mae_clevrer import MaskedTubeletsRecipe
from recipes.simclr_clevrer import SimCLRRecipe
from ssl_vivit.encoders import ViViT
from ssl_vivit.objectives import MaskedTubelets, SimCLR
from ssl_vivit.training import parse

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
PRESETS = ("simclr_vivit_small", "simclr_vivit_base", "mae_vivit_small", "mae_vivit_base")
GPUS = (8, 16, 32, 64, 128)

# Assumptions. Bytes per second in one direction, seconds a hop, operations per second.
GPUS_A_NODE = 8
NVLINK = 450e9
NETWORK = 8 * 400e9 / 8  # eight cards of 400 Gb/s a node, one for each GPU
NVLINK_DELAY, NETWORK_DELAY = 1e-6, 5e-6
COMPUTE = 0.4 * 989e12  # 40 % of an H100's dense bfloat16 peak

# DistributedDataParallel reduces a first small bucket and then buckets of this size.
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20


class Collective(NamedTuple):
    """One kind of exchange in a training step.

    Attributes:
        name: what is exchanged.
        kind: ``all_reduce`` or ``all_gather``.
        bytes: size of the reduced tensor, or of the part that each process gives.
        calls: into how many calls it is divided.
    """

    name: str
    kind: str
    bytes: int
    calls: int = 1

    def sent(self, processes: int) -> float:
        """Bytes that each process sends in a ring.

        An all-reduce of S bytes is a reduce-scatter and an all-gather, each of n − 1 rounds in
        which a process passes S / n on (Patarasuk and Yuan 2009, Sec. 3). An all-gather has n − 1
        rounds in which it passes on what one process gave.
        """
        if self.kind == "all_reduce":
            return 2 * (processes - 1) / processes * self.bytes
        return (processes - 1) * self.bytes

    def seconds(self, gpus: int) -> float:
        """Time on the assumed links: bytes over the slowest link, and a delay for each hop."""
        nodes = -(-gpus // GPUS_A_NODE)
        speed = NVLINK if nodes == 1 else min(NVLINK, NETWORK)
        over_network = nodes if nodes > 1 else 0
        lap = over_network * NETWORK_DELAY + (gpus - 1 - over_network) * NVLINK_DELAY
        laps = 2 if self.kind == "all_reduce" else 1
        return self.sent(gpus) / speed + self.calls * laps * lap


def collectives(objective: nn.Module, videos: int, processes: int) -> list[Collective]:
    """All exchanges of a training step under DDP whose metrics are not logged.

    Args:
        objective: :class:`SimCLR` or :class:`MaskedTubelets`.
        videos: of each process, in one micro-batch.
        processes: that train together.
    """
    gradients = sum(
        parameter.numel() * parameter.element_size()
        for parameter in objective.parameters()
        if parameter.requires_grad
    )
    buckets = 1 + math.ceil(max(gradients - FIRST_BUCKET, 0) / BUCKET)
    found = [Collective("gradients", "all_reduce", gradients, buckets)]
    if isinstance(objective, SimCLR):
        last = [part for part in objective.head.modules() if isinstance(part, nn.Linear)][-1]
        own = 2 * videos * last.out_features * last.weight.element_size()
        found.append(Collective("embeddings", "all_gather", own))
        # The gradient of a gathered tensor is summed over all processes.
        found.append(Collective("embeddings", "all_reduce", processes * own))
        for norm in objective.head.modules():
            if isinstance(norm, nn.BatchNorm1d):  # synchronised: mean, spread and count
                found.append(Collective("norms", "all_gather", 4 * (2 * norm.num_features + 1)))
                found.append(Collective("norms", "all_reduce", 4 * 2 * norm.num_features))
    return found


class Load(NamedTuple):
    """A preset's objective without storage, its batch, and the work of one video.

    Attributes:
        objective: on the meta device.
        videos: in a step, of all processes together.
        flops: operations of one video, forward and backward: products of encoder and of head
            or decoder, without checkpointing.
    """

    objective: nn.Module
    videos: int
    flops: int


def load_of(preset: str) -> Load:
    """Build a preset's objective and count the work of a video from shapes alone."""
    contrastive = preset.startswith("simclr")
    recipe = SimCLRRecipe if contrastive else MaskedTubeletsRecipe
    config: Any = parse(recipe, ["--config", str(CONFIGS / f"{preset}.yaml")])
    architecture = config.encoder.config()
    with torch.device("meta"):
        encoder = ViViT(architecture)
        objective = (SimCLR if contrastive else MaskedTubelets)(encoder, config.objective)
    shape = (architecture.in_channels, architecture.num_frames, *architecture.image_size)
    clips = torch.empty(1, config.data.clip.views, *shape, device="meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if isinstance(objective, SimCLR):
            out = objective.head(objective.features({"clips": clips}).flatten(0, 1))
        else:
            out, _ = objective.predict(clips[0], objective.draw_mask(clips[0]))
        out.sum().backward()
    return Load(objective, config.training.total_batch_size, counter.get_total_flops())


def table(preset: str) -> list[str]:
    """A sentence on a preset's sizes, and a row for each number of GPUs, in Markdown."""
    load = load_of(preset)
    parameters = sum(p.numel() for p in load.objective.parameters() if p.requires_grad)
    lines = [
        f"`{preset}`: {parameters / 1e6:.1f} M parameters, {4 * parameters / 1e6:.1f} MB of "
        f"gradients, {load.videos} videos a step, {load.flops / 1e12:.3f} TFLOP a video.",
        "",
        "| GPUs | videos a GPU | gradients sent (MB) | embeddings sent (MB) | reduction (ms) "
        "| gathering (ms) | computing (ms) | waiting |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for gpus in GPUS:
        videos = load.videos // gpus
        sent: Counter[str] = Counter()
        time: Counter[str] = Counter()
        for each in collectives(load.objective, videos, gpus):
            sent[each.name] += each.sent(gpus)
            time[each.name] += each.seconds(gpus)
        computing = videos * load.flops / COMPUTE
        gathering = time["embeddings"] + time["norms"]
        # Gradients are reduced while the backward pass, two thirds of the work, goes on.
        waiting = gathering + max(0.0, time["gradients"] - computing * 2 / 3)
        lines.append(
            f"| {gpus} | {videos} | {sent['gradients'] / 1e6:.1f} | {sent['embeddings'] / 1e6:.2f} "
            f"| {1e3 * time['gradients']:.2f} | {1e3 * gathering:.2f} | {1e3 * computing:.1f} "
            f"| {waiting / (computing + waiting):.1%} |"
        )
    return lines


if __name__ == "__main__":
    print("\n\n".join("\n".join(table(preset)) for preset in PRESETS))
