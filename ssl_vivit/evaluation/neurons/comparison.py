"""Scores of several models of neurons, by share of the training trials: table, JSON and curve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.figures import COLOURS, new_figure, save
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.files import write_json
from ssl_vivit.neural.scoring.scores import NeuralScores

LABELS = {"bps_mean": "bits per spike", "correlation_mean": "single-trial correlation"}
MARKERS = "osD^vP"


@dataclass
class NeuralComparison:
    """Test scores of every row, share of the training trials and seed.

    Attributes:
        metric: which of a run's scores is shown, as ``scores.json`` names it.
        scores: row → share → all scores of each seed's run.
        references: what models are held against → share → its score.
        facts: what was compared.
    """

    metric: str
    scores: dict[str, dict[float, list[dict[str, float]]]] = field(default_factory=dict)
    references: dict[str, dict[float, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, row: str, share: float, scores: dict[str, float]) -> None:
        """One run's scores."""
        self.scores.setdefault(row, {}).setdefault(share, []).append(scores)

    def refer(self, name: str, share: float, score: float | None) -> None:
        """A line to hold models against; None where it is not known."""
        if score is not None:
            self.references.setdefault(name, {})[share] = score

    def estimate(self, row: str, share: float) -> tuple[float, float]:
        """Mean and standard error over seeds; NaN where there are too few."""
        return mean_and_error(
            [scores.get(self.metric, math.nan) for scores in self.scores[row][share]]
        )

    def shares(self) -> list[float]:
        """Shares of the training trials, ascending."""
        return sorted({share for by_share in self.scores.values() for share in by_share})

    def table(self) -> str:
        """Rows by shares, mean ± standard error over seeds, references below."""
        lines = [[LABELS.get(self.metric, self.metric), *(f"{s:.0%}" for s in self.shares())]]
        for row, by_share in self.scores.items():
            cells = [
                "{:.3f} ± {:.3f}".format(*self.estimate(row, share)) if share in by_share else ""
                for share in self.shares()
            ]
            lines.append([row, *cells])
        for name, known in self.references.items():
            lines.append([name, *(f"{known[s]:.3f}" if s in known else "" for s in self.shares())])
        return text_table(lines)

    def to_json(self) -> dict[str, Any]:
        """All scores as JSON values."""
        results = [
            {"row": row, "share": share, "mean": _number(mean), "standard_error": _number(error),
             "seeds": runs}
            for row, by_share in self.scores.items()
            for share, runs in by_share.items()
            for mean, error in [self.estimate(row, share)]
        ]  # fmt: skip
        references = [
            {"name": name, "share": share, "score": score}
            for name, known in self.references.items()
            for share, score in known.items()
        ]
        return {
            "facts": self.facts, "metric": self.metric, "results": results,
            "references": references,
        }  # fmt: skip

    def write(self, run_dir: Path) -> None:
        """comparison.json and comparison.png."""
        write_json(run_dir / "comparison.json", self.to_json())
        self.chart(run_dir / "comparison.png")

    def chart(self, path: Path) -> None:
        """Score over share of the training trials, error bars of one standard error."""
        figure = new_figure(6.4, 4.4)
        axis, shares = figure.subplots(), self.shares()
        for place, (row, by_share) in enumerate(self.scores.items()):
            own = sorted(by_share)
            means, errors = np.array([self.estimate(row, share) for share in own]).T
            # Side by side, so that bars do not hide each other.
            beside = 1.03 ** (place - (len(self.scores) - 1) / 2)
            axis.errorbar(
                np.array(own) * beside, means, yerr=np.nan_to_num(errors), capsize=3, label=row,
                color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
                markersize=5, linewidth=1.5,
            )  # fmt: skip
        for place, (name, known) in enumerate(self.references.items()):
            axis.plot(sorted(known), [known[share] for share in sorted(known)], label=name,
                      color="0.35", linestyle=("--", ":", "-.")[place % 3], marker="_")  # fmt: skip
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
        axis.minorticks_off()
        axis.set(xlabel="share of the training trials", ylabel=LABELS.get(self.metric, self.metric))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        save(figure, path)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; that of a single value is NaN."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def score_training_repeats(sessions: Sessions) -> dict[str, float] | None:
    """Scores of predicting each test trial by the mean of the training trials of its movie.

    Returns:
        As ``NeuralScores.compute`` names them; None where a test movie was not trained on.
    """
    scores = NeuralScores(sessions.facts)
    tier = "test" if sessions.test else "validation"
    for session, fact in zip(sessions.sessions, sessions.facts, strict=True):
        repeats: dict[str, list[np.ndarray]] = {}
        for trial in fact.split["train"]:
            repeats.setdefault(session.trials[trial].content, []).append(session.responses(trial))
        for trial in fact.split[tier]:
            content = session.trials[trial].content
            if content not in repeats:
                return None
            rates = torch.from_numpy(np.mean(repeats[content], axis=0))[None]
            scores.update(
                session.name, rates, torch.from_numpy(session.responses(trial).copy())[None]
            )
    return scores.compute()


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
