"""Script of test_draws_on_ranks, run on every rank: a DDP step of each objective.

Batches come from the loaders of training, and all draws by names are enabled.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from ssl_vivit import create_encoder
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.data.video.augment import Augment, AugmentConfig
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.loader import ClipBatches
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.objectives import MaskedTubelets, NeuralPrediction, SimCLR

BATCH = 8
# Of the second epoch and later.
FIRST_STEP = 3
ENCODER = {"num_heads": 2, "embed_dim": 24, "spatial_depth": 1, "temporal_depth": 1}
CLIPS = ENCODER | {"num_frames": 4, "image_size": (16, 24), "tubelet_size": (2, 4, 4)}


class NoiseVideos:
    """Videos of noise that depends on their number."""

    def __init__(self, count):
        self.keys = [f"video_{i}" for i in range(count)]
        self.num_frames, self.fps = np.full(count, 12), np.full(count, 25.0)
        self.heights, self.widths = np.full(count, 20), np.full(count, 30)
        self.has_annotation = np.zeros(count, dtype=bool)

    def __len__(self):
        return len(self.keys)

    def frames(self, i, indices, size=None):
        video = np.random.default_rng(i).integers(0, 256, (12, 20, 30, 3), dtype=np.uint8)
        return video[indices]


def clips():
    augment = Augment(AugmentConfig(), CLIPS["image_size"])
    dataset = ClipDataset(NoiseVideos(2 * BATCH), ClipConfig(num_frames=4, views=2), augment, 5)
    return ClipBatches(dataset)


def contrastive(_):
    encoder = create_encoder("vivit_tiny", **CLIPS, patch_dropout=0.5)
    return SimCLR(encoder, hidden_dim=16, output_dim=8, batch_norm=False), clips()


def masked(_):
    encoder = create_encoder("vivit_tiny", **CLIPS)
    return MaskedTubelets(encoder, mask="random", mask_ratio=0.75, decoder_depth=1), clips()


def neural(folders):
    """Return sessions with equal numbers of neurons and without unknown responses.

    Micro-batches then have equal numbers of responses, and their mean loss is the batch's loss.
    """
    found = build_sessions(NeuralDataConfig([str(path) for path in folders], window=8), seed=5)
    encoder = create_encoder(
        "vivit_neural_small", **ENCODER, image_size=(6, 8), num_frames=8, tubelet_size=(2, 2, 2),
        patch_dropout=0.5,
    )  # fmt: skip
    readouts = {fact.name: GaussianReadout(len(fact.unit_ids), 24) for fact in found.facts}
    return NeuralPrediction(NeuralModel(encoder, readouts=readouts), facts=found.facts), found.train


OBJECTIVES = {"contrastive": contrastive, "masked": masked, "neural": neural}


def double(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: double(part) for name, part in value.items()}
    if isinstance(value, list):
        return [double(part) for part in value]
    return value


def one_step(name, folders, split):
    """Return the loss and all gradients of an optimisation step in float64."""
    torch.manual_seed(0)
    objective, loader = OBJECTIVES[name](folders)
    objective = objective.double().train()
    # Other numbers wherever they come from the generator: equality must not be its doing.
    torch.manual_seed(10 * split.accumulation + split.rank)
    wrapped = DistributedDataParallel(objective) if split.world_size > 1 else objective
    total = torch.zeros((), dtype=torch.float64)
    stream = loader.stream(split, start_step=FIRST_STEP, device="cpu")
    for batch in itertools.islice(stream, split.accumulation):
        loss = wrapped(double(batch)).loss / split.accumulation
        loss.backward()
        total += loss.detach()
    stream.close()
    gradients = {
        key: parameter.grad.contiguous()
        for key, parameter in objective.named_parameters()
        if parameter.requires_grad
    }
    return {"loss": total, **gradients}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    split = BatchSplit(BATCH, dist.get_world_size(), dist.get_rank())
    results = {
        f"{name}/{key}": value
        for name in OBJECTIVES
        for key, value in one_step(name, [Path(path) for path in sys.argv[2:]], split).items()
    }
    save_file(results, Path(sys.argv[1]) / f"rank{split.rank}.safetensors")
    dist.barrier()  # no process ends while another still talks to it
    dist.destroy_process_group()
