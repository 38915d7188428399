"""Scores of a trained model of neurons on tiers of trials, with confidence intervals.

95 % intervals describe the uncertainty due to the choice of test movies; see
:mod:`ssl_vivit.evaluation.neurons.bootstrap`. All trials of a movie are resampled together.
Single trials are not resampled: repeats of a movie are not independent, and a trial that is drawn
twice would count as a repeat of itself. Neurons and weights are not resampled. Sessions with one
movie have no intervals.
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
from ssl_vivit.wording import quantity

LABELS = {
    "bps": "bits per spike",
    "correlation": "single-trial correlation",
    "correlation_to_average": "correlation to average",
    "feve": "fraction of explainable variance explained (FEVE)",
    "cc_norm": "normalised correlation (CC_norm)",
}

# Scores from -1 to 1; intervals are limited to this range. CC_norm can be outside the range by
# chance. An end of its interval is then the score.
CORRELATIONS = ("correlation", "correlation_to_average", "oracle", "cc_abs", "cc_norm")

# Intervals over fewer movies, neurons or sessions are marked with the number of these units.
FEW = 5

Units = Literal["trained", "held_out"]


class TierResult(NamedTuple):
    """Scores of a model on the trials of one tier.

    Attributes:
        scores: name → score, by the names of ``NeuralScores.compute``.
        intervals: name → lower and upper end, for scores with an interval.
        held_out: name → score of the held-out neurons; empty without held-out neurons.
        held_out_intervals: name → lower and upper end, for scores in ``held_out``.
        ceiling: name → score of the true rates; empty for recorded sessions.
        trials: session → number of trials.
        movies: session → number of movies in these trials.
        trained_movies: session → number of these movies that are also shown in training trials, of
            this or another session.
        neurons: name → number of neurons over which a score in ``scores`` is averaged.
        held_out_neurons: name → number of neurons over which a score in ``held_out`` is averaged.
        validation: whether the tier has validation trials of the training run. With
            ``evaluation.keep_best``, the score on these trials selected the model.
        of_neurons: scores of each neuron; None for a result that was read from a file.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    held_out: dict[str, float]
    held_out_intervals: dict[str, Interval]
    ceiling: dict[str, float]
    trials: dict[str, int]
    movies: dict[str, int]
    trained_movies: dict[str, int]
    neurons: dict[str, int]
    held_out_neurons: dict[str, int]
    validation: bool
    of_neurons: NeuralScores | None

    def to_json(self) -> dict[str, Any]:
        """Return all attributes except ``of_neurons``, as JSON values."""
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
    """Score a model on each tier of trials.

    Args:
        predictor: the loaded model.
        tiers: name → trials, from :func:`ssl_vivit.evaluation.neurons.scored_tiers.scored_tiers`.
        resamples: number of resamples of the movies; 0 gives no intervals.
        seed: seed of the resamples; all models are scored on equal resamples.
        batch_size: number of trials in a batch.
        device: device of the computation.
        seen: function called after each prediction. Its arguments are the tier, the part of the
            batch (a dictionary with trials of one session), and the predicted rates
            (b, T, neurons).

    Returns:
        Tier → result.
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
            _trained_movies(trials),
            scores.counted(), scores.counted("held_out"),
            any(trial in trials.facts[place].split["validation"] for place, trial in trials.trials),
            scores,
        )  # fmt: skip
    return made


def intervals(
    scores: NeuralScores, draws: Mapping[str, Tensor], units: Units
) -> dict[str, Interval]:
    """Return the 95 % intervals of scores, as a dictionary from the name of the score.

    Intervals of correlations are limited to [-1, 1]. A mean over sessions has an interval if all
    sessions have one. The degrees of freedom for this mean are those of the session with the fewest
    movies.

    Args:
        scores: scores of one tier.
        draws: session → counts (resamples, movies): how often each movie of the session occurs in
            each resample. Sessions with a single movie are left out.
        units: "trained" or "held_out" neurons.
    """
    values = scores.compute(units)
    found = {}
    for name, resampled in scores.resampled(draws, units).items():
        own = [session for session in draws if name.endswith(f"_{session}")]
        of = [max(own, key=len)] if own else [*draws]
        fewest = min(draws[session].shape[1] for session in of)
        ends = interval(values.get(name, np.nan), resampled, fewest)
        if ends is not None and name.startswith(tuple(f"{kind}_" for kind in CORRELATIONS)):
            ends = max(ends[0], min(values[name], -1.0)), min(ends[1], max(values[name], 1.0))
        if ends is not None:
            found[name] = ends
    return found


def result_table(made: Mapping[str, TierResult]) -> str:
    """Return :func:`result_rows` as text."""
    rows, notes = result_rows(made)
    return "\n".join([text_table(rows), *notes])


def result_rows(made: Mapping[str, TierResult]) -> tuple[list[list[str]], list[str]]:
    """Return a table with a row for each tier, session and score, and notes on the marks in it.

    The first row has the names of the columns. Each further row has the value of the score, the
    interval, the number of neurons over which the score is averaged, and the score of the true
    rates. Marks are set on validation tiers and on intervals over fewer than five movies.
    """
    lines = [["tier", "session", "score", "value", "95 % interval", "neurons", "true rates"]]
    few = False
    for tier, own in made.items():
        shown = f"{tier} (validation)" if own.validation and tier != "validation" else tier
        sessions = [*own.trials] + (["mean"] if len(own.trials) > 1 else [])
        for session in sessions:
            movies = own.movies.get(session, min(own.movies.values()))
            for kind, label in LABELS.items():
                key = f"{kind}_{session}"
                for scores, ends, neurons, told in (
                    (own.scores, own.intervals, own.neurons, label),
                    (own.held_out, own.held_out_intervals, own.held_out_neurons,
                     f"{label}, held-out neurons"),
                ):  # fmt: skip
                    if key in scores:
                        true = own.ceiling.get(key)
                        few |= movies < FEW and key in ends
                        lines.append(
                            [
                                shown,
                                session,
                                told,
                                f"{scores[key]:.3f}",
                                interval_text(ends.get(key), movies, "movies"),
                                str(neurons[key]),
                                "–" if true is None else f"{true:.3f}",
                            ]
                        )
    notes = []
    if few:
        notes.append(
            f"intervals marked with a number of movies are over fewer than {FEW} movies, too few "
            "to generalise to other movies"
        )
    if any(own.validation for own in made.values()):
        notes.append(
            "validation: the training run selected the model's step by its score on these trials "
            "(unless evaluation.keep_best was false), so these scores are too high"
        )
    return lines, notes


def trial_lines(made: Mapping[str, TierResult]) -> list[str]:
    """Return one line of text for each tier and session.

    A line has the number of trials, the number of movies in these trials, and the number of these
    movies that are also shown in training trials.
    """
    return [
        f"{tier}, {session}: {quantity(trials, 'trial')} of {quantity(movies, 'movie')}"
        + (f", {known} of them shown in training, too" if known and tier != "train" else "")
        + ("; no intervals, since they need at least two movies" if movies < 2 else "")
        for tier, own in made.items()
        for session, trials in own.trials.items()
        for movies, known in [(own.movies[session], own.trained_movies[session])]
    ]


def interval_text(ends: Interval | None, units: int, name: str) -> str:
    """Return an interval as text, with the number of units if it is below five.

    Args:
        ends: ends of the interval; None gives a dash.
        units: number of resampled units.
        name: name of the units, in the plural.
    """
    if ends is None:
        return "–"
    return f"{ends[0]:.3f} to {ends[1]:.3f}" + (f" ({units} {name})" if units < FEW else "")


def _of_tier(seen: Callable[[str, dict[str, Any], Tensor], None], tier: str) -> Seen:
    return lambda part, rates: seen(tier, part, rates)


def _trained_movies(trials: TrialBatches) -> dict[str, int]:
    """Return session → number of its movies in ``trials`` that training trials also show.

    These may be training trials of any session.
    """
    trained = {
        session.trials[trial].content
        for session, fact in zip(trials.sessions, trials.facts, strict=True)
        for trial in fact.split["train"]
    }
    shown: dict[str, set[str]] = {}
    for place, trial in trials.trials:
        session = trials.sessions[place]
        shown.setdefault(session.name, set()).add(session.trials[trial].content)
    return {name: len(movies & trained) for name, movies in shown.items()}
