"""Scores of a finished model of neurons on tiers of trials, with intervals over resampled trials.

A 95 % interval is of the choice of test movies (:mod:`ssl_vivit.evaluation.neurons.bootstrap`). A
movie is drawn with all its trials: repeats of one movie are not independent tests of a model, and a
trial that is drawn twice would be its own repeat. Where every trial shows a movie of its own, single
trials are drawn. Neurons and fitted weights stay as they are. A session that shows one movie has no
intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vivit.data.sessions.trials import TrialBatches
from ssl_vivit.evaluation.neurons.bootstrap import Interval, interval, movie_counts
from ssl_vivit.evaluation.neurons.scoring import Seen, score, score_true_rates
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.neural.scoring.scores import NeuralScores
from ssl_vivit.training.processes import Host

LABELS = {
    "bps": "bits per spike",
    "correlation": "single-trial correlation",
    "correlation_to_average": "correlation to average",
    "feve": "explained of explainable variance",
    "cc_norm": "normalised correlation",
}


Units = Literal["trained", "held_out"]


class TierResult(NamedTuple):
    """Scores of a model on the trials of one tier.

    Attributes:
        scores: as ``NeuralScores.compute`` names them.
        intervals: low and high end of those that have an interval.
        held_out: the same scores of the neurons that were held out; empty where there are none.
        held_out_intervals: of these.
        ceiling: the same scores of the true rates; empty for recorded sessions.
        trials: session → number of trials.
        movies: session → number of movies that they show.
        of_neurons: the scores of each neuron.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    held_out: dict[str, float]
    held_out_intervals: dict[str, Interval]
    ceiling: dict[str, float]
    trials: dict[str, int]
    movies: dict[str, int]
    of_neurons: NeuralScores

    def to_json(self) -> dict[str, Any]:
        """Everything but the scores of neurons, as JSON values."""
        return {name: value for name, value in self._asdict().items() if name != "of_neurons"}


def evaluate(
    predictor: NeuralPredictor,
    tiers: Mapping[str, TrialBatches],
    *,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    seen: Callable[[str, dict[str, Any], Tensor], None] | None = None,
) -> dict[str, TierResult]:
    """Score a model on tiers of trials, each apart.

    Args:
        predictor: the model, as it was loaded.
        tiers: name → trials, as of :func:`ssl_vivit.evaluation.neurons.scored_tiers.scored_tiers`.
        resamples: of the movies; 0 gives no intervals.
        seed: of the resamples. The same seed draws the same movies for every model.
        batch_size: trials at once.
        device: where to compute.
        seen: is called with the tier, each part of a batch and its rates (b, T, neurons).

    Returns:
        Tier → its result.
    """
    model = predictor.to(device).eval().model

    def rates(part: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return model(
                part["video"], part["behaviour"], part["session"], part.get("pupil_centre")
            )

    made = {}
    for tier, trials in tiers.items():
        keep: Seen | None = None
        if seen is not None:
            keep = _of_tier(seen, tier)
        scores = score(
            rates, trials, Host(), batch_size=batch_size, device=device, repeats=True, seen=keep
        )
        draws = {
            name: drawn
            for name in scores.facts
            if (drawn := movie_counts(len(scores.movies(name)), resamples, seed, name, tier))
            is not None
        }
        names = [session.name for session in trials.sessions]
        made[tier] = TierResult(
            scores.compute(), intervals(scores, draws, "trained"),
            scores.compute("held_out"), intervals(scores, draws, "held_out"),
            score_true_rates(trials, repeats=True).compute(),
            {name: count for name in names if (count := len(trials.of_session(name)))},
            {name: count for name in names if (count := len(scores.movies(name)))},
            scores,
        )  # fmt: skip
    return made


def intervals(
    scores: NeuralScores, draws: Mapping[str, Tensor], units: Units
) -> dict[str, Interval]:
    """Ends of the 95 % interval of each score that has one.

    The mean over sessions has one where each of them has; its degrees of freedom are those of the
    session with the fewest movies.

    Args:
        scores: of one tier.
        draws: session → counts of its movies.
        units: which neurons.
    """
    values = scores.compute(units)
    found = {}
    for name, resampled in scores.resampled(draws, units).items():
        own = [session for session in draws if name.endswith(f"_{session}")]
        of = [max(own, key=len)] if own else [*draws]
        fewest = min(draws[session].shape[1] for session in of)
        ends = interval(values.get(name, np.nan), resampled, fewest)
        if ends is not None:
            found[name] = ends
    return found


def result_table(made: Mapping[str, TierResult]) -> str:
    """A row for each tier, session and score: its value, interval, and what the true rates score."""
    lines = [["tier", "session", "score", "value", "95 % interval", "true rates"]]
    for tier, own in made.items():
        sessions = [*own.trials] + (["mean"] if len(own.trials) > 1 else [])
        for session in sessions:
            for kind, label in LABELS.items():
                key = f"{kind}_{session}"
                for scores, ends, told in (
                    (own.scores, own.intervals, label),
                    (own.held_out, own.held_out_intervals, f"{label}, held-out neurons"),
                ):
                    if key in scores:
                        true = own.ceiling.get(key)
                        lines.append(
                            [
                                tier,
                                session,
                                told,
                                f"{scores[key]:.3f}",
                                interval_text(ends.get(key)),
                                "–" if true is None else f"{true:.3f}",
                            ]
                        )
    return text_table(lines)


def trial_lines(made: Mapping[str, TierResult]) -> list[str]:
    """Return a line for each tier and session: its numbers of trials and movies."""
    return [
        f"{tier}, {session}: {trials} {'trial' if trials == 1 else 'trials'} of {movies} "
        f"{'movie' if movies == 1 else 'movies'}"
        + ("; no intervals, which need two movies" if movies < 2 else "")
        for tier, own in made.items()
        for session, trials in own.trials.items()
        for movies in [own.movies[session]]
    ]


def interval_text(ends: Interval | None) -> str:
    """An interval as tables show it."""
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _of_tier(seen: Callable[[str, dict[str, Any], Tensor], None], tier: str) -> Seen:
    return lambda part, rates: seen(tier, part, rates)
