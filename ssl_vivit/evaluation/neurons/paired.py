"""Paired differences of each neuron's scores between two models, on equal trials.

There are two 95 % intervals (:mod:`ssl_vivit.evaluation.neurons.bootstrap`). ``over_neurons``
resamples neurons within each session, and holds for the recorded animals. ``over_sessions``
resamples sessions, and then neurons within each session, and generalises to other animals (a
hierarchical bootstrap; Saravanan, Berman & Sober 2020, Neurons, Behavior, Data analysis, and Theory
3(5)). It needs two or more sessions. Test trials and weights are not resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.evaluation.neurons.bootstrap import Interval, interval, resampled_means
from ssl_vivit.evaluation.neurons.evaluation import LABELS, interval_text
from ssl_vivit.evaluation.neurons.figures import paired_scores
from ssl_vivit.evaluation.neurons.result_files import Columns
from ssl_vivit.evaluation.run_summary import text_table

PANELS = 4


class Difference(NamedTuple):
    """Difference of neurons' scores, first model minus second model.

    Attributes:
        mean: mean over sessions of the mean over neurons.
        over_neurons: 95 % interval of the mean, for these sessions.
        over_sessions: 95 % interval of the mean, for other animals; None for a single session.
        wins: number of neurons that the first model predicts better.
        losses: number of neurons that the second model predicts better.
        ties: number of neurons with equal scores.
        sessions: session → mean difference over its neurons.
    """

    mean: float
    over_neurons: Interval | None
    over_sessions: Interval | None
    wins: int
    losses: int
    ties: int
    sessions: dict[str, float]


def difference(
    by_session: Mapping[str, Float[np.ndarray, " neurons"]], *, resamples: int, seed: int
) -> Difference | None:
    """Summarise the differences of neurons' scores between two models; None if none is finite.

    Args:
        by_session: session → difference of each neuron's score; NaN if a model has no score.
        resamples: number of resamples of the bootstrap; below 2 gives no intervals.
        seed: seed of the bootstrap.
    """
    known = {name: values[np.isfinite(values)] for name, values in by_session.items()}
    known = {name: values for name, values in known.items() if len(values)}
    if not known:
        return None
    together = np.concatenate([*known.values()])
    means = {name: float(values.mean()) for name, values in known.items()}
    mean = float(np.mean([*means.values()]))
    over_neurons = over_sessions = None
    if resamples > 1:
        # If a resample contains a session several times, its neurons are drawn anew each time.
        drawn = np.stack(
            [
                resampled_means(values, (resamples, len(known)), named_generator(seed, name))
                for name, values in known.items()
            ],
            axis=2,
        )
        free = len(together) - len(known) + 1
        over_neurons = interval(mean, drawn[:, 0].mean(1), free)
        if len(known) > 1:
            chosen = named_generator(seed, "sessions").integers(
                len(known), size=(resamples, len(known))
            )
            picked = np.take_along_axis(drawn, chosen[..., None], 2)[..., 0]
            over_sessions = interval(mean, picked.mean(1), len(known))
    return Difference(
        mean, over_neurons, over_sessions,
        int((together > 0).sum()), int((together < 0).sum()), int((together == 0).sum()), means,
    )  # fmt: skip


def paired_columns(first: Columns, second: Columns) -> Columns:
    """Return a table of the scores of both models and their differences.

    Args:
        first: table from :func:`ssl_vivit.evaluation.neurons.result_files.unit_columns`.
        second: table of the second model, with equal neurons and tiers in equal order.

    Returns:
        Columns ``session``, ``tier``, ``unit``, and for each score ``<score>_model``,
        ``<score>_against`` and ``<score>_difference``.
    """
    names = ("session", "tier", "unit")
    assert all(first[name] == second[name] for name in names), "sessions, tiers or units differ"
    table: Columns = {name: first[name] for name in names}
    for kind in LABELS:
        if kind in first:
            one, two = np.array(first[kind]), np.array(second[kind])
            columns = {"model": one, "against": two, "difference": one - two}
            table |= {f"{kind}_{name}": values.tolist() for name, values in columns.items()}
    return table


def differences(table: Columns, *, resamples: int, seed: int) -> dict[str, dict[str, Difference]]:
    """Summarise the differences in a table, as a dictionary: tier → name of the score → summary.

    Args:
        table: table from :func:`paired_columns`.
        resamples: number of resamples of the bootstrap.
        seed: seed of the bootstrap.
    """
    found: dict[str, dict[str, Difference]] = {}
    for tier in dict.fromkeys(table["tier"]):
        for kind in LABELS:
            by_session = of_tier(table, f"{kind}_difference", tier)
            made = difference(by_session, resamples=resamples, seed=seed)
            if made is not None:
                found.setdefault(tier, {})[kind] = made
    return found


def of_tier(table: Columns, column: str, tier: str) -> dict[str, Float[np.ndarray, " neurons"]]:
    """Return session → values of ``column`` in rows of ``tier``; empty without this column."""
    values: dict[str, list[float]] = {}
    rows = zip(table["session"], table["tier"], table.get(column, []), strict=False)
    for session, found, value in rows:
        if found == tier:
            values.setdefault(session, []).append(value)
    return {session: np.array(each) for session, each in values.items()}


def difference_table(found: Mapping[str, Mapping[str, Difference]], names: Sequence[str]) -> str:
    """Return a text table with a row for each tier and score.

    Args:
        found: result of :func:`differences`.
        names: names of the first and the second model.
    """
    lines = [["tier", f"{names[0]} less {names[1]}", "mean", "over neurons", "over sessions",
              "neurons better", "worse", "equal"]]  # fmt: skip
    for tier, scores in found.items():
        for kind, own in scores.items():
            neurons = own.wins + own.losses + own.ties
            ends = [
                interval_text(own.over_neurons, neurons, "neurons"),
                interval_text(own.over_sessions, len(own.sessions), "sessions"),
            ]
            counts = [str(count) for count in (own.wins, own.losses, own.ties)]
            lines.append([tier, LABELS[kind], f"{own.mean:+.3f}", *ends, *counts])
    return text_table(lines)


def draw_pairs(
    table: Columns,
    found: Mapping[str, Mapping[str, Difference]],
    names: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Write a scatter plot for each tier, with a panel for each of the first four scores.

    Args:
        table: table from :func:`paired_columns`.
        found: result of :func:`differences`.
        names: names of the first and the second model.
        folder: folder for the PNG files.

    Returns:
        Paths of the files.
    """
    paths = []
    for tier, scores in found.items():
        panels: dict[str, Any] = {}
        for kind, own in scores.items():
            if len(panels) == PANELS:
                break
            count = own.wins + own.losses + own.ties
            title = f"{LABELS[kind]}\n{names[0]} better for {own.wins} of {count}"
            one, two = (of_tier(table, f"{kind}_{name}", tier) for name in ("against", "model"))
            panels[title] = {session: (one[session], two[session]) for session in one}
        path = folder / f"comparison_{tier.replace('/', '_')}.png"
        paired_scores(panels, path, names=(names[0], names[1]), title=tier)
        paths.append(path)
    return paths
