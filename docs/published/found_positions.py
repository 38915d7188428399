"""Measure how many readouts start near their true receptive field, by the number of trials.

python docs/published/found_positions.py sessions/calcium
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.split import split_trials
from ssl_vivit.evaluation.neurons.receptive_fields import share_near, true_fields
from ssl_vivit.neural.readout.energy_start import energy_centres

STORED = Path(__file__).parents[2] / "recipes" / "results" / "found_positions.json"
TRIALS = (4, 16, 40, 160)
# Draws of the trials (data.share_seed), where not all of them are used.
DRAWS = (0, 1, 2)
NOW = "evidence of one place at a time"


def shares(path: str) -> list[float]:
    """Share of a session's readouts that start near the truth, for each number of trials.

    A readout without a place counts as starting in the middle.
    """
    session = Session(path)
    truth = true_fields(session)
    assert truth is not None, f"{path} is no simulated session"
    found = []
    for trials in TRIALS:
        draws = DRAWS if trials < len(session.tiers["train"]) else DRAWS[:1]
        each = []
        for draw in draws:
            (split,), _ = split_trials(
                [session], validation_share=0.0, train_share=1.0, train_trials=trials,
                share_seed=draw,
            )  # fmt: skip
            places = energy_centres(
                ((session.video(int(i)), session.responses(int(i))) for i in split["train"]),
                frames_per_second=session.frames_per_second,
            )
            centres = places.centres.nan_to_num().numpy()
            each.append(share_near(centres, truth["center"], session.frame_size))
        found.append(round(float(np.mean(each)), 3))
    return found


def table() -> list[str]:
    """Return the rows of the table in Markdown, from the stored shares."""
    stored = json.loads(STORED.read_text())
    lines = [
        f"| readouts within 4 pixels | {' | '.join(f'{n} trials' for n in TRIALS)} |",
        f"|---|{'---:|' * len(TRIALS)}",
    ]
    for session, rows in stored.items():
        for estimator, values in rows.items():
            cells = " | ".join(f"{value:.0%}" for value in values)
            lines.append(f"| {session}: {estimator} | {cells} |")
    return lines


def main(paths: Sequence[str]) -> None:
    """Measure sessions, store their shares under the names of their folders, print the table."""
    stored = json.loads(STORED.read_text()) if STORED.is_file() else {}
    for path in paths:
        stored.setdefault(Path(path).name, {})[NOW] = shares(path)
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
    print("\n".join(table()))


if __name__ == "__main__":
    main(sys.argv[1:])
