"""Score a fitted model of neurons on chosen tiers, or compare two models.

    python recipes/evaluate_neural.py runs/finetune_neural
    python recipes/evaluate_neural.py runs/a --sessions sessions/a sessions/b \\
        --tiers live_test_main final_test_main --run_dir runs/a_scores
    python recipes/evaluate_neural.py runs/a --against runs/b --sessions sessions/a

Without --sessions the model is scored on the sessions in config.yaml of its run. If there are none,
it is scored on the simulated population that finetune_neural.py uses by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recipes.samples import SAMPLE_SESSION, sample_session
from ssl_vivit import neural, training
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.data.sessions.trials import TrialBatches
from ssl_vivit.errors import ExportError, NeuralModelError, RunError, SessionError
from ssl_vivit.evaluation.probes.report import distinct
from ssl_vivit.evaluation.result_folder import new_folder
from ssl_vivit.files import replaced_directory, write_json
from ssl_vivit.settings import check_least
from ssl_vivit.training.run_directory import saved_settings

# Modules that load encoders are not imported here, not even for type checkers: jsonargparse would
# import them before it prints --help.


@dataclass
class EvaluationRecipe:
    """Score a fitted model of neurons on chosen tiers of its sessions.

    Args:
        model: directory of a run or of an exported model; may be given as first argument.
        sessions: folders of recordings that the model was trained on (all or some of them); null
            uses the sessions in config.yaml of the model's run, or else the simulated population.
        tiers: tiers to score, by their names in tiers.npy; null scores all tiers except train.
        against: a second model to compare on equal trials.
        run_dir: folder for the results; it must be new or empty.
        resamples: number of bootstrap resamples for confidence intervals.
        seed: seed of the bootstrap.
        drop_first: number of frames at the start of each trial that are not scored.
        batch_size: number of trials that are predicted at once.
        parquet: write units.parquet and predictions.parquet.
        nwb: write predictions_SESSION.nwb for each session.
    """

    model: str = "runs/finetune_neural"
    sessions: str | list[str] | None = None
    tiers: str | list[str] | None = None
    against: str | None = None
    run_dir: str = "runs/evaluate_neural"
    resamples: int = 1000
    seed: int = 0
    drop_first: int = 0
    batch_size: int = 8
    parquet: bool = True
    nwb: bool = False

    def __post_init__(self) -> None:
        check_least(self, resamples=0, drop_first=0, batch_size=1)


def main() -> None:
    """Lock the folder for the results and run the evaluation."""
    config = training.parse(EvaluationRecipe, first="model")
    processes = training.join_processes()
    if processes.num_processes > 1:
        raise RunError(
            "models are scored in one process; start recipes/evaluate_neural.py without a launcher"
        )
    run_dir = Path(config.run_dir)
    with training.locked_run(run_dir, "--run_dir"):
        evaluate(config, new_folder(config.run_dir, "--run_dir", "scores"), processes)


def evaluate(config: EvaluationRecipe, run_dir: Path, processes: Any) -> None:
    """Load models and sessions, score the models, and write all results atomically.

    Args:
        config: settings of the evaluation.
        run_dir: folder for the results.
        processes: result of :func:`ssl_vivit.training.join_processes`.
    """
    # Imported here, since they load timm or accelerate, which --help does not need.
    from ssl_vivit.evaluation.neurons.nwb_predictions import check_nwb
    from ssl_vivit.evaluation.neurons.result_files import check_parquet

    if config.parquet:
        check_parquet()
    if config.nwb:
        check_nwb()
    paths = {"model": config.model} | ({"--against": config.against} if config.against else {})
    models = {option: loaded(option, path) for option, path in paths.items()}
    sessions = config.sessions if config.sessions is not None else trained_sessions(config.model)
    if sessions is None:
        for option, predictor in models.items():
            refuse_without_sample(f"{option} {paths[option]}", predictor.sessions)
        sessions = sample_session(processes)
    scored = {
        option: opened(f"{option} {paths[option]}", predictor, sessions, config)
        for option, predictor in models.items()
    }
    refuse_other_trials(scored)
    with replaced_directory(run_dir) as folder:
        folders = {"model": folder, "--against": folder / "against"}
        found = {
            option: score(one, config, folders[option], paths[option], processes.device)
            for option, one in scored.items()
        }
        lines = model_lines(found["model"])
        if config.against is not None:
            lines += compared(found["model"], found["--against"], config, folder)
    print("\n".join([*lines, f"results  {run_dir}"]))


class Scored(NamedTuple):
    """A model and the trials on which it is scored.

    Attributes:
        predictor: the model, a NeuralPredictor.
        facts: ``SessionFacts`` of each session, by the session's name.
        tiers: batches of the trials of each scored tier, by the tier's name.
    """

    predictor: Any
    facts: dict[str, SessionFacts]
    tiers: dict[str, TrialBatches]


def loaded(option: str, path: str) -> Any:
    """Load a model of neurons.

    Args:
        option: the option that gave the path, for messages.
        path: path of the model, see :func:`ssl_vivit.neural.load_neural_model`.

    Returns:
        The NeuralPredictor.

    Raises:
        NeuralModelError: if there is no model at that path.
    """
    try:
        return neural.load_neural_model(path)
    except (FileNotFoundError, ExportError, NeuralModelError) as error:
        raise NeuralModelError(f"{option}: {error}") from None


def trained_sessions(model: str) -> str | list[str] | None:
    """Return the folders of the sessions on which a run trained its model.

    Args:
        model: the run's directory, or its subdirectory ``model``.

    Returns:
        The folders in config.yaml of the run; None if the file does not exist or names no folder.

    Raises:
        RunError: if the file is damaged.
        SessionError: if a folder does not exist.
    """
    path = Path(model)
    file = (path.parent if path.name == "model" else path) / "config.yaml"
    if not file.is_file():
        return None
    found = (saved_settings(file).get("data") or {}).get("sessions")
    folders = [Path(each) for each in ([found] if isinstance(found, str) else found or [])]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing == [SAMPLE_SESSION]:  # the caller creates it again
        return None
    if missing:
        raise SessionError(
            f"{file} names session {missing[0]}, which is not a folder; give the folders of "
            "the sessions by --sessions"
        )
    return found


def refuse_without_sample(model: str, sessions: Sequence[str]) -> None:
    """Check that a model was trained on the simulated population, if no session is given.

    Args:
        model: option and path of the model, for messages.
        sessions: names of the sessions that the model was trained on.

    Raises:
        SessionError: if none of them is the simulated population.
    """
    if SAMPLE_SESSION.name not in sessions:
        raise SessionError(
            f"{model} was trained on {', '.join(sessions)}, not on the simulated population; give "
            "the folders of these sessions by --sessions"
        )


def opened(
    model: str, predictor: Any, sessions: str | list[str], config: EvaluationRecipe
) -> Scored:
    """Open the sessions on which a model is scored.

    Their statistics, and their split into training and test trials, are those that were saved with
    the model.

    Args:
        model: option and path of the model, for messages.
        predictor: the model, a NeuralPredictor.
        sessions: folders of the sessions.
        config: settings of the evaluation.

    Raises:
        SessionError: if a session was not used to train the model, or a tier has no responses.
    """
    from ssl_vivit.evaluation.neurons.scored_tiers import scored_tiers

    data = NeuralDataConfig(
        sessions=sessions, window=config.drop_first + 1, drop_first=config.drop_first
    )
    try:
        found = build_sessions(data, facts=predictor.facts)
    except SessionError as error:
        raise SessionError(f"{model}: {error}") from None
    asked = [config.tiers] if isinstance(config.tiers, str) else config.tiers
    facts = {fact.name: fact for fact in found.facts}
    return Scored(predictor, facts, scored_tiers(found, asked))


def refuse_other_trials(scored: Mapping[str, Scored]) -> None:
    """Check that two models have equal test trials.

    Raises:
        RunError: if their trials differ; the message names the tier.
    """
    first, *others = (one.tiers for one in scored.values())
    for tiers in others:
        for tier in first.keys() | tiers.keys():
            trials = [set(own[tier].trials) if tier in own else set() for own in (first, tiers)]
            if trials[0] != trials[1]:
                raise RunError(
                    f"the models were trained on different trials, so that tier {tier} has "
                    f"{len(trials[0])} trials for one and {len(trials[1])} for the other; set "
                    f"--tiers to tiers on which neither was trained"
                )


def score(
    scored: Scored,
    config: EvaluationRecipe,
    folder: Path,
    path: str,
    device: Any,
) -> dict[str, Any]:
    """Score one model, write scores and predictions to a folder, and return the scores."""
    from ssl_vivit.evaluation.neurons.evaluation import evaluate
    from ssl_vivit.evaluation.neurons.nwb_predictions import PredictedTrial, write_nwb
    from ssl_vivit.evaluation.neurons.result_files import (
        PredictionFile,
        unit_columns,
        write_csv,
        write_parquet,
    )

    folder.mkdir(exist_ok=True)
    kept: dict[str, list[PredictedTrial]] = {}
    with ExitStack() as open_files:
        file = None
        if config.parquet:
            file = open_files.enter_context(PredictionFile(folder / "predictions.parquet"))

        def seen(tier: str, part: dict[str, Any], rates: Any) -> None:
            session = part["session"]
            arrays = (rates.cpu().numpy(), part["responses"].cpu().numpy())
            for trial, predicted, recorded in zip(part["trial"].tolist(), *arrays, strict=True):
                if file is not None:
                    units = scored.facts[session].unit_ids
                    file.add(session, tier, trial, units, predicted, recorded)
                if config.nwb:
                    kept.setdefault(session, []).append(
                        PredictedTrial(tier, trial, predicted, recorded)
                    )

        made = evaluate(
            scored.predictor, scored.tiers, resamples=config.resamples, seed=config.seed,
            batch_size=config.batch_size, device=device, seen=seen,
        )  # fmt: skip
    for session, trials in kept.items():
        write_nwb(folder / f"predictions_{session}.nwb", scored.facts[session], trials, model=path)
    scores = {tier: own.of_neurons for tier, own in made.items() if own.of_neurons is not None}
    table = unit_columns(scores)
    write_csv(folder / "units.csv", table)
    if config.parquet:
        write_parquet(folder / "units.parquet", table)
    stored = {tier: own.to_json() for tier, own in made.items()}
    facts = {"model": path, "settings": training.to_plain(config), "tiers": stored}
    write_json(folder / "scores.json", facts, indent=1)
    return made


def model_lines(made: Mapping[str, Any]) -> list[str]:
    """Return the lines to print about one model's scores."""
    from ssl_vivit.evaluation.neurons.evaluation import result_table, trial_lines

    return [*trial_lines(made), result_table(made)]


def compared(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    config: EvaluationRecipe,
    folder: Path,
) -> list[str]:
    """Compare two models neuron by neuron, write tables and figures, and return lines to print."""
    from ssl_vivit.evaluation.neurons import paired
    from ssl_vivit.evaluation.neurons.result_files import unit_columns, write_csv, write_parquet

    table = paired.paired_columns(
        *(unit_columns({t: own.of_neurons for t, own in made.items()}) for made in (first, second))
    )
    found = paired.differences(table, resamples=config.resamples, seed=config.seed)
    paths = (config.model, str(config.against))
    short = distinct(dict.fromkeys(paths))
    names = [short[path] for path in paths]
    write_csv(folder / "differences.csv", table)
    if config.parquet:
        write_parquet(folder / "differences.parquet", table)
    stored = {
        tier: {kind: own._asdict() for kind, own in scores.items()}
        for tier, scores in found.items()
    }
    facts = {"model": config.model, "against": config.against, "tiers": stored}
    write_json(folder / "comparison.json", facts, indent=1)
    paired.draw_pairs(table, found, names, folder)
    return ["", paired.difference_table(found, names)]


if __name__ == "__main__":
    training.run(main)
