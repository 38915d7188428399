"""The samples that recipes make and use where no data are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def sample_shards(processes: PartialState) -> str:
    """Pattern of the shards of rendered videos, which are made where they are missing."""
    from data_prep.samples import clevrer_sample

    processes.print("no --data.shards given: using the rendered sample in samples/clevrer")
    with processes.local_main_process_first():
        return clevrer_sample()


def sample_session(processes: PartialState) -> str:
    """Folder of the simulated recording, which is made where it is missing."""
    from data_prep.samples import neural_sample

    processes.print("no --sessions given: using the simulated population in samples/neural")
    with processes.local_main_process_first():
        return neural_sample()
