"""Script of test_neural_prediction, run on every rank: a DDP step on the rank's sessions."""

import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from test_neural_prediction import SHARES, batch, facts, model, of_rank
from torch.nn.parallel import DistributedDataParallel

from ssl_vivit.objectives import NeuralPrediction, NeuralPredictionConfig

dist.init_process_group("gloo")
rank = dist.get_rank()
config = NeuralPredictionConfig(regularisation={"filter_l2": 0.1})
objective = NeuralPrediction(model(), config, facts=facts())
# Gradients are averaged for as long as something holds the wrapper.
wrapped = DistributedDataParallel(objective)
step = wrapped(batch(*of_rank(rank)))
step.loss.backward()
gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
numbers = {"loss": step.loss.detach(), **step.metrics}
numbers.pop("bps")
equal = NeuralPrediction(model(), config, facts=facts(), session_shares=SHARES)
wrapped = DistributedDataParallel(equal)
step = wrapped(batch(*of_rank(rank)))
step.loss.backward()
numbers["equal/loss"] = step.loss.detach()
gradients |= {f"equal/{name}": parameter.grad for name, parameter in equal.named_parameters()}
save_file({**gradients, **numbers}, Path(sys.argv[1]) / f"rank{rank}.safetensors")
dist.barrier()  # no process ends while another still talks to it
dist.destroy_process_group()
