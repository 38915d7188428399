"""Sections of any run: state, curves, figures, probes, settings and environment."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ssl_vivit.evaluation.report.page import Cell, Section, folded, picture, table
from ssl_vivit.evaluation.report.run_files import RunFiles

# Entries of metrics.jsonl that are not metrics.
_NOT_MEASURED = ("step",)


def state(run: RunFiles) -> str:
    """Return a sentence with the state of the run: going on, ended, or ended early."""
    steps, planned = run.last_step, run.setting("training.steps")
    told = "" if steps is None else f"step {steps}" + (f" of {planned}" if planned else "")
    if run.going_on:
        return f"The run is still going on{': ' + told if told else ''}."
    if steps is not None and planned and steps < planned and not run.exported:
        return f"The run has ended early: {told}."
    return f"The run has ended{': ' + told if told else ''}."


def numbers(run: RunFiles) -> Section | None:
    """Return a section with first, smallest, largest and last value of each training metric."""
    series: dict[str, list[float]] = {}
    for line in run.metrics:
        for name, value in line.items():
            if name not in _NOT_MEASURED and isinstance(value, int | float):
                series.setdefault(name, []).append(float(value))
    if not series:
        return None
    rows: list[list[Cell]] = [
        [name, values[0], min(values), max(values), values[-1]]
        for name, values in sorted(series.items())
    ]
    head = ["metric", "first", "smallest", "largest", "last"]
    return Section("Numbers of training", table(head, rows, sortable=len(rows) > 12))


def figures(run: RunFiles, folder: Path) -> Section | None:
    """Return a section with the figures of the run.

    If the run has no figure curves.png, learning curves are drawn from metrics.jsonl.

    Args:
        run: files of the run.
        folder: folder for the drawn curves.
    """
    found = run.figures()
    if not any(path.stem == "curves" for path in found) and run.metrics:
        from ssl_vivit.evaluation.monitors.pretraining_figures import learning_curves

        curves = folder / "curves.png"
        learning_curves(run.metrics, curves)
        found = [*([curves] if curves.is_file() else []), *found]
    if not found:
        return None
    found.sort(key=lambda path: path.stem != "curves")
    return Section("Figures", "".join(picture(path, _caption(path)) for path in found))


def _caption(path: Path) -> str:
    name, _, step = path.stem.partition("_step_")
    told = name.replace("_", " ")
    return f"{told}, step {int(step)}" if step.isdecimal() else told


def probes(run: RunFiles) -> Section | None:
    """Return a section with the scores in probes.json from recipes/probe_clevrer.py."""
    found = run.json("probes.json")
    if found is None:
        return None
    targets = [*dict.fromkeys(each["target"] for each in found["results"])]
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in found["results"]:
        key = (each["subject"], each["probe"], each["clips"])
        rows.setdefault(key, {})[each["target"]] = each["mean"]
    metrics = {each["target"]: each["metric"] for each in found["results"]}
    head = ["features", "probe", "clips", *(f"{name} ({metrics[name]})" for name in targets)]
    cells = [[*key, *(scores.get(name) for name in targets)] for key, scores in rows.items()]
    chance = ["chance", "", "", *(found["chance"].get(name) for name in targets)]
    return Section("Probes", table(head, [*cells, chance]))


def settings(run: RunFiles) -> Section | None:
    """Return a section with the run's config, including defaults."""
    if not run.config_text:
        return None
    return Section("Settings", folded("config.yaml", run.config_text))


def environment(run: RunFiles) -> Section | None:
    """Return a section with command, seed, data and versions from the exported model."""
    facts = run.exported
    if not facts:
        return None
    rows = [[name, _fact_text(value)] for name, value in facts.items()]
    return Section("How it was made", table(["fact", "value"], rows))


def _fact_text(value: Any) -> str:
    if isinstance(value, dict):
        # Lists are left out, since they have hundreds of hashes.
        shown = {name: each for name, each in value.items() if not isinstance(each, list)}
        return ", ".join(f"{name} {each}" for name, each in shown.items())
    return str(value)


def csv_section(path: Path, title: str) -> Section | None:
    """Return a section with a CSV file as a sortable table, or None without this file."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return Section(
        title, table(head, [[_number(cell) for cell in row] for row in rows], sortable=True)
    )


def _number(cell: str) -> str | int | float | None:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None
