"""Predicted and recorded responses in the trials of a session, as an NWB file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import DataError


class PredictedTrial(NamedTuple):
    """Recorded and predicted responses of a trial.

    Attributes:
        tier: tier of the trial.
        trial: number of the trial in the session.
        predicted: predicted mean responses per frame.
        recorded: recorded responses per frame; NaN where unknown.
    """

    tier: str
    trial: int
    predicted: Float[np.ndarray, "T neurons"]
    recorded: Float[np.ndarray, "T neurons"]


def check_nwb() -> None:
    """Check that pynwb is installed.

    Raises:
        DataError: if pynwb is missing; the message says how to install it.
    """
    # Without this variable, pynwb stores a pickle in the user's cache, and fails if that file is
    # damaged.
    os.environ.setdefault("PYNWB_NO_CACHE_DIR", "1")
    try:
        import pynwb  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"writing NWB files needs {error.name or 'pynwb'}; run "
            "`pip install 'ssl_vivit[neural]'`, or omit --nwb"
        ) from None


def write_nwb(
    path: Path, facts: SessionFacts, trials: Sequence[PredictedTrial], *, model: str
) -> None:
    """Write the predictions of one session to an NWB file.

    The processing module ``predictions`` holds two TimeSeries (frames, units), ``predicted`` and
    ``recorded``. Their columns correspond to the rows of the units table, and their trials are
    concatenated. The trials table has start, end, tier and number of each trial. Recording times of
    trials are unknown, so times count from the start of the first trial in the file.

    Args:
        path: path of the file.
        facts: ``SessionFacts`` of the session.
        trials: the trials, in the order of the file.
        model: path of the model, for the file's description.
    """
    check_nwb()
    import h5py
    import pynwb

    rate = facts.frames_per_second
    file = pynwb.NWBFile(
        session_description=f"Predictions of the model {model} for session {facts.name}. "
        "Trials are concatenated, and the session's start is unknown.",
        identifier=f"predictions of {facts.name}",
        session_start_time=datetime(1970, 1, 1, tzinfo=UTC),
        session_id=facts.name,
    )
    for unit in facts.unit_ids:
        file.add_unit(id=unit)
    file.add_trial_column("tier", "tier of the trial")
    file.add_trial_column("trial", "number of the trial in the session")
    start = 0
    for each in trials:
        stop = start + len(each.predicted)
        file.add_trial(
            start_time=start / rate, stop_time=stop / rate, tier=each.tier, trial=each.trial
        )
        start = stop
    module = file.create_processing_module("predictions", "predicted and recorded responses")
    for name in ("predicted", "recorded"):
        values = np.concatenate([getattr(each, name) for each in trials]).astype(np.float32)
        module.add(
            pynwb.TimeSeries(
                name=name,
                data=values,
                unit="spikes per frame" if facts.kind == "spikes" else "response",
                rate=rate,
                starting_time=0.0,
                description="(frames, units); columns are in the order of the units table",
            )
        )
    # The file is written in memory first, because the HDF5 library crashes when it closes a file on
    # a full disk.
    with (
        h5py.File(str(path), "w", driver="core", backing_store=False) as memory,
        pynwb.NWBHDF5IO(file=memory, mode="w") as opened,
    ):
        opened.write(file)
        memory.flush()
        path.write_bytes(memory.id.get_file_image())
