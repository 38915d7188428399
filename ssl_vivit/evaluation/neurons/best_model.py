"""The model of a run that did best on the validation trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssl_vivit.files import write_json
from ssl_vivit.training.processes import Host
from ssl_vivit.training.run_directory import place

BEST = "best"


def best_score(run_dir: Path) -> dict[str, Any] | None:
    """Step, name and value of the best validation score of a run; None if there is none yet."""
    try:
        return json.loads((run_dir / BEST / "score.json").read_text())
    except (OSError, ValueError):
        return None


def write_best_score(run_dir: Path, step: int, name: str, score: float) -> None:
    """Say how good the model in ``run_dir/best/model`` is."""
    found = {"step": step, "name": name, "score": score}
    write_json(run_dir / BEST / "score.json", found, indent=None)


def place_best(run_dir: Path, host: Host) -> None:
    """Put the best model by validation in the place of the last one, where there is one."""

    def work() -> None:
        if best_score(run_dir) is not None:
            place(run_dir / BEST / "model", run_dir / "model")

    host.from_main(work)
