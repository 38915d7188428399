"""Script of test_simclr, run on every rank: a DDP step on the rank's part of the batch."""

import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from test_simclr import batch, objective
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
simclr = objective(batch_norm=False)
wrapped = DistributedDataParallel(simclr)
step = wrapped({"clips": batch(6)["clips"][3 * rank : 3 * rank + 3]})
step.loss.backward()
results = {name: parameter.grad.contiguous() for name, parameter in simclr.named_parameters()}
results |= {"loss": step.loss.detach(), **step.metrics}
save_file(results, Path(sys.argv[1]) / f"rank{rank}.safetensors")
dist.barrier()  # no process ends while another still talks to it
dist.destroy_process_group()
