"""The model of a run that did best on the validation trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.errors import DataError
from ssl_vivit.files import read_json, write_json
from ssl_vivit.training import Moment
from ssl_vivit.training.processes import Host
from ssl_vivit.training.run_directory import place

BEST = "best"


class BestModel:
    """Keeps the best model in ``run_dir/best``, beside ``score.json`` with its step and score.

    A run that is continued compares with what it finds there, so it keeps the same model.

    Args:
        sessions: what is scored.

    Attributes:
        criterion: the score that decides: bits per spike, or correlation where responses are no
            counts.
    """

    def __init__(self, sessions: Sessions) -> None:
        counts = all(fact.kind == "spikes" for fact in sessions.facts)
        self.criterion = "val/bps_mean" if counts else "val/correlation_mean"

    def keep(self, moment: Moment, numbers: Mapping[str, float], host: Host) -> None:
        """Export the model if its score is better than the best so far; on all processes."""
        if self.criterion not in numbers or not moment.step:
            return
        found = numbers[self.criterion]
        known = host.from_main(lambda: best_score(moment.run_dir))
        # An equal one is this very step, met again after the run was killed: nothing to do.
        if known is not None and found <= known["score"]:
            return
        moment.export(moment.run_dir / BEST / "model")
        if host.is_main:
            said = {"step": moment.step, "name": self.criterion, "score": found}
            write_json(moment.run_dir / BEST / "score.json", said, indent=None)


def best_score(run_dir: Path) -> dict[str, Any] | None:
    """Step, name and value of the best validation score of a run; None if there is none yet.

    Raises:
        DataError: if the file is damaged.
    """
    path = run_dir / BEST / "score.json"
    if not path.exists():
        return None
    found = read_json(path, mend := f"remove {path.parent} to look for the best model from here on")
    if not isinstance(found.get("score"), float | int):
        raise DataError(f"{path} is damaged (it holds no score); {mend}")
    return found


def place_best(run_dir: Path, host: Host) -> None:
    """Put the best model by validation in the place of the last one, where there is one."""

    def work() -> None:
        if best_score(run_dir) is not None:
            place(run_dir / BEST / "model", run_dir / "model")

    host.from_main(work)
