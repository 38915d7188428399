"""Print the tables of docs/explanation/what_pretraining_learns.md from the stored scores.

python docs/published/probe_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUNS = Path(__file__).parents[2] / "recipes" / "results" / "pretraining"
TARGETS = ("presence", "num_objects", "num_collisions", "has_collision", "mean_speed")
ROWS = {
    "mae_model2": "masked tubelets, Model 2",
    "mae_model3": "masked tubelets, Model 3",
    "mae_model1": "masked tubelets, Model 1",
    "simclr_model2": "SimCLR, Model 2",
    "simclr_model3": "SimCLR, Model 3",
    "simclr_model1": "SimCLR, Model 1",
}
# Probe and what it reads of a clip, in the order of the page.
TABLES = (
    ("linear", "pooled"),
    ("linear", "mean"),
    ("attentive", "pooled"),
    ("knn", "pooled"),
)
YARDSTICKS = ("untrained", "raw pixels")

Scores = dict[str, dict[str, Any]]


def table(probe: str, summary: str) -> list[str]:
    """Return the rows of a table in Markdown, a row for each encoder and baseline."""
    lines, shared = [], {}
    for folder, name in ROWS.items():
        if not (RUNS / folder / f"probes_{summary}.json").is_file():
            continue  # not measured yet
        facts, rows = _read(folder, probe, summary)
        trained = next(s for s in rows if not rows[s][TARGETS[0]]["baseline"])
        several = facts["encoders_of"][trained] > 1
        lines.append(_line(f"{name}{', three seeds' if several else ''}", rows[trained]))
        for subject, scores in rows.items():
            if subject.startswith("untrained"):
                lines.append(_line("the same encoder untrained", scores))
            elif subject != trained:
                shared[subject] = scores
    return lines + [_line(subject, scores) for subject, scores in shared.items()]


def row_of(folder: str) -> str:
    """Return the row of an encoder in the first table."""
    _, rows = _read(folder, *TABLES[0])
    trained = next(s for s in rows if not rows[s][TARGETS[0]]["baseline"])
    return _line(ROWS[folder], rows[trained])


def _read(folder: str, probe: str, summary: str) -> tuple[dict[str, Any], dict[str, Scores]]:
    found = json.loads((RUNS / folder / f"probes_{summary}.json").read_text())
    rows: dict[str, Scores] = {}
    for result in found["results"]:
        if result["probe"] == probe:
            rows.setdefault(result["subject"], {})[result["target"]] = result
    return found["facts"], rows


def _line(name: str, scores: Scores) -> str:
    return " | ".join([f"| {name}", *(_cell(scores[target]) for target in TARGETS)]) + " |"


def _cell(score: dict[str, Any]) -> str:
    text = f"{score['mean']:.3f} ± {score['standard_error']:.3f}"
    above = {
        other["subject"]: other["difference"] > 2 * other["standard_error"]
        for other in score["above"]
    }
    if not above or not all(known for name, known in above.items() if name.startswith(YARDSTICKS)):
        return text
    return f"**{text}**" if all(above.values()) else f"**{text}** †"


if __name__ == "__main__":
    for probe, summary in TABLES:
        print(f"\n{probe} probe, {summary}\n")
        print("\n".join(table(probe, summary)))
