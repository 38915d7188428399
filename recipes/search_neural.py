"""Search settings of models of neurons with Optuna.

    python recipes/search_neural.py --trials 30
    python recipes/search_neural.py --sessions sessions/a --config recipes/configs/neural_small.yaml \\
        --trials 50 --run_dir runs/search --space \\
        '{"training.optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": true},
          "encoder.overrides.spatial_depth": [1, 2, 3], "model.layers": [null, "all"]}'

A trial of the search is a run of recipes/finetune_neural.py in a subfolder; all options of that
recipe can be given here. The score of a trial is its best score on validation trials. Some neurons
are held out of the whole search: the best trial is scored on them at the end. The command may be
started several times at once on one run directory; each process is a worker. Run the command again
to continue a search that was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.finetune_neural import (
    SAMPLE_PRESET,
    NeuralRecipe,
    fit_model,
    score_model,
    with_sessions,
)
from recipes.search_study import STUDY, give_back, next_trial, open_study, running, suggested
from ssl_vivit import training
from ssl_vivit.data.sessions.loader import build_sessions
from ssl_vivit.errors import RunError, UserError
from ssl_vivit.training.config import run_directory
from ssl_vivit.training.run_directory import without_names

if TYPE_CHECKING:
    import optuna

# Ranges around the values of recipes/configs/neural_sample.yaml.
SPACE: dict[str, Any] = {
    "training.optimizer.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
    "encoder.overrides.tubelet_size": [[6, 12, 12], [12, 8, 8], [12, 12, 12]],
    "encoder.overrides.tubelet_stride": [[1, 4, 4], [2, 4, 4]],
    "encoder.overrides.spatial_depth": [1, 2],
    "encoder.overrides.embed_dim": [64, 96, 128],
    "encoder.overrides.mlp_dropout": {"low": 0.0, "high": 0.3},
    "model.layers": [None, "all"],
}


@dataclass
class SearchRecipe(NeuralRecipe):
    """Search settings of models of neurons.

    Args:
        space: values to try for each setting, by dotted name: a list, or a range ``{low, high}``.
            A range contains only integers if both ends are integers; ``log: true`` searches on a
            log scale.
        trials: number of trials of the whole search; a larger number continues a finished search.
        prune: end a trial early if its score is below the median score of other trials at the same
            step.
        held_out_neurons: fraction of the neurons that no trial uses; the best trial is scored on
            them.
    """

    space: dict[str, Any] = field(default_factory=lambda: dict(SPACE))
    trials: int = 20
    prune: bool = True
    held_out_neurons: float = 0.2


NAMES = [entry.name for entry in fields(NeuralRecipe)]


def main() -> None:
    """Run the requested number of trials, and score the best trial."""
    config = training.parse(SearchRecipe, preset=SAMPLE_PRESET)
    common = common_recipe(config)
    check_space(config.space, common)
    try:
        import optuna
    except ImportError:
        raise RunError("a search needs Optuna; run `pip install 'ssl_vivit[search]'`") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    processes, run_dir = training.join_processes(), run_directory(config.training)
    if processes.num_processes > 1:
        raise RunError(
            "a trial of a search runs in one process; start search_neural.py without a launcher, "
            "several times for several workers"
        )
    common = replace(common, data=with_sessions(common.data, processes))
    # Check the sessions, which all trials share.
    build_sessions(common.data)
    study, lock = open_study(run_dir, shared_settings(config), config.prune)
    while (trial := next_trial(study, lock, config.trials)) is not None:
        # Earlier versions gave a continued trial a new number, but kept its folder.
        folder = trial.user_attrs.get("folder", f"trial_{trial.number:04d}")
        trial.set_user_attr("folder", folder)
        processes.print(f"trial {trial.number + 1} of {config.trials}: {run_dir / folder}")
        if not run_trial(study, trial, trial_recipe(common, study, trial, config, run_dir)):
            return
        processes.print(result_line(study, trial.number))
    if others := running(study):
        processes.print(
            f"{len(others)} trials are running in other workers; the last worker, or the next run "
            "of this command, scores the best model"
        )
        return
    conclude(study, common, config, run_dir, processes)


def common_recipe(config: SearchRecipe) -> NeuralRecipe:
    """Return the recipe that all trials share.

    Raises:
        RunError: if there is nothing to search, or a setting is given that the search sets itself.
    """
    if config.trials < 1 or not config.space:
        raise RunError("nothing to search: give --trials above 0, and --space")
    if config.data.held_out_neurons:
        raise RunError(
            f"data.held_out_neurons {config.data.held_out_neurons}: give --held_out_neurons "
            "instead, "
            "which applies to the whole search"
        )
    if not config.evaluation.keep_best:
        raise RunError(
            "evaluation.keep_best false: a search needs the best score of each trial; set it to "
            "true"
        )
    parts = {name: getattr(config, name) for name in NAMES}
    parts["data"] = replace(config.data, held_out_neurons=config.held_out_neurons)
    return NeuralRecipe(**parts)


def shared_settings(config: SearchRecipe) -> dict[str, Any]:
    """Return the settings that must not change when a search is continued."""
    settings = without_names(training.to_plain(config))
    return {name: each for name, each in settings.items() if name not in ("trials", "prune")}


def check_space(space: Mapping[str, Any], common: NeuralRecipe) -> None:
    """Check the settings, values and ranges of a search space.

    Raises:
        RunError: if a setting does not exist or cannot have a value; the message names it.
    """
    for name, where in space.items():
        if isinstance(where, Mapping):
            known = {"low", "high", "log"}
            ends: list[Any] = [where.get("low"), where.get("high")]
            if not where.keys() <= known or not all(type(end) in (int, float) for end in ends):
                raise RunError(
                    f"space, {name}: a range must have the numbers low and high, and optionally "
                    "log; got "
                    f"{json.dumps(where)}"
                )
            if ends[0] >= ends[1]:
                raise RunError(f"space, {name}: low {ends[0]} must be below high {ends[1]}")
            if where.get("log") and ends[0] <= 0:
                raise RunError(f"space, {name}: low {ends[0]} must be above 0 if log is true")
            values = ends
        elif isinstance(where, list) and len(where) > 1:
            values = where
        else:
            raise RunError(
                f"space, {name}: expected a list of two values or more, or a range {{low, high}}; "
                f"got {json.dumps(where)}"
            )
        for value in values:
            training.with_settings(common, {name: value}, "space: ")


def trial_recipe(
    common: NeuralRecipe, study: optuna.Study, trial: Any, config: SearchRecipe, run_dir: Path
) -> NeuralRecipe:
    """Return the recipe of a trial, with the trial's folder as run_dir."""
    values = suggested(study, trial, config.space, config.training.seed)
    recipe = training.with_settings(common, values, "space: ")
    folder = run_dir / trial.user_attrs["folder"]
    return replace(recipe, training=replace(recipe.training, run_dir=str(folder), resume="auto"))


def run_trial(study: optuna.Study, trial: optuna.Trial, recipe: NeuralRecipe) -> bool:
    """Train one model and report its score to the study.

    Returns:
        False if the trial was stopped.

    Raises:
        UserError: if the search has three or more trials, and none of them could be trained.
    """
    from optuna.trial import TrialState

    from ssl_vivit.evaluation.neurons.best_model import best_score

    # Step → score that a continued trial reported before it was interrupted.
    reported = study.get_trials(deepcopy=False)[trial.number].intermediate_values

    def watch(moment: training.Moment, score: float) -> None:
        if not moment.step:
            return
        if moment.step not in reported:
            trial.report(score, moment.step)
        if trial.should_prune():
            trial.set_user_attr("ended_early", True)
            moment.end("the score is below the median of other trials at this step (prune)")

    try:
        fitted = fit_model(recipe, training.join_processes(), watch)
    except (UserError, ValueError) as error:
        trial.set_user_attr("refused", str(error))
        study.tell(trial, state=TrialState.FAIL)
        trials = study.get_trials(deepcopy=False)
        if all("refused" in each.user_attrs for each in trials) and len(trials) >= 3:
            raise
        return True
    except BaseException:
        give_back(trial)
        raise
    found = best_score(Path(str(recipe.training.run_dir)))
    if fitted is None:
        give_back(trial)
        return False
    if found is None:
        trial.set_user_attr("refused", "no validation score was finite")
        study.tell(trial, state=TrialState.FAIL)
    elif trial.user_attrs.get("ended_early"):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, found["score"])
    return True


def result_line(study: optuna.Study, number: int) -> str:
    """Return a line with the score of a trial and the best score so far."""
    from optuna.trial import TrialState

    trial = study.get_trials(deepcopy=False)[number]
    if "refused" in trial.user_attrs:
        return f"trial {number} has no score: {trial.user_attrs['refused']}"
    line = f"trial {number} scores {trial.value:.4f}"
    line += ", ended early" if trial.state == TrialState.PRUNED else ""
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        return line
    best = study.best_trial
    return f"{line}; the best so far is trial {best.number} with {best.value:.4f}"


def conclude(
    study: optuna.Study,
    common: NeuralRecipe,
    config: SearchRecipe,
    run_dir: Path,
    processes: Any,
) -> None:
    """Score the best model on test trials, with the held-out neurons; write tables and figures."""
    from optuna.trial import TrialState

    from ssl_vivit.evaluation.neurons.best_model import best_score
    from ssl_vivit.evaluation.neurons.search_report import write_search

    complete = study.get_trials(states=[TrialState.COMPLETE])
    if not complete:
        raise RunError(f"no trial of {run_dir} could be trained to its end; see {run_dir / STUDY}")
    best = study.best_trial
    processes.print(f"scoring the best trial: {run_dir / best.user_attrs['folder']}")
    fitted = fit_model(trial_recipe(common, study, best, config, run_dir), processes)
    table = None if fitted is None else score_model(fitted, processes)
    if fitted is None or table is None:
        return
    known = best_score(fitted.path.parent)
    assert known is not None  # the trial is complete
    ranked = write_search(study, run_dir, known["name"])
    print(table)
    print(f"trials   {run_dir / 'trials.csv'}, {run_dir / 'history.png'}")
    if ranked:
        print(f"settings {run_dir / 'importance.png'}")


if __name__ == "__main__":
    training.run(main)
