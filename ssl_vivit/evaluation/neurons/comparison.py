"""Scores of several models of neurons, by share of the training trials: table, JSON and curve."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.figures import COLOURS, caption, legend_below, panel_figure, save
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.files import write_json
from ssl_vivit.neural.scoring.scores import NeuralScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"bps_mean": "bits per spike", "correlation_mean": "single-trial correlation"}
# What has the score 0.
ZEROS = {"bps_mean": "mean rate of each neuron", "correlation_mean": "chance"}
MARKERS = "osD^vP"


@dataclass
class NeuralComparison:
    """Test scores of every tier, row, share of the training trials and seed.

    Attributes:
        metric: which of a run's scores is shown, as ``scores.json`` names it.
        scores: tier → row → share → all scores of each seed's run.
        references: tier → what models are held against → share → its score.
        facts: what was compared.
        unit: what a share is: a ``share`` of the training trials, or how many ``trials`` of each
            session.
    """

    metric: str
    scores: dict[str, dict[str, dict[float, list[dict[str, float]]]]] = field(default_factory=dict)
    references: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    unit: Literal["share", "trials"] = "share"

    def add(self, tier: str, row: str, share: float, scores: dict[str, float]) -> None:
        """One run's scores on a tier."""
        rows = self.scores.setdefault(tier, {})
        rows.setdefault(row, {}).setdefault(share, []).append(scores)

    def refer(self, tier: str, name: str, share: float, score: float | None) -> None:
        """Add a score to compare models with; None, an unknown score, adds nothing."""
        if score is not None:
            self.references.setdefault(tier, {}).setdefault(name, {})[share] = score

    def estimate(self, tier: str, row: str, share: float) -> tuple[float, float]:
        """Mean and standard error over seeds; NaN where there are too few."""
        return mean_and_error(
            [scores.get(self.metric, math.nan) for scores in self.scores[tier][row][share]]
        )

    def shares(self) -> list[float]:
        """Shares of the training trials, ascending."""
        rows = [by_share for by_row in self.scores.values() for by_share in by_row.values()]
        return sorted({share for by_share in rows for share in by_share})

    def table(self) -> str:
        """For each tier rows by shares, mean ± standard error over seeds, references below."""
        label, shares = LABELS.get(self.metric, self.metric), self.shares()
        lines = []
        for tier, rows in self.scores.items():
            lines.append([f"{tier}: {label}", *map(self._share_text, shares)])
            for row, by_share in rows.items():
                cells = [
                    _cell(*self.estimate(tier, row, share)) if share in by_share else ""
                    for share in shares
                ]
                lines.append([row, *cells])
            for name, known in self.references.get(tier, {}).items():
                lines.append([name, *(f"{known[s]:.3f}" if s in known else "" for s in shares)])
        return text_table(lines)

    def _share_text(self, share: float) -> str:
        return f"{share:.0%}" if self.unit == "share" else f"{share:g} trials"

    def to_json(self) -> dict[str, Any]:
        """All scores as JSON values."""
        results = [
            {"tier": tier, "row": row, self.unit: share, "mean": _number(mean),
             "standard_error": _number(error), "seeds": runs}
            for tier, rows in self.scores.items()
            for row, by_share in rows.items()
            for share, runs in by_share.items()
            for mean, error in [self.estimate(tier, row, share)]
        ]  # fmt: skip
        references = [
            {"tier": tier, "name": name, self.unit: share, "score": score}
            for tier, names in self.references.items()
            for name, known in names.items()
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
        """Score over share of the training trials, a panel a tier; bars are standard errors.

        A line marks the score 0 where the axis reaches it.
        """
        figure, axes = panel_figure(len(self.scores), height=4.4)
        once = False
        for axis, tier in zip(axes, self.scores, strict=True):
            once |= self._panel(axis, tier)
        if once:
            caption(figure, "points without an error bar were measured once")
        save(figure, path)

    def _panel(self, axis: Axes, tier: str) -> bool:
        """Draw a tier; returns whether a point has no error."""
        once = False
        rows, shares = self.scores[tier], self.shares()
        for place, (row, by_share) in enumerate(rows.items()):
            own = sorted(by_share)
            means, errors = np.array([self.estimate(tier, row, share) for share in own]).T
            once |= bool(np.isnan(errors).any())
            # Side by side, so that bars do not hide each other. Caps are wider than markers, which
            # would hide errors close to zero.
            beside = 1.03 ** (place - (len(rows) - 1) / 2)
            axis.errorbar(
                np.array(own) * beside, means, yerr=errors, capsize=5, label=row,
                color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
                markersize=5, linewidth=1.5,
            )  # fmt: skip
        for place, (name, known) in enumerate(self.references.get(tier, {}).items()):
            axis.plot(sorted(known), [known[share] for share in sorted(known)], label=name,
                      color="0.35", linestyle=("--", ":", "-.")[place % 3], marker="_")  # fmt: skip
        low, high = axis.get_ylim()
        if low < 0 < high:
            zero = ZEROS.get(self.metric, "chance")
            axis.axhline(0, color="0.35", linewidth=0.8, linestyle=":", label=f"0: {zero}")
        axis.set_xscale("log")
        axis.set_xticks(shares, [self._share_text(share) for share in shares])
        axis.minorticks_off()
        axis.set(
            title=textwrap.fill(tier, 40),
            xlabel="share of the training trials"
            if self.unit == "share"
            else "training trials of each session",
            ylabel=LABELS.get(self.metric, self.metric),
        )
        axis.grid(alpha=0.3)
        legend_below(axis)
        return once


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; that of a single value is NaN."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def score_training_repeats(sessions: Sessions) -> dict[str, dict[str, float]]:
    """Scores of predicting each test trial by the mean of the training trials of its movie.

    Returns:
        Tier → scores as ``NeuralScores.compute`` names them; without tiers of which a movie was not
        trained on.
    """
    repeats: dict[tuple[int, str], list[np.ndarray]] = {}
    for place, (session, fact) in enumerate(zip(sessions.sessions, sessions.facts, strict=True)):
        for trial in fact.split["train"]:
            movie = (place, session.trials[trial].content)
            repeats.setdefault(movie, []).append(session.responses(trial))
    found = {}
    for tier, trials in sessions.scored().items():
        shown = [(i, sessions.sessions[i].trials[trial].content) for i, trial in trials.trials]
        if not repeats.keys() >= {*shown}:
            continue
        scores = NeuralScores(sessions.facts)
        for movie, (i, trial) in zip(shown, trials.trials, strict=True):
            session = sessions.sessions[i]
            rates = torch.from_numpy(np.mean(repeats[movie], axis=0))[None]
            responses = torch.from_numpy(session.responses(trial))[None]
            scores.update(session.name, rates, responses)
        found[tier] = scores.compute()
    return found


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(mean: float, error: float) -> str:
    """Mean ± standard error; the mean alone where one seed gives no error."""
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
