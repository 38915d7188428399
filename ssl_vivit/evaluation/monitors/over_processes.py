"""Measurement of videos that are divided among the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.data.video.loader import ClipBatches
from ssl_vivit.training import Moment


def measure_videos(
    clips: ClipBatches,
    batch_size: int,
    moment: Moment,
    measure: Callable[[dict[str, Any]], dict[str, Tensor]],
) -> tuple[list[str], dict[str, Tensor]]:
    """Measure each video on one of the processes, and gather the results on all processes.

    Args:
        clips: the videos.
        batch_size: number of videos in a batch.
        moment: the state of the run.
        measure: function that takes a batch of b videos and returns a dictionary of tensors
            (b, …). It is called equally often on all processes, because models with sharded weights
            require this. Results of additional calls are discarded.

    Returns:
        Names of the n videos that could be decoded, in the order of ``clips``, and a dictionary of
        their results: tensors (n, …) on the CPU, with the keys of ``measure``.
    """
    host, device = moment.host, moment.accelerator.device
    found: list[dict[str, Tensor]] = []
    keys, last = [], None
    for last in clips.of_process(host.rank, host.world_size).once(batch_size, device):
        found.append({name: rows.cpu() for name, rows in measure(last).items()})
        keys += last["key"]
    for _ in range(max(host.gather(len(found))) - len(found)):
        if last is None:
            last = next(clips.once(1, device))
        spare = measure(last)
        if not found:
            found.append({name: rows[:0].cpu() for name, rows in spare.items()})
    if host.world_size == 1:
        return keys, {name: torch.cat([part[name] for part in found]) for name in found[0]}
    keys = [key for part in host.gather(keys) for key in part]
    names = [clips.dataset.videos.keys[index] for index in clips.indices]
    places = {name: place for place, name in enumerate(names)}
    order = sorted(range(len(keys)), key=lambda row: places[keys[row]])
    rows = {
        name: torch.cat(host.gather_rows(torch.cat([part[name] for part in found])))[order]
        for name in found[0]
    }
    return [keys[row] for row in order], rows
