"""Script of test_masked_tubelets, run on every rank: a DDP step of each variant."""

import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from test_masked_tubelets import VARIANTS, masked_batch, small_objective
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
results = {}
for variant in VARIANTS:
    objective = small_objective(variant)
    wrapped = DistributedDataParallel(objective)
    step = wrapped(masked_batch(objective, slice(3 * rank, 3 * rank + 3)))
    step.loss.backward()
    results[f"{variant}/loss"] = step.loss.detach()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            results[f"{variant}/{name}"] = parameter.grad.contiguous()
save_file(results, Path(sys.argv[1]) / f"rank{rank}.safetensors")
dist.barrier()  # no process ends while another still talks to it
dist.destroy_process_group()
