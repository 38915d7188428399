"""Scores of models of neurons by number of training trials, as a table, JSON file and figure."""

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
# Metric → name of the prediction that scores 0.
ZEROS = {"bps_mean": "mean rate of each neuron", "correlation_mean": "chance"}
MARKERS = "osD^vP"


@dataclass
class NeuralComparison:
    """Test scores of models by tier, model, amount of training trials and seed.

    A row is the name of a model, which has one row in the text table. A share is the amount of
    training trials, either a fraction or a number (see ``unit``). A reference is a score without a
    trained model, such as the score of the true rates.

    Attributes:
        metric: score that is shown, by its name in ``scores.json``.
        scores: tier → row → share → one dictionary of scores for each seed.
        references: tier → name of a reference → share → score.
        facts: entries of comparison.json about the comparison, such as its settings.
        unit: unit of the shares: "share" for a fraction of all training trials, "trials" for the
            number of training trials of each session.
    """

    metric: str
    scores: dict[str, dict[str, dict[float, list[dict[str, float]]]]] = field(default_factory=dict)
    references: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    unit: Literal["share", "trials"] = "share"

    def add(self, tier: str, row: str, share: float, scores: dict[str, float]) -> None:
        """Add the test scores of one training run (one seed) on one tier of trials."""
        rows = self.scores.setdefault(tier, {})
        rows.setdefault(row, {}).setdefault(share, []).append(scores)

    def refer(self, tier: str, name: str, share: float, score: float | None) -> None:
        """Add the score of a reference, such as the true rates; a score of None is not added."""
        if score is not None:
            self.references.setdefault(tier, {}).setdefault(name, {})[share] = score

    def estimate(self, tier: str, row: str, share: float) -> tuple[float, float]:
        """Return a model's mean score over seeds and its standard error, NaN for a single seed."""
        return mean_and_error(
            [scores.get(self.metric, math.nan) for scores in self.scores[tier][row][share]]
        )

    def shares(self) -> list[float]:
        """Return all amounts of training trials in the comparison, in ascending order."""
        rows = [by_share for by_row in self.scores.values() for by_share in by_row.values()]
        return sorted({share for by_share in rows for share in by_share})

    def table(self) -> str:
        """Return the scores as a text table, with one block of rows for each tier.

        A cell has the mean ± standard error over seeds. Columns are amounts of training trials.
        Below the models of a tier are the references, such as the score of the true rates.
        """
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
        """Return all scores as JSON values; values that are not finite become null."""
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
        """Write comparison.json and comparison.png."""
        write_json(run_dir / "comparison.json", self.to_json())
        self.chart(run_dir / "comparison.png")

    def chart(self, path: Path) -> None:
        """Draw scores over the number of training trials, with one panel for each tier.

        Error bars are standard errors. A line marks the score 0 if the axis includes it.
        """
        figure, axes = panel_figure(len(self.scores), height=4.4)
        once = False
        for axis, tier in zip(axes, self.scores, strict=True):
            once |= self._panel(axis, tier)
        if once:
            caption(figure, "points without an error bar were measured once")
        save(figure, path)

    def _panel(self, axis: Axes, tier: str) -> bool:
        """Draw the panel of a tier; return whether any point has no standard error."""
        once = False
        rows, shares = self.scores[tier], self.shares()
        for place, (row, by_share) in enumerate(rows.items()):
            own = sorted(by_share)
            means, errors = np.array([self.estimate(tier, row, share) for share in own]).T
            once |= bool(np.isnan(errors).any())
            # Points are shifted sideways, so that error bars do not hide each other. Caps are wider
            # than markers, because markers would hide small errors.
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
            xlabel="fraction of the training trials"
            if self.unit == "share"
            else "training trials of each session",
            ylabel=LABELS.get(self.metric, self.metric),
        )
        axis.grid(alpha=0.3)
        legend_below(axis)
        return once


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is NaN for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def score_training_repeats(sessions: Sessions) -> dict[str, dict[str, float]]:
    """Score a reference: the mean training response to a movie predicts the movie's test trials.

    Returns:
        Tier → scores, which are named as by ``NeuralScores.compute``. A tier is left out if
        training trials do not show all of its movies.
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
    """Return mean ± standard error as text; only the mean if the error is NaN."""
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
