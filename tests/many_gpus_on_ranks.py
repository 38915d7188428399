"""Script of test_many_gpus, run on every rank: count the bytes that a DDP step exchanges."""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from test_many_gpus import OBJECTIVES, VIDEOS
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_vivit.training.processes import _DDP

# Name of an operation → where its argument lies that each process gives.
GIVEN = {"allreduce_": 0, "allgather_": 1, "_allgather_base_": 1, "broadcast_": 0}


class Exchanged(TorchDispatchMode):
    """Count the bytes that this process passes to collectives, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__
            given = torch.utils._pytree.tree_leaves(args[GIVEN[name]])
            self.bytes[name] += sum(tensor.nbytes for tensor in given)
        return function(*args, **(kwargs or {}))


dist.init_process_group("gloo")
found = {}
for name, (build, shape) in OBJECTIVES.items():
    objective = build()
    wrapped = DistributedDataParallel(objective, **_DDP.to_kwargs())
    for logs_step in (False, False, False, True):
        objective.logs_step = logs_step
        clips = torch.randn(VIDEOS, *shape, dtype=torch.float64)
        # In the first steps DDP also agrees on buckets.
        with Exchanged() as exchanged:
            wrapped({"clips": clips}).loss.backward()
        found[f"{name}, {'logged' if logs_step else 'not logged'}"] = exchanged.bytes
(Path(sys.argv[1]) / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
dist.barrier()  # no process ends while another still talks to it
dist.destroy_process_group()
