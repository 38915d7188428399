"""Fine-tune an encoder to a causal model of recorded neurons.

    python recipes/finetune_neural.py
    python recipes/finetune_neural.py --sessions sessions/a sessions/b \\
        --encoder runs/simclr/encoder --config recipes/configs/neural_small.yaml
    python recipes/finetune_neural.py --sessions sessions/a --core resnet
    python recipes/finetune_neural.py --sessions sessions/new --core_from runs/animals \\
        --tuning.mode frozen

Defaults: without --config, the preset neural_sample; without --sessions, a population that is
simulated once; without --encoder, a randomly initialised encoder.
"""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from recipes.samples import sample_session
from ssl_vivit import neural, objectives, training
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.loader import NeuralDataConfig, Sessions, build_sessions
from ssl_vivit.evaluation.monitors.config import NeuralEvaluationConfig
from ssl_vivit.neural.config import (
    BaselineConfig,
    CoreKind,
    NeuralEncoderChoice,
    NeuralModelConfig,
)
from ssl_vivit.objectives.config import NeuralPredictionConfig, TuningConfig
from ssl_vivit.training.config import TrainingConfig, run_directory
from ssl_vivit.training.run_directory import place, reached_step
from ssl_vivit.wording import quantity

SAMPLE_PRESET = Path(__file__).parent / "configs" / "neural_sample.yaml"


@dataclass
class NeuralRecipe:
    """Fine-tune an encoder to a causal model of recorded neurons.

    Args:
        core: vivit uses the encoder; ln, ln_separable, energy, resnet and x3d are baselines.
        core_from: a run or an exported model of neurons whose encoder, adapter, modulator and frame
            stream are used with their weights; settings of these parts are then ignored. Readouts
            are fitted to ``sessions``. ``--tuning.mode frozen`` trains only the readouts.
        encoder: the encoder; ``--encoder DIR`` is short for ``--encoder.path DIR``.
        data: sessions and windows; ``--sessions A B`` is short for ``--data.sessions '["A",
            "B"]'``.
        model: parts of the model around the core.
        baseline: settings of baseline cores.
        objective: the loss.
        tuning: how the encoder is trained.
        training: the training loop.
        evaluation: scores and figures.
    """

    core: CoreKind = "vivit"
    core_from: str | None = None
    encoder: NeuralEncoderChoice = field(
        default_factory=NeuralEncoderChoice, metadata={"--encoder": "path"}
    )
    data: NeuralDataConfig = field(
        default_factory=NeuralDataConfig, metadata={"--sessions": "sessions"}
    )
    model: NeuralModelConfig = field(default_factory=NeuralModelConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    objective: NeuralPredictionConfig = field(default_factory=NeuralPredictionConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: NeuralEvaluationConfig = field(default_factory=NeuralEvaluationConfig)

    def __post_init__(self) -> None:
        if self.core_from is not None and (self.core != "vivit" or self.encoder.path is not None):
            other = (
                f"--core {self.core}" if self.core != "vivit" else f"--encoder {self.encoder.path}"
            )
            raise ValueError(
                f"--core_from {self.core_from} and {other} both set the core; omit one of them"
            )
        self.tuning.check(self.training.steps)
        if self.tuning.mode == "last_blocks" and self.core != "vivit":
            raise ValueError(
                f"tuning.mode last_blocks trains blocks of an encoder, but --core {self.core} has "
                "none; choose another --tuning.mode or another core"
            )


def main() -> None:
    """Build the model, train it, and score the exported model."""
    config = training.parse(NeuralRecipe, preset=SAMPLE_PRESET)
    processes = training.join_processes()
    # Hold the lock until the scores are written, which is after `fit` returns.
    with training.locked_run(run_directory(config.training)):
        table = fine_tune(config, processes)
    if table is not None:
        processes.print(table)


def with_sessions(data: NeuralDataConfig, processes: Any) -> NeuralDataConfig:
    """Return the data settings, with the simulated population if no session is given.

    Args:
        data: settings of the data.
        processes: result of :func:`ssl_vivit.training.join_processes`.
    """
    if data.sessions:
        return data
    return replace(data, sessions=sample_session(processes))


class FittedModel(NamedTuple):
    """A trained model of neurons, with its data and settings.

    Attributes:
        config: settings of the run, with sessions filled in.
        sessions: the opened recordings.
        path: directory of the exported model.
        loop: settings of the loop, restricted to those that the core supports.
        loss: settings of the loss, restricted to those that the core supports.
        started: fraction of readouts whose initial position was near the true receptive field, for
            simulated sessions.
    """

    config: NeuralRecipe
    sessions: Sessions
    path: Path
    loop: TrainingConfig
    loss: NeuralPredictionConfig
    started: Any


def fine_tune(config: NeuralRecipe, processes: Any) -> str | None:
    """Train and score a model of neurons in ``training.run_dir``.

    Args:
        config: settings of the run.
        processes: result of :func:`ssl_vivit.training.join_processes`.

    Returns:
        The table of scores as text; None if the run was stopped.
    """
    fitted = fit_model(config, processes)
    return None if fitted is None else score_model(fitted, processes)


def fit_model(
    config: NeuralRecipe, processes: Any, watch: Callable[[Any, float], None] | None = None
) -> FittedModel | None:
    """Train a model of neurons, and export the best one by validation.

    Args:
        config: settings of the run.
        processes: result of :func:`ssl_vivit.training.join_processes`.
        watch: called after each evaluation on validation trials with the
            :class:`ssl_vivit.training.Moment` and the score; it may end the run.

    Returns:
        The trained model; None if the run was stopped.
    """
    # Imported here, since they load timm or accelerate, which --help does not need.
    import torch

    from ssl_vivit.encoders import ViViT
    from ssl_vivit.evaluation.monitors.neural import NeuralEvaluation
    from ssl_vivit.evaluation.neurons.best_model import place_best
    from ssl_vivit.evaluation.neurons.report import positions_found
    from ssl_vivit.neural.building import own_penalties
    from ssl_vivit.neural.fitted_core import build_on_core, check_encoder, core_inputs, open_core
    from ssl_vivit.neural.readout.energy_start import start_at_energy
    from ssl_vivit.training.processes import Host

    training.check_run(objectives.TunedNeuralPrediction, config.training, training.to_plain(config))
    # Check the path before a population is simulated.
    if config.core == "vivit" and config.encoder.path is not None:
        check_encoder(config.encoder.path)
    fitted = None if config.core_from is None else open_core(config.core_from)
    config = replace(config, data=with_sessions(config.data, processes))
    inputs = None if fitted is None else core_inputs(fitted)
    statistics, told = encoder_statistics(config)
    if inputs is not None:
        statistics, told = core_statistics(config, inputs)
    sessions = build_sessions(
        config.data, seed=config.training.seed, pixel_statistics=statistics, core=inputs
    )
    torch.manual_seed(config.training.seed)
    if fitted is not None:
        built = build_on_core(fitted, config.model, sessions.facts)
    else:
        built = neural.build_neural_model(
            config.core, config.encoder, config.model, config.baseline, sessions.facts,
            longest=max(int(session.lengths.max()) for session in sessions.sessions),
            window=config.data.window,
        )  # fmt: skip
    if config.model.readout_start == "energy":
        built.notes.extend(start_at_energy(built.model, sessions.sessions, sessions.facts))
    started = positions_found(built.model, sessions)
    loop, loss = config.training, config.objective
    # Baseline cores have no layers for timm's layer-wise decay.
    if not isinstance(built.model.encoder, ViViT):
        loop = replace(loop, optimizer=replace(loop.optimizer, layer_decay=1.0))
    loss = replace(loss, regularisation=own_penalties(built.model, loss.regularisation))
    host = Host()
    evaluation = NeuralEvaluation(config.evaluation, sessions, config.tuning, watch)
    beside: dict[str, Any] = {
        "run_config": training.to_plain(config),
        "periodic": evaluation.periodic(),
        "card": {"data": ", ".join(str(session.path) for session in sessions.sessions)},
    }
    tuning = config.tuning
    tuned: dict[str, Any] = {"facts": sessions.facts, "fitted_core": fitted is not None}
    if config.data.session_weights == "equal":
        tuned["session_shares"] = sessions.train.session_shares(loop.total_batch_size)
    objective = objectives.TunedNeuralPrediction(built.model, loss, tuning, **tuned)
    introduce(config, objective, sessions, processes)
    if config.encoder.path is not None:
        told = [*ignored_of_encoder(config.encoder), *told]
    for note in [*told, *built.notes, *cache_notes(config, built.model, sessions)]:
        processes.print(note, file=sys.stderr)
    reached = host.from_main(lambda: reached_step(loop))
    if tuning.mode == "readout_first" and reached < tuning.readout_steps:
        frozen = objectives.TunedNeuralPrediction(
            copy.deepcopy(built.model), loss, replace(tuning, mode="frozen"), **tuned
        )
        first = training.fit(frozen, sessions.train, loop, until=tuning.readout_steps, **beside)
        if first.interrupted:
            return None
        del frozen  # to free the memory of the copy
        loop = replace(loop, resume="auto")
    result = training.fit(objective, sessions.train, loop, **beside)
    if result.encoder is None:
        return None
    if sessions.validation is not None:
        host.from_main(lambda: evaluation.draw_curves(result.run_dir))
    if config.evaluation.keep_best:
        place_best(result.run_dir, host)
    return FittedModel(config, sessions, result.encoder, loop, loss, started)


def score_model(fitted: FittedModel, processes: Any) -> str | None:
    """Fit the readouts of held-out neurons, and score the model on the test trials.

    Args:
        fitted: result of :func:`fit_model`.
        processes: result of :func:`ssl_vivit.training.join_processes`.

    Returns:
        The table of scores as text; None if the run was stopped.
    """
    # Imported here, since they load torch, which --help does not need.
    from ssl_vivit.evaluation.neurons.report import report, summary
    from ssl_vivit.training.processes import Host

    config, sessions, host = fitted.config, fitted.sessions, Host()
    if any(fact.held_out_units for fact in sessions.facts):
        processes.print("fitting the readouts of held-out neurons")
        if not fit_held_out(fitted.path, sessions, fitted.loop, fitted.loss, config.tuning, host):
            return None
    run_dir = fitted.path.parent
    made = report(
        neural.load_neural_model(fitted.path), sessions, run_dir, host, started=fitted.started,
        batch_size=config.evaluation.batch_size, fields=config.evaluation.fields,
        device=processes.device,
    )  # fmt: skip
    return summary(run_dir, made, sessions, fresh=fresh_command(config, run_dir))


def introduce(config: NeuralRecipe, objective: Any, sessions: Sessions, processes: Any) -> None:
    """Print lines about the model, its trained parts and the recordings.

    Args:
        config: settings of the run.
        objective: the TunedNeuralPrediction that is trained.
        sessions: the opened recordings.
        processes: result of :func:`ssl_vivit.training.join_processes`.
    """
    model = objective.model
    encoder = config.encoder.path or f"fresh {config.encoder.name}"
    core = f"vivit, {encoder}" if config.core == "vivit" else config.core
    if config.core_from is not None:
        core = f"of {config.core_from}"
    count, trials = len(sessions.facts), sum(len(fact.split["train"]) for fact in sessions.facts)
    neurons = sum(len(fact.unit_ids) for fact in sessions.facts)
    paths = ", ".join(str(session.path) for session in sessions.sessions)
    lines = [
        f"core     {core}",
        f"trained  {trained_parameters(objective)}",
        f"data     {quantity(count, 'session')}, {quantity(neurons, 'neuron')}, "
        f"{quantity(trials, 'training trial')}: {paths}",
    ]
    if config.model.layers is not None:
        from ssl_vivit.neural.cores.block_reader import blocks_told

        lines.insert(2, f"blocks   {blocks_told(model.encoder, model.block_reader)}")
    fresh = config.core == "vivit" and config.core_from is None and config.encoder.path is None
    if fresh and config.tuning.mode == "frozen":
        lines.append(
            "warning  tuning.mode frozen keeps the random weights of the encoder; give a pretrained "
            "one by --encoder, or set --tuning.mode full"
        )
    processes.print("\n".join(lines), file=sys.stderr)


def cache_notes(config: NeuralRecipe, model: Any, sessions: Sessions) -> list[str]:
    """Return warnings about a ``tuning.feature_cache`` that saves little or no time.

    Args:
        config: settings of the run.
        model: the model of neurons.
        sessions: the opened recordings.
    """
    if not config.tuning.feature_cache:
        return []
    if model.adapter is not None and config.core_from is None:
        return ["tuning.feature_cache: not used, since the adapter before the encoder is trained"]
    lengths = [
        int(session.lengths[trial])
        for session, fact in zip(sessions.sessions, sessions.facts, strict=True)
        for trial in fact.split["train"]
    ]
    longer = sum(length > config.data.window for length in lengths)
    if 2 * longer <= len(lengths):
        return []
    return [
        f"tuning.feature_cache: windows of {config.data.window} frames start at random in longer "
        f"trials, so cached features are rarely reused; --data.window {max(lengths)} uses whole "
        "trials"
    ]


def trained_parameters(objective: Any) -> str:
    """Describe how many parameters are trained, and which are frozen.

    Args:
        objective: a TunedNeuralPrediction.
    """
    frozen = {}
    for name, part in objective.model.named_children():
        every = [weight.numel() for weight in part.parameters()]
        still = [weight.numel() for weight in part.parameters() if not weight.requires_grad]
        if still:
            amount = "all" if len(still) == len(every) else f"{sum(still):,} of"
            frozen[name.replace("_", " ")] = f"{amount} {sum(every):,}"
    weights = [*objective.model.parameters()]
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    told = f"{trained:,} of {sum(weight.numel() for weight in weights):,} parameters; frozen: "
    told += ", ".join(f"{name} ({amount})" for name, amount in frozen.items()) or "none"
    if objective.tuning.mode == "readout_first":
        waiting = "all but the readouts" if objective.fitted_core else "the encoder"
        told += f"; {waiting} is frozen until step {objective.tuning.readout_steps}"
    return told


def fresh_command(config: NeuralRecipe, run_dir: Path) -> str | None:
    """Return the command that trains the run's model from random weights.

    None if the run itself started from random weights.
    """
    if config.encoder.path is None or config.encoder.weights == "fresh":
        return None
    words = ["--config", str(run_dir / "config.yaml"), "--encoder.weights", "fresh"]
    words += ["--run_dir", f"{run_dir}_fresh"]
    return f"python recipes/finetune_neural.py {shlex.join(words)}"


def encoder_statistics(config: NeuralRecipe) -> tuple[tuple[float, float] | None, list[str]]:
    """Return (mean, std) that standardise the encoder's input pixels, and a line about them.

    The pair is None if the sessions' statistics are used instead.
    """
    path = config.encoder.path
    if config.core != "vivit" or path is None:
        return None, []
    if config.data.standardize == "session":
        return None, ["pixels: standardised by the sessions' statistics (data.standardize session)"]
    from ssl_vivit.neural.cores.encoder_fitting import pixel_statistics

    found = pixel_statistics(path)
    if found is None:
        return None, [f"pixels: {path} has no mean and std; the sessions' statistics are used"]
    mean, std = found
    return found, [f"pixels: standardised by the encoder's mean {mean:.3g} and std {std:.3g}"]


def ignored_of_encoder(choice: NeuralEncoderChoice) -> list[str]:
    """Return a line about settings of the encoder that have no effect because of ``--encoder``.

    Settings that have the value of the default preset are not listed.
    """
    from ssl_vivit.neural.cores.encoder_fitting import ignored_settings

    preset = yaml.safe_load(SAMPLE_PRESET.read_text())["encoder"]
    return ignored_settings(choice, NeuralEncoderChoice(**preset))


def core_statistics(
    config: NeuralRecipe, inputs: SessionFacts
) -> tuple[tuple[float, float] | None, list[str]]:
    """Return (mean, std) that standardise the input pixels of a fitted core, and a line about them.

    The pair is None if the sessions' statistics are used instead.

    Args:
        config: settings of the run.
        inputs: ``SessionFacts`` of a session on which the core was trained.
    """
    if config.data.standardize == "session":
        return None, ["pixels: standardised by the sessions' statistics (data.standardize session)"]
    mean, std = inputs.video_mean, inputs.video_std
    return (mean, std), [f"pixels: standardised by the core's mean {mean:.3g} and std {std:.3g}"]


def fit_held_out(
    model: Path,
    sessions: Sessions,
    loop: TrainingConfig,
    loss: NeuralPredictionConfig,
    tuning: TuningConfig,
    host: Any,
) -> bool:
    """Fit readouts of held-out neurons and add them to the exported model.

    Returns:
        False if the fit was stopped.
    """
    fitted_model = neural.load_neural_model(model).model
    objective = objectives.HeldOutNeurons(fitted_model, loss, facts=sessions.facts)
    # The warm-up of a long training run can exceed the number of steps of this fit.
    warmup = min(loop.optimizer.warmup_steps, tuning.held_out_steps // 10)
    second = replace(
        loop,
        run_dir=str(model.parent / "held_out_neurons"),
        steps=tuning.held_out_steps,
        optimizer=replace(loop.optimizer, weight_decay=0.0, layer_decay=1.0, warmup_steps=warmup),
        resume="auto",
        tracker="none",
    )
    settings = {"training": training.to_plain(second), "objective": training.to_plain(loss)}
    made = training.fit(objective, sessions.train.for_held_out_units(), second, run_config=settings)
    if made.encoder is not None:
        fitted = made.encoder
        host.from_main(lambda: place(fitted, model))
    return made.encoder is not None


if __name__ == "__main__":
    training.run(main)
