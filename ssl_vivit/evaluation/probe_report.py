"""Scores of probes as a table, a JSON file and a bar chart."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ssl_vivit.evaluation.figures import save
from ssl_vivit.evaluation.probe_scores import METRICS
from ssl_vivit.objectives.targets import Target
from ssl_vivit.training import RunError

SHORT = {"mean average precision": "mAP"}


class Row(NamedTuple):
    """What was probed and how.

    Attributes:
        subject: whose features.
        clips: which clips of a video.
        probe: what read them.
        baseline: whether it is there to be beaten.
    """

    subject: str
    clips: str
    probe: str
    baseline: bool = False


class Mean(NamedTuple):
    """Mean over seeds and its standard error, NaN for a single seed."""

    mean: float
    error: float

    @classmethod
    def of(cls, scores: list[float]) -> Mean:
        """Of the scores that are numbers."""
        known = np.array([value for value in scores if math.isfinite(value)])
        if not len(known):
            return cls(math.nan, math.nan)
        error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
        return cls(float(known.mean()), float(error))

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.3f}" + ("" if math.isnan(self.error) else f" ± {self.error:.3f}")


@dataclass
class ProbeScores:
    """Scores of every row, target and seed.

    Attributes:
        targets: the columns.
        rows: row → target → a score for each seed.
        chance: target → what predictions that know nothing reach, for each seed.
        facts: what was measured on.
    """

    targets: tuple[Target, ...]
    rows: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    chance: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, row: Row, scores: Mapping[str, float]) -> None:
        """One seed's scores of a row."""
        _append(self.rows.setdefault(row, {}), scores)

    def add_chance(self, levels: Mapping[str, float]) -> None:
        """One seed's chance levels."""
        _append(self.chance, levels)

    def beats_baselines(self, row: Row, target: str) -> bool:
        """Whether a row lies more than two standard errors above each baseline and chance.

        Baselines are those with the same probe, and the same clips where they have any such. The
        standard error is that of the difference; errors of both add up as if seeds were not
        shared, which is the wider margin.
        """
        others = [r for r in self.rows if r.baseline and r.probe == row.probe]
        others = [r for r in others if r.clips == row.clips] or others
        ours = Mean.of(self.rows[row][target])
        if row.baseline or not others or math.isnan(ours.error):
            return False
        theirs = [Mean.of(self.rows[other][target]) for other in others]
        theirs.append(Mean(Mean.of(self.chance[target]).mean, 0.0))
        return all(ours.mean - t.mean > 2 * math.hypot(ours.error, t.error) for t in theirs)

    def table(self) -> str:
        """The scores in columns; a star marks what beats every baseline."""
        clips = len({row.clips for row in self.rows}) > 1
        head = ["features of", *["clips"] * clips, "probe"]
        head += [f"{t.name} ({SHORT.get(METRICS[t.kind], METRICS[t.kind])})" for t in self.targets]
        lines = [head]
        for row, scores in self.rows.items():
            cells = [
                f"{Mean.of(scores[t.name])}{' *' if self.beats_baselines(row, t.name) else ''}"
                for t in self.targets
            ]
            lines.append([row.subject, *[row.clips] * clips, row.probe, *cells])
        level = [str(Mean.of(self.chance[t.name]).mean.__format__(".3f")) for t in self.targets]
        lines.append(["chance", *[""] * clips, "", *level])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def legend(self) -> str:
        """What the table's numbers are."""
        facts = self.facts
        varied = "folds and fits; not the clips, which are spread evenly, nor"
        if facts.get("clips", 1) == 1:
            varied = "clips, folds and fits; not"
        return (
            f"{facts['train_videos']} videos to train probes on, {facts['test_videos']} others to "
            f"test them on; mean ± standard error over {facts['seeds']} seeds ({varied} "
            "the choice of videos where all take part). *: more than two standard "
            "errors above every baseline with that probe, and above chance"
        )

    def to_json(self) -> dict[str, Any]:
        """All scores as JSON values; what is not finite becomes null."""
        results = [
            {
                "subject": row.subject,
                "clips": row.clips,
                "probe": row.probe,
                "baseline": row.baseline,
                "target": t.name,
                "metric": METRICS[t.kind],
                "mean": _number(Mean.of(scores[t.name]).mean),
                "standard_error": _number(Mean.of(scores[t.name]).error),
                "scores": [_number(value) for value in scores[t.name]],
                "beats_baselines": self.beats_baselines(row, t.name),
            }
            for row, scores in self.rows.items()
            for t in self.targets
        ]
        levels = {name: _number(Mean.of(values).mean) for name, values in self.chance.items()}
        return {"facts": self.facts, "chance": levels, "results": results}

    def write(self, run_dir: Path) -> None:
        """probes.json and probes.png."""
        self.chart(run_dir / "probes.png")
        write_json(self.to_json(), run_dir / "probes.json")

    def chart(self, path: Path) -> None:
        """A panel for each target: bars by probe and features, error bars, chance dashed."""
        probes = list(dict.fromkeys(row.probe for row in self.rows))
        names = list(dict.fromkeys(_label(row) for row in self.rows))
        count = len(self.targets)
        figure = Figure(figsize=(max(3.2 * count, 6), 4.2), layout="constrained")
        width = 0.8 / len(names)
        for axis, target in zip(
            figure.subplots(1, count, squeeze=False)[0], self.targets, strict=True
        ):
            for place, name in enumerate(names):
                own = [row for row in self.rows if _label(row) == name]
                values = [Mean.of(self.rows[row][target.name]) for row in own]
                at = [
                    probes.index(row.probe) + (place - (len(names) - 1) / 2) * width for row in own
                ]
                errors = [0 if math.isnan(v.error) else v.error for v in values]
                axis.bar(at, [v.mean for v in values], width * 0.92, yerr=errors, capsize=2,
                         label=name, color=f"C{place}", error_kw={"linewidth": 1})  # fmt: skip
            level = Mean.of(self.chance[target.name]).mean
            axis.axhline(level, color="0.3", linestyle="--", linewidth=1, label="chance")
            axis.set(title=target.name, ylabel=METRICS[target.kind])
            axis.set_xticks(range(len(probes)), probes)
            axis.grid(axis="y", alpha=0.3)
            # A probe that overfits can fall far below zero and would squash what matters.
            low, high = axis.get_ylim()
            axis.set_ylim(max(low, -0.5), high)
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)),
                      fontsize=8)  # fmt: skip
        save(figure, path)


def write_json(content: dict[str, Any], path: Path) -> None:
    """A JSON file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def _append(lists: dict[str, list[float]], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        lists.setdefault(name, []).append(value)


def _label(row: Row) -> str:
    return f"{row.subject}, {row.clips}" if row.clips else row.subject


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def distinct(names: Iterable[str]) -> dict[str, str]:
    """Long names → the shortest ends of their paths that tell them apart."""
    names = list(names)
    parts = {name: name.rstrip("/").split("/") for name in names}
    longest = max(map(len, parts.values()), default=1)
    for depth in range(1, longest + 1):
        short = {name: "/".join(part[-depth:]) for name, part in parts.items()}
        if len(set(short.values())) == len(names) and not {"encoder"} & {*short.values()}:
            return short
    return {name: name for name in names}


def claim(run_dir: Path) -> Path:
    """Where results may go.

    Raises:
        RunError: if there are some already.
    """
    if run_dir.is_file() or (run_dir / "probes.json").exists():
        raise RunError(f"{run_dir} holds other results; choose another --run_dir")
    return run_dir
