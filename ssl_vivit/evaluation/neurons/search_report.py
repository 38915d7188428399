"""Report of an Optuna search over settings: table of trials, scores, importance of settings."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_vivit.evaluation.figures import BLUE, ORANGE, caption, legend_below, new_figure, save
from ssl_vivit.evaluation.neurons.comparison import LABELS
from ssl_vivit.files import replaced_file

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure


def write_search(study: optuna.Study, run_dir: Path, metric: str) -> bool:
    """Write ``trials.csv``, ``history.png`` and ``importance.png``.

    Args:
        study: an Optuna study with at least one completed trial.
        run_dir: folder of the files.
        metric: name of the score of a trial.

    Returns:
        True if ``importance.png`` was written; this needs at least two different scores.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    trials = study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])
    settings = sorted({name for trial in trials for name in trial.params})
    with replaced_file(run_dir / "trials.csv") as part, part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", "state", metric, *settings, "folder"])
        for trial in sorted(
            trials, key=lambda each: (each.state != TrialState.COMPLETE, -value(each))
        ):
            state = "complete" if trial.state == TrialState.COMPLETE else "pruned"
            chosen = [trial.params.get(name) for name in settings]
            rows.writerow([trial.number, state, value(trial), *chosen, trial.user_attrs["folder"]])
    scores: dict[TrialState, list[tuple[int, float]]] = {
        state: [(trial.number, value(trial)) for trial in trials if trial.state == state]
        for state in (TrialState.COMPLETE, TrialState.PRUNED)
    }
    finished = scores[TrialState.COMPLETE]
    label = LABELS.get(metric.removeprefix("val/"), metric)
    save(draw_history(finished, scores[TrialState.PRUNED], label), run_dir / "history.png")
    if len({score for _, score in finished}) < 2:
        return False
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    save(draw_importance(found), run_dir / "importance.png")
    return True


def value(trial: optuna.trial.FrozenTrial) -> float:
    """Return a trial's score, or a pruned trial's last intermediate score; NaN without a score."""
    return float("nan") if trial.value is None else trial.value


def draw_history(
    finished: Sequence[tuple[int, float]], pruned: Sequence[tuple[int, float]], label: str
) -> Figure:
    """Draw the score of each trial of a search, and the best score so far.

    Args:
        finished: number and score of each completed trial.
        pruned: number and score of each trial that was ended early.
        label: label of the score axis.
    """
    figure = new_figure(6.0, 3.6)
    axis = figure.subplots()
    numbers, scores = np.array(sorted(finished)).reshape(-1, 2).T
    axis.plot(numbers, scores, "o", color=BLUE, label="trained to its end")
    # The line of the best score extends to the last trial.
    last = max([*numbers, *(number for number, _ in pruned)])
    best = np.maximum.accumulate(scores)
    axis.step([*numbers, last], [*best, best[-1]], where="post", color=BLUE, label="best so far")
    if pruned:
        axis.plot(*np.array(sorted(pruned)).T, "x", color=ORANGE, label="ended early")
    axis.locator_params(axis="x", integer=True, min_n_ticks=1)
    axis.set(xlabel="trial", ylabel=label)
    axis.grid(alpha=0.3)
    legend_below(axis)
    return figure


def draw_importance(importance: Mapping[str, float]) -> Figure:
    """Draw a bar for the importance of each setting, with the largest at the top.

    Args:
        importance: setting → importance; the sum over settings is 1.
    """
    ordered = sorted(importance.items(), key=lambda item: item[1])
    figure = new_figure(7.0, 1.4 + 0.35 * len(ordered))
    axis = figure.subplots()
    axis.barh([name for name, _ in ordered], [value for _, value in ordered], color=BLUE)
    axis.set(xlabel="importance", xlim=(0, 1))
    caption(
        figure, "importance for being among the best trials, by PED-ANOVA (Watanabe et al. 2023)"
    )
    return figure
