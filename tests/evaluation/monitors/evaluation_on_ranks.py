"""Script of test_over_processes, run on every rank: a held-out evaluation of the rank's videos."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from test_loader import batches

from ssl_vivit.evaluation.monitors.over_processes import measure_videos
from ssl_vivit.training.processes import Host


def measured(count, batch_size, broken):
    """Return mean pixel and first frame number of each video, and the number of calls."""
    calls = 0

    def measure(batch):
        nonlocal calls
        calls += 1
        return {"pixels": batch["clips"].mean((1, 2, 3, 4, 5)), "frames": batch["frames"][:, 0, 0]}

    moment = SimpleNamespace(host=Host(), accelerator=SimpleNamespace(device=torch.device("cpu")))
    videos = batches(n=count, broken=tuple(broken), evaluation=True)
    keys, rows = measure_videos(videos, batch_size, moment, measure)
    return {"keys": keys, "calls": calls, **{name: part.tolist() for name, part in rows.items()}}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    found = [measured(*case) for case in json.loads(sys.argv[2])]
    name = f"{dist.get_rank()}_of_{dist.get_world_size()}.json"
    (Path(sys.argv[1]) / name).write_text(json.dumps(found))
    dist.barrier()  # no process ends while another still talks to it
    dist.destroy_process_group()
