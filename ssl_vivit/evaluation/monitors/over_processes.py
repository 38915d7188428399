"""Held-out videos measured by all processes of a run, each a part of them."""

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
    """Measure each video on one of the processes.

    Args:
        clips: the videos.
        batch_size: videos at once.
        moment: of the run.
        measure: a batch → name → (b, …) tensor, a row for each of its videos. It is called equally
            often on all processes, since sharded weights need that; a result may be left out.

    Returns:
        Names of the videos that decode, in the order of ``clips``, and name → their rows, on the
        CPU. All processes get them.
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
