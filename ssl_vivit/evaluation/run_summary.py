"""The summary that a training run prints at its end, as a text table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_vivit.training.metrics.tracking import read_metrics


def first_and_last(run_dir: Path, name: str) -> tuple[float, float] | None:
    """Return the first and the last finite value of a metric, or None if there is none."""
    logged = [line.get(name) for line in read_metrics(run_dir / "metrics.jsonl")]
    values = [value for value in logged if value is not None]
    return (values[0], values[-1]) if values else None


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as lines with aligned columns; rows must have equal lengths."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def run_summary(run_dir: Path, measured: dict[str, str]) -> str:
    """Return lines with the encoder, measured values, speed, figures and code to load the encoder.

    Args:
        run_dir: the run's directory.
        measured: measured values as text, by their labels in the summary.
    """
    speeds = [
        line["train/clips_per_second"]
        for line in read_metrics(run_dir / "metrics.jsonl")
        if "train/clips_per_second" in line
    ]
    rows = {"encoder": str(run_dir / "encoder"), **measured}
    if speeds:
        rows["speed"] = f"{sorted(speeds)[len(speeds) // 2]:.1f} clips/s"
    rows["figures"] = str(run_dir / "figures")
    rows["load it"] = (
        f'from ssl_vivit import load_encoder; encoder = load_encoder("{run_dir / "encoder"}")'
    )
    return text_table([*rows.items()])
