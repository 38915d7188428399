"""Script of test_neural_prediction, run on every rank: FSDP2 steps with two frame rates."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from small_models import encoder
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.objectives import NeuralPrediction

NEURONS = {"slow": 4, "fast": 6}
RATES = {"slow": FrameRates(15.0, 30.0), "fast": None}


def objective():
    torch.manual_seed(0)
    facts = [
        SessionFacts(
            name=name,
            unit_ids=tuple(range(count)),
            frames_per_second=15.0 if name == "slow" else 30.0,
            kind="spikes",
            frame_size=(8, 12),
            video_mean=0.5,
            video_std=0.2,
            behaviour_channels=(),
            behaviour_mean=(),
            behaviour_std=(),
            pupil_mean=None,
            pupil_std=None,
            mean_response=(0.5,) * count,
            coordinates=None,
            split={"train": (0,)},
        )
        for name, count in NEURONS.items()
    ]
    core = encoder()
    readouts = {name: GaussianReadout(n, core.embed_dim) for name, n in NEURONS.items()}
    for readout in readouts.values():
        with torch.no_grad():
            readout.spread.zero_().requires_grad_(False)  # so that nothing random counts
            readout.mean.copy_(torch.randn_like(readout.mean) * 2)
    model = NeuralModel(core, readouts=readouts, frame_rates=RATES)
    return NeuralPrediction(model, facts=facts).double().train()


def part(session, seed):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(2, 1, 12, 8, 12, generator=generator, dtype=torch.float64)
    responses = torch.rand(2, 12, NEURONS[session], generator=generator, dtype=torch.float64)
    return {"session": session, "video": video, "behaviour": None, "responses": responses}


def of_rank(rank):
    """Return the sessions of a rank: one rank has both frame rates, the other rank only one."""
    parts = [part("fast", 1)] if rank == 0 else [part("slow", 2), part("fast", 3)]
    return {"parts": parts, "key": ["x"]}


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    mesh, made = init_device_mesh("cpu", (2,)), objective()
    for block in made.model.encoder.modules():
        if type(block).__name__ in made.model.encoder._no_split_modules:
            fully_shard(block, mesh=mesh)
    fully_shard(made, mesh=mesh)
    made.begin_step(0)
    kept = made.model.readouts["fast"].mean.full_tensor().detach().clone()
    for _ in range(2):
        made.zero_grad()
        loss = made(of_rank(dist.get_rank())).loss
        loss.backward()
    gradients = {
        name: parameter.grad.full_tensor().contiguous()
        for name, parameter in made.named_parameters()
        if parameter.grad is not None
    }
    if dist.get_rank() == 0:
        results = {"loss": loss.detach(), "mean": kept, **gradients}
        save_file(results, Path(sys.argv[1]) / "sharded.safetensors")
    dist.barrier()  # no process ends while another still talks to it
    dist.destroy_process_group()
