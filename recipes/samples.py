"""The samples that recipes create and use if no data are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

SAMPLE_SESSION = Path("samples/neural")


def sample_shards(processes: PartialState) -> str:
    """Return the pattern of the rendered sample's shards; create them if they are missing."""
    from data_prep.samples import clevrer_sample

    processes.print("no --data.shards given: using the rendered sample in samples/clevrer")
    with processes.local_main_process_first():
        return clevrer_sample()


def sample_session(processes: PartialState) -> str:
    """Return the folder of the simulated recording; create it if it is missing."""
    from data_prep.samples import neural_sample

    processes.print(f"no --sessions given: using the simulated population in {SAMPLE_SESSION}")
    with processes.local_main_process_first():
        return neural_sample(SAMPLE_SESSION)
