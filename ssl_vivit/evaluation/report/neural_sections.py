"""Sections of a model of neurons that need its recordings: scores, units and traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.errors import SessionError
from ssl_vivit.evaluation.neurons.evaluation import (
    LABELS,
    TierResult,
    evaluate,
    result_rows,
    trial_lines,
)
from ssl_vivit.evaluation.neurons.figures import traces
from ssl_vivit.evaluation.neurons.result_files import unit_columns
from ssl_vivit.evaluation.neurons.scored_tiers import scored_tiers
from ssl_vivit.evaluation.report.page import Section, note, paragraph, picture, table
from ssl_vivit.evaluation.report.run_files import RunFiles
from ssl_vivit.neural.prediction import NeuralPredictor

# Number of best units, and of worst units, that are drawn.
_DRAWN = 3


class ShownMovie(NamedTuple):
    """Recorded and predicted responses to the movie that was shown most often in a tier.

    Attributes:
        recorded: recorded responses, averaged over the movie's trials; NaN where unknown.
        predicted: predicted responses, averaged over the movie's trials.
        trials: number of trials.
    """

    recorded: Float[np.ndarray, "T neurons"]
    predicted: Float[np.ndarray, "T neurons"]
    trials: int


class Scored(NamedTuple):
    """A model of neurons, and its scores on all tiers that were not used for training.

    Attributes:
        predictor: the model.
        tiers: tier → result.
        movies: (tier, session) → responses to the movie that was shown most often.
        columns: name of a column → values; a table with a row for each unit and tier.
    """

    predictor: NeuralPredictor
    tiers: dict[str, TierResult]
    movies: dict[tuple[str, str], ShownMovie]
    columns: dict[str, list[Any]]


def score_model(run: RunFiles, predictor: NeuralPredictor, sessions: Sequence[str]) -> Scored:
    """Score a model with the statistics and the data split used in training.

    Raises:
        SessionError: if recordings are missing, or are not those that the model was trained on.
    """
    missing = [folder for folder in sessions if not Path(folder).is_dir()]
    if missing or not sessions:
        named = f"recording {missing[0]} is missing" if missing else "the run names no recording"
        # A relative path refers to the current folder.
        if missing and not Path(missing[0]).is_absolute():
            named += f" (in {Path.cwd()})"
        raise SessionError(f"{named}; give the sessions' folders by --sessions")
    drop_first = run.setting("data.drop_first") or 0
    data = NeuralDataConfig([*sessions], window=drop_first + 1, drop_first=drop_first)
    found = build_sessions(data, facts=predictor.facts)
    tiers = scored_tiers(found)
    chosen = {
        (tier, session.name): _most_shown(found.sessions[place], [
            trial for number, trial in trials.trials if number == place
        ])
        for tier, trials in tiers.items()
        for place, session in enumerate(found.sessions)
    }  # fmt: skip
    kept: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}

    def seen(tier: str, part: dict[str, Any], rates: Any) -> None:
        key = (tier, part["session"])
        arrays = (rates.cpu().numpy(), part["responses"].cpu().numpy())
        for trial, predicted, recorded in zip(part["trial"].tolist(), *arrays, strict=True):
            if trial in chosen[key]:
                kept.setdefault(key, []).append((recorded, predicted))

    made = evaluate(predictor, tiers, seen=seen)
    movies = {
        key: ShownMovie(
            _mean([recorded for recorded, _ in pairs]),
            _mean([predicted for _, predicted in pairs]),
            len(pairs),
        )
        for key, pairs in kept.items()
    }
    columns = unit_columns({
        tier: own.of_neurons for tier, own in made.items() if own.of_neurons is not None
    })  # fmt: skip
    return Scored(predictor, made, movies, columns)


def scores(tiers: Mapping[str, TierResult]) -> Section:
    """Return a section with scores, confidence intervals and ceilings of each tier."""
    (head, *rows), notes = result_rows(tiers)
    body = "".join(map(paragraph, trial_lines(tiers))) + table(head, rows)
    body += "".join(map(paragraph, notes))
    if not any(name.startswith("feve_") for own in tiers.values() for name in own.scores):
        body += note(
            "No movie of these trials was shown several times, so ceilings are unknown. Scores "
            "that are divided by ceilings (FEVE, normalised correlation) are left out."
        )
    return Section("Scores", body)


def stored_scores(run: RunFiles) -> Section | None:
    """Return a section with the scores in the run's scores.json, or None without this file.

    The file is written by recipes/evaluate_neural.py and recipes/finetune_neural.py.
    """
    found = run.json("scores.json")
    if found is None or "tiers" not in found:
        return None
    if "settings" not in found:  # written by a training run, without intervals
        rows = [
            [tier, label, own["scores"][f"{name}_mean"], own["ceiling"].get(f"{name}_mean")]
            for tier, own in found["tiers"].items()
            for name, label in LABELS.items()
            if f"{name}_mean" in own["scores"]
        ]
        head = ["tier", "score", "value", "true rates"]
        return Section("Scores at the end of the run", table(head, rows))
    return scores({
        tier: TierResult(**own, of_neurons=None) for tier, own in found["tiers"].items()
    })  # fmt: skip


def units(scored: Scored) -> Section:
    """Return a section with the scores of each unit, in a sortable table for each tier."""
    columns = scored.columns
    shown = ["session", "unit", *(name for name in LABELS if name in columns)]
    if any(columns.get("held_out", [])):
        shown.insert(2, "held_out")
    head = [{"held_out": "held out", **LABELS}.get(name, name) for name in shown]
    parts = []
    for tier in scored.tiers:
        rows = [
            [_plain(columns[name][row]) for name in shown]
            for row, own in enumerate(columns["tier"])
            if own == tier
        ]
        parts.append(table(head, rows, sortable=True, caption=f"{tier}: {len(rows)} units"))
    return Section("Units", "".join(parts))


def best_and_worst(scored: Scored, folder: Path) -> Section | None:
    """Return a section with traces of the units with the highest and lowest correlations."""
    parts: list[str] = []
    tier = _shown_tier(scored)
    for fact in scored.predictor.facts:
        movie = scored.movies.get((tier, fact.name))
        values = _correlations(scored.columns, tier, fact.name)
        order = sorted(values, key=lambda unit: -values[unit])
        if movie is None or not order:
            continue
        place = {unit: index for index, unit in enumerate(fact.unit_ids)}
        worst = [unit for unit in order[-_DRAWN:] if unit not in order[:_DRAWN]]
        for name, group in (("best", order[:_DRAWN]), ("worst", worst)):
            if not group:
                continue
            path = folder / f"{name}_{len(parts)}.png"
            columns = [place[unit] for unit in group]
            traces(
                [f"unit {unit}: correlation {values[unit]:.3f}" for unit in group],
                movie.recorded[:, columns], movie.predicted[:, columns], path,
                frames_per_second=fact.frames_per_second, kind=fact.kind,
            )  # fmt: skip
            repeats = f"the mean of {movie.trials} trials" if movie.trials > 1 else "one trial"
            told = (
                f"{fact.name}, {tier}: the {len(group)} {name} units by single-trial correlation, "
            )
            parts.append(picture(path, f"{told}{repeats} of one movie"))
    return Section("Best and worst units", "".join(parts)) if parts else None


def best_units(scored: Scored, count: int) -> dict[str, list[int]]:
    """Return session → ids of the ``count`` units with the highest single-trial correlation."""
    tier = _shown_tier(scored)
    found = {}
    for fact in scored.predictor.facts:
        values = _correlations(scored.columns, tier, fact.name)
        found[fact.name] = sorted(values, key=lambda unit: -values[unit])[:count]
    return found


def _shown_tier(scored: Scored) -> str:
    """Return the tier whose units are ranked and drawn.

    This is the first tier whose scores were not used to select the model. If there is none, it is
    the first tier.
    """
    tests = [tier for tier, own in scored.tiers.items() if not own.validation]
    return next(iter([*tests, *scored.tiers]))


def _correlations(columns: dict[str, list[Any]], tier: str, session: str) -> dict[int, float]:
    return {
        unit: value
        for own, name, unit, value in zip(
            columns["tier"],
            columns["session"],
            columns["unit"],
            columns["correlation"],
            strict=True,
        )
        if own == tier and name == session and np.isfinite(value)
    }


def _most_shown(session: Any, trials: Sequence[int]) -> set[int]:
    by_movie: dict[str, set[int]] = {}
    for trial in trials:
        by_movie.setdefault(session.trials[trial].content, set()).add(trial)
    return max(by_movie.values(), key=len, default=set())


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over trials, ignoring NaN; NaN where all trials are NaN."""
    stacked = np.stack(arrays).astype(np.float64)
    known = np.isfinite(stacked)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, stacked, 0).sum(0) / np.maximum(count, 1), np.nan)


def _plain(value: Any) -> Any:
    return ("yes" if value else "no") if isinstance(value, bool) else value
