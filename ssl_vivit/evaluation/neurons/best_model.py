"""Selection of the model of a run that scores best on validation trials."""

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
    """Stores the best model of a run in ``run_dir/best``.

    This folder also holds ``score.json`` with the training step and the score of the model. A
    resumed run compares new scores with the stored score. It therefore selects the same model as an
    uninterrupted run.

    Args:
        sessions: the sessions of the run; the kind of their responses determines ``criterion``.

    Attributes:
        criterion: name of the score that selects the model: bits per spike if all responses are
            spikes, else correlation.
    """

    def __init__(self, sessions: Sessions) -> None:
        counts = all(fact.kind == "spikes" for fact in sessions.facts)
        self.criterion = "val/bps_mean" if counts else "val/correlation_mean"

    def keep(self, moment: Moment, numbers: Mapping[str, float], host: Host) -> None:
        """Export the model if its score is the best so far; must be called on all processes."""
        if self.criterion not in numbers or not moment.step:
            return
        found = numbers[self.criterion]
        known = host.from_main(lambda: best_score(moment.run_dir))
        # The scores are equal if a resumed run evaluates the stored step again.
        if known is not None and found <= known["score"]:
            return
        moment.export(moment.run_dir / BEST / "model")
        if host.is_main:
            said = {"step": moment.step, "name": self.criterion, "score": found}
            write_json(moment.run_dir / BEST / "score.json", said, indent=None)


def best_score(run_dir: Path) -> dict[str, Any] | None:
    """Return training step, name and value of a run's best validation score; None without one.

    Raises:
        DataError: if the file ``best/score.json`` is damaged.
    """
    path = run_dir / BEST / "score.json"
    if not path.exists():
        return None
    found = read_json(
        path, mend := f"remove {path.parent} to select the best model from this step on"
    )
    if not isinstance(found.get("score"), float | int):
        raise DataError(f"{path} is damaged (its entry 'score' is no number); {mend}")
    return found


def place_best(run_dir: Path, host: Host) -> None:
    """Replace the model in ``run_dir/model`` by the best model, if a best model is stored."""

    def work() -> None:
        if best_score(run_dir) is not None:
            place(run_dir / BEST / "model", run_dir / "model")

    host.from_main(work)
