"""Scores of probes as a table, a JSON file and a bar chart.

± is one standard error of a row's mean score. It combines the variation over seeds (clips, folds,
fits, untrained weights) and over the choice of test videos; see
:mod:`ssl_vivit.evaluation.probes.uncertainty`. It includes the choice of training videos only if
each seed draws its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_vivit.errors import RunError
from ssl_vivit.evaluation.figures import caption, panel_figure, save
from ssl_vivit.evaluation.probes.scores import METRICS
from ssl_vivit.evaluation.probes.uncertainty import Estimate
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.files import write_json
from ssl_vivit.objectives.targets import Target

LONG = "1 long clip"
LONG_CLIP = (
    "Several clips are spread over the whole video; 1 long clip has their number of frames, in the "
    "middle of the video, and their labels"
)
SHORT = {"mean average precision": "mAP"}

# Limits of the charts' axes; a bar that ends below is marked with its value.
_LOWEST, _HIGHEST = -0.5, 1.05


class Row(NamedTuple):
    """A row of the table of probes, identified by the source of features, the clips and the probe.

    Attributes:
        subject: name of the encoder or baseline.
        clips: description of the clips of a video.
        probe: name of the probe.
        baseline: whether the row is a baseline.
    """

    subject: str
    clips: str
    probe: str
    baseline: bool = False


@dataclass
class ProbeScores:
    """Scores in the table of probes, for each :class:`Row`, target and seed.

    Attributes:
        targets: columns of the table.
        rows: row → target → one score per seed.
        resampled: row → target → scores on resampled test videos, one array per seed.
        chance: target → chance level, one per seed.
        facts: settings and sizes of the measurement, such as the numbers of videos and of seeds.
    """

    targets: tuple[Target, ...]
    rows: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    resampled: dict[Row, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    chance: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(
        self, row: Row, scores: Mapping[str, float], resampled: Mapping[str, np.ndarray]
    ) -> None:
        """Add the scores of a row for one seed, and the scores on resampled test videos."""
        _append(self.rows.setdefault(row, {}), scores)
        _append(self.resampled.setdefault(row, {}), resampled)

    def add_chance(self, levels: Mapping[str, float]) -> None:
        """Add the chance level of each target for one seed."""
        _append(self.chance, levels)

    def estimate(self, row: Row, target: str) -> Estimate:
        """Return the mean score of a row with its standard error."""
        return Estimate.of(self.rows[row][target], self.resampled[row][target])

    def difference(self, row: Row, other: Row, target: str) -> Estimate:
        """Return the score of ``row`` minus that of ``other``, paired by seed and by test video."""
        return Estimate.of(
            [a - b for a, b in zip(self.rows[row][target], self.rows[other][target], strict=True)],
            [
                a - b
                for a, b in zip(
                    self.resampled[row][target], self.resampled[other][target], strict=True
                )
            ],
        )

    def baselines(self, row: Row) -> list[Row]:
        """Return the baselines with which a row is compared; empty for a baseline.

        These are the baselines with the row's probe and clips. If there are none, they are all
        baselines with the row's probe.
        """
        if row.baseline:
            return []
        others = [r for r in self.rows if r.baseline and r.probe == row.probe]
        return [r for r in others if r.clips == row.clips] or others

    def beats_baselines(self, row: Row, target: str) -> bool:
        """Return whether a score is above chance and all baselines by over two standard errors.

        The standard errors are those of the differences, over seeds and test videos.
        """
        others = self.baselines(row)
        ours, level = self.estimate(row, target), self.chance_level(target)
        margins = [self.difference(row, other, target) for other in others]
        margins.append(ours._replace(mean=ours.mean - level))
        return bool(others) and all(margin.mean > 2 * margin.error for margin in margins)

    def chance_level(self, target: str) -> float:
        """Return the chance level, averaged over seeds; NaN if it is undefined for the labels."""
        known = [value for value in self.chance[target] if math.isfinite(value)]
        return float(np.mean(known)) if known else math.nan

    def table(self) -> str:
        """Return the scores as a text table; a star marks scores that beat all baselines."""
        clips = len({row.clips for row in self.rows}) > 1
        head = ["features of", *["clips"] * clips, "probe"]
        head += [f"{t.name} ({SHORT.get(METRICS[t.kind], METRICS[t.kind])})" for t in self.targets]
        lines = [head]
        for row in self.rows:
            cells = [
                f"{self.estimate(row, t.name)}{' *' if self.beats_baselines(row, t.name) else ''}"
                for t in self.targets
            ]
            lines.append([row.subject, *[row.clips] * clips, row.probe, *cells])
        level = [f"{self.chance_level(t.name):.3f}" for t in self.targets]
        lines.append(["chance", *[""] * clips, "", *level])
        return text_table(lines)

    def legend(self) -> str:
        """Return an explanation of the table's numbers."""
        facts = self.facts
        varied = "folds and fits"
        if facts.get("clips", 1) == 1:
            varied = "clips, folds and fits"
        return (
            f"{facts['train_videos']} training videos, {facts['test_videos']} test videos; mean "
            f"over {facts['seeds']} seeds ± standard error over seeds ({varied}) and the choice of "
            "test videos. The choice of training videos is not included if all are used. "
            "*: more than two standard errors above chance and above every baseline with that "
            "probe, paired by seed and video"
            + "".join(
                f". {name}: {count} encoders, used by the seeds in turn"
                for name, count in facts.get("encoders_of", {}).items()
                if count > 1
            )
            + (f". {LONG_CLIP}" if any(row.clips == LONG for row in self.rows) else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Return all scores as JSON values; values that are not finite become null."""
        results = [
            {
                "subject": row.subject,
                "clips": row.clips,
                "probe": row.probe,
                "baseline": row.baseline,
                "target": t.name,
                "metric": METRICS[t.kind],
                "mean": _number(self.estimate(row, t.name).mean),
                **_errors(self.estimate(row, t.name)),
                "scores": [_number(value) for value in scores[t.name]],
                "beats_baselines": self.beats_baselines(row, t.name),
                "above": [
                    {
                        "subject": other.subject,
                        "clips": other.clips,
                        "difference": _number(self.difference(row, other, t.name).mean),
                        **_errors(self.difference(row, other, t.name)),
                    }
                    for other in self.baselines(row)
                ],
            }
            for row, scores in self.rows.items()
            for t in self.targets
        ]
        levels = {name: _number(self.chance_level(name)) for name in self.chance}
        return {"facts": self.facts, "chance": levels, "results": results}

    def write(self, run_dir: Path) -> None:
        """Write probes.json and probes.png."""
        self.chart(run_dir / "probes.png")
        write_json(run_dir / "probes.json", self.to_json())

    def chart(self, path: Path) -> None:
        """Draw bars of scores by probe and features, with one panel for each target.

        Error bars are standard errors, and a dashed line is chance. A caption explains missing
        error bars, and error bars without caps.
        """
        probes = list(dict.fromkeys(row.probe for row in self.rows))
        names = list(dict.fromkeys(_label(row) for row in self.rows))
        count = len(self.targets)
        figure, panels = panel_figure(count)
        width = 0.8 / len(names)
        without_error = without_cap = False
        for axis, target in zip(panels, self.targets, strict=True):
            for place, name in enumerate(names):
                own = [row for row in self.rows if _label(row) == name]
                values = [self.estimate(row, target.name) for row in own]
                at = [
                    probes.index(row.probe) + (place - (len(names) - 1) / 2) * width for row in own
                ]
                without_error |= any(math.isnan(v.error) for v in values)
                without_cap |= any(
                    v.mean - v.error < _LOWEST or v.mean + v.error > _HIGHEST for v in values
                )
                axis.bar(at, [v.mean for v in values], width * 0.92, yerr=[v.error for v in values],
                         capsize=2, label=name, color=f"C{place}",
                         error_kw={"linewidth": 1})  # fmt: skip
                for x, value in zip(at, values, strict=True):
                    if value.mean < _LOWEST:
                        # Turned by 90 degrees, this arrow points down.
                        axis.annotate(f" ◀ {value.mean:.2g}", (x, _LOWEST), rotation=90, fontsize=9,
                                      ha="center", va="bottom", zorder=5,
                                      bbox={"color": "white", "alpha": 0.8, "pad": 1})  # fmt: skip
            level = self.chance_level(target.name)
            axis.axhline(level, color="0.3", linestyle="--", linewidth=1, label="chance")
            axis.set(title=target.name, ylabel=METRICS[target.kind])
            axis.set_xticks(range(len(probes)), probes)
            axis.grid(axis="y", alpha=0.3)
            # Scores are at most 1, but an overfitted probe can be far below 0. Without limits, such
            # a bar or its error bar would compress the other bars.
            low, high = axis.get_ylim()
            # The axis extends below the chance level, whose line the border would hide.
            low = min(low, level - 0.03 * (high - low))
            axis.set_ylim(max(low, _LOWEST), min(high, _HIGHEST))
        handles, labels = axis.get_legend_handles_labels()
        columns = max(1, min(3, 110 // (max(map(len, labels)) + 7)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
        notes = []
        if without_error:
            notes.append("bars without an error bar were measured once")
        if without_cap:
            notes.append("error bars without a cap extend beyond the axis")
        if notes:
            caption(figure, "; ".join(notes))
        save(figure, path)


def _append(lists: dict[str, list[Any]], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        lists.setdefault(name, []).append(value)


def _label(row: Row) -> str:
    return f"{row.subject}, {row.clips}" if row.clips else row.subject


def _errors(estimate: Estimate) -> dict[str, float | None]:
    return {
        "standard_error": _number(estimate.error),
        "standard_error_over_seeds": _number(estimate.over_seeds),
        "standard_error_over_videos": _number(estimate.over_videos),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def distinct(names: Iterable[str]) -> dict[str, str]:
    """Return path → shortest suffix that distinguishes the path from the other paths."""
    names = list(names)
    parts = {name: name.rstrip("/").split("/") for name in names}
    longest = max(map(len, parts.values()), default=1)
    for depth in range(1, longest + 1):
        short = {name: "/".join(part[-depth:]) for name, part in parts.items()}
        if len(set(short.values())) == len(names) and not {"encoder"} & {*short.values()}:
            return short
    return {name: name for name in names}


def claim(run_dir: Path) -> Path:
    """Check that a directory holds no results of probes, and return it.

    Raises:
        RunError: if the directory is a file, or holds probes.json or a training run.
    """
    results = [run_dir / name for name in ("probes.json", "config.yaml")]
    if run_dir.is_file() or any(path.exists() for path in results):
        raise RunError(
            f"--run_dir {run_dir} is a file or holds other results; choose another --run_dir"
        )
    return run_dir
