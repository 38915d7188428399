"""Compare models of neurons on equal sessions and budgets, by fraction of the training trials.

    python recipes/compare_neural.py --sessions sessions/a \\
        --config recipes/configs/neural_small.yaml --cores vivit energy ln resnet \\
        --encoders runs/simclr/encoder runs/mae/encoder --shares 0.1 0.25 0.5 1.0 --seeds 3

``--trials 4 16 40`` instead of ``--shares`` compares numbers of training trials.

Every cell of the table is a run of recipes/finetune_neural.py, and all options of that recipe can
be given here. Each run has a folder; finished runs are not repeated. --blocks all makes a row for
each block of each encoder, whose model reads this block; with --tuning.mode frozen, the encoders
are not trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple, get_args

from recipes.finetune_neural import (
    SAMPLE_PRESET,
    NeuralRecipe,
    fine_tune,
    with_sessions,
)
from ssl_vivit import training
from ssl_vivit.data.sessions.loader import build_sessions
from ssl_vivit.errors import RunError
from ssl_vivit.evaluation.neurons.comparison import NeuralComparison, score_training_repeats
from ssl_vivit.evaluation.probes.report import distinct
from ssl_vivit.files import read_json
from ssl_vivit.neural.config import CoreKind, Layers
from ssl_vivit.training.config import run_directory
from ssl_vivit.training.run_directory import changed_settings, saved_settings, without_names


@dataclass
class ComparisonRecipe(NeuralRecipe):
    """Compare models of neurons on equal sessions, by fraction of the training trials.

    Args:
        cores: cores trained from random weights, one row each; vivit is the encoder that
            ``encoder`` describes.
        encoders: exported directories or names on the hub, one row each.
        blocks: blocks of each encoder to read instead of ``model.layers``, one row each: a list of
            block numbers (negative ones count from the end) or ``all``; null makes one row per
            encoder.
        cores_from: runs or exported models of neurons whose cores are used, one row each.
        shares: fractions of the training and validation trials; of runs with equal seed, a larger
            fraction includes all trials of a smaller one.
        trials: numbers of training trials of each session, instead of shares.
        seeds: number of runs of each row and fraction. They differ in initial weights, windows,
            dropout and the chosen trials. All rows of one seed have equal trials.
        learning_rates: learning rates by name of a row or core, used instead of
            ``training.optimizer.learning_rate``; cores that are not compared may be named.
        rows: further rows by name, each with its settings by dotted name, such as ``{"frozen":
            {"encoder.path": "runs/mae/encoder", "tuning.mode": "frozen"}}``.
    """

    cores: list[CoreKind] = field(default_factory=lambda: ["vivit", "ln", "ln_separable", "resnet"])
    encoders: list[str] = field(default_factory=list)
    blocks: Layers = None
    cores_from: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=lambda: [1.0])
    trials: list[int] = field(default_factory=list)
    seeds: int = 3
    learning_rates: dict[str, float] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)


NAMES = [entry.name for entry in fields(NeuralRecipe)]


class Cell(NamedTuple):
    """One run of the comparison.

    Attributes:
        row: name of the row in the table.
        share: fraction of the training trials, or their number.
        recipe: recipe of the run.
    """

    row: str
    share: float
    recipe: NeuralRecipe

    @property
    def run_dir(self) -> Path:
        """Directory of the run."""
        return Path(str(self.recipe.training.run_dir))

    def on(self, sessions: str | list[str] | None) -> Cell:
        """Return a copy of the run with other sessions."""
        data = replace(self.recipe.data, sessions=sessions)
        return self._replace(recipe=replace(self.recipe, data=data))


def main() -> None:
    """Lock the directory and run the comparison."""
    config = training.parse(ComparisonRecipe, preset=SAMPLE_PRESET)
    processes, run_dir = training.join_processes(), run_directory(config.training)
    with training.locked_run(run_dir):
        compare(config, run_dir, processes)


def compare(config: ComparisonRecipe, run_dir: Path, processes: Any) -> None:
    """Train and score the unfinished runs, and print the scores of all runs.

    Args:
        config: settings of the comparison.
        run_dir: directory of the comparison.
        processes: result of :func:`ssl_vivit.training.join_processes`.
    """
    # Imported here, since it loads accelerate, which --help does not need.
    from ssl_vivit.training.processes import Host

    planned = cells(config, run_dir)
    # Check the models of all runs before the first one is trained.
    unfinished = not all((cell.run_dir / "scores.json").is_file() for cell in planned)
    if unfinished:
        check_models(config, rows_of(config))
    sessions = with_sessions(config.data, processes).sessions
    planned = [cell.on(sessions) for cell in planned]
    if unfinished and config.trials:
        build_sessions(max(planned, key=lambda cell: cell.share).recipe.data)
    todo = Host().from_main(lambda: [n for n, cell in enumerate(planned) if not finished(cell)])
    for number, cell in enumerate(planned):
        if number in todo:
            processes.print(f"run {number + 1} of {len(planned)}: {cell.run_dir.name}")
            if fine_tune(cell.recipe, processes) is None:
                return
    if not processes.is_main_process:
        return
    found = collected(planned)
    found.facts["settings"] = training.to_plain(config)
    found.write(run_dir)
    print(found.table())
    steps = f"{'at most ' if config.tuning.patience else ''}{config.training.steps}"
    seeds = "one seed" if config.seeds == 1 else f"mean over {config.seeds} seeds ± standard error"
    print(f"{seeds}, {steps} steps each")
    print(f"scores  {run_dir / 'comparison.json'}\nchart   {run_dir / 'comparison.png'}")


def check_models(config: ComparisonRecipe, rows: Mapping[str, NeuralRecipe]) -> None:
    """Check that all encoders and cores can be read, before the first run is trained.

    Args:
        config: settings of the comparison.
        rows: result of :func:`rows_of`.

    Raises:
        NeuralModelError: if an encoder or core cannot be read; the message names the first one.
    """
    # Imported here, since it loads encoders, which --help does not need.
    from ssl_vivit.neural.fitted_core import check_encoder, open_core

    for path in config.encoders:
        check_encoder(path, "--encoders", "--cores_from")
    for path in config.cores_from:
        open_core(path, "--cores_from")
    for name in config.rows:
        recipe, told = rows[name], f"rows, {name}: "
        if recipe.encoder.path is not None:
            check_encoder(recipe.encoder.path, f"{told}encoder.path", f"{told}core_from")
        if recipe.core_from is not None:
            open_core(recipe.core_from, f"{told}core_from")


def rows_of(config: ComparisonRecipe) -> dict[str, NeuralRecipe]:
    """Return the recipe of each row of the table, by the row's name.

    The settings in which the runs of one row differ, such as seed and directory, are not set yet.

    Raises:
        RunError: if there are no rows, two rows have equal names, or --blocks is given without
            --encoders or with --model.layers.
    """
    if config.blocks is not None and (not config.encoders or config.model.layers is not None):
        mend = "omit --model.layers" if config.encoders else "give encoders by --encoders"
        raise RunError(f"--blocks {config.blocks} makes a row for each block of --encoders; {mend}")
    common = NeuralRecipe(**{name: getattr(config, name) for name in NAMES})
    last = replace(common.model, layers=None)  # cores other than encoders have no blocks
    rows: list[tuple[str, NeuralRecipe]] = [
        (core, replace(common, core=core, model=common.model if core == "vivit" else last))
        for core in dict.fromkeys(config.cores)
    ]
    for path, name in distinct(config.encoders).items():
        recipe = replace(common, core="vivit", encoder=replace(common.encoder, path=path))
        if config.blocks is None:
            rows.append((name, recipe))
            continue
        for block in blocks_of(path, config.blocks):
            model = replace(common.model, layers=block)
            rows.append((f"{name} block {block}", replace(recipe, model=model)))
    for path, name in distinct(config.cores_from).items():
        rows.append((name, replace(common, core="vivit", core_from=path, model=last)))
    for name, settings in config.rows.items():
        rows.append((name, training.with_settings(common, settings, f"rows, {name}: ")))
    named = [name for name, _ in rows]
    if len({*named}) < len(named):
        raise RunError(
            f"several rows have equal names: {', '.join(named)}; rename a folder or a row"
        )
    if not rows:
        raise RunError("nothing to compare: give --cores, --encoders, --cores_from or --rows")
    return dict(rows)


def cells(config: ComparisonRecipe, run_dir: Path) -> list[Cell]:
    """Return all runs; all runs of a seed come before those of the next seed.

    Raises:
        RunError: if there is nothing to compare, or settings contradict each other.
    """
    if config.encoder.path is not None:
        raise RunError(
            f"--encoder {config.encoder.path}: give encoders to compare by --encoders instead"
        )
    if config.core_from is not None:
        raise RunError(
            f"--core_from {config.core_from}: give cores to compare by --cores_from instead"
        )
    if config.trials and config.shares != [1.0]:
        raise RunError(
            "--trials and --shares both set the number of training trials; omit one of them"
        )
    if config.data.train_share != 1 or config.data.train_trials is not None:
        raise RunError(
            "data.train_share and data.train_trials are set by the comparison; give --shares or "
            "--trials instead"
        )
    if config.seeds < 1 or not (config.trials or config.shares):
        raise RunError("nothing to compare: give --shares or --trials, and --seeds above 0")
    rows = rows_of(config)
    if unknown := config.learning_rates.keys() - rows.keys() - {*get_args(CoreKind)}:
        names = ", ".join(sorted(unknown))
        raise RunError(f"learning_rates has unknown rows {names}; choose from {', '.join(rows)}")
    return [
        cell_of(config, run_dir, row, recipe, amount, seed)
        for seed in range(config.seeds)
        for amount in config.trials or config.shares
        for row, recipe in rows.items()
    ]


def cell_of(
    config: ComparisonRecipe,
    run_dir: Path,
    row: str,
    recipe: NeuralRecipe,
    amount: float,
    seed: int,
) -> Cell:
    """Return one run of a row.

    Args:
        config: settings of the comparison.
        run_dir: directory of the comparison.
        row: name of the row.
        recipe: recipe of the row.
        amount: fraction of the training trials, or their number.
        seed: index of the seed, from 0.
    """
    # A learning rate for a kind of core does not apply to fitted cores.
    kind = row if recipe.core_from is not None else recipe.core
    rate = config.learning_rates.get(row, config.learning_rates.get(kind))
    loop = recipe.training
    if rate is not None:
        loop = replace(loop, optimizer=replace(loop.optimizer, learning_rate=rate))
    unit, setting = ("trials", "train_trials") if config.trials else ("share", "train_share")
    folder = re.sub(r"[^\w.-]", "_", f"{row}_{unit}{amount:g}_seed{seed}")
    loop = replace(loop, run_dir=str(run_dir / folder), resume="auto", seed=loop.seed + seed)
    drawn: dict[str, Any] = {"share_seed": (recipe.data.share_seed or 0) + seed, setting: amount}
    return Cell(row, amount, replace(recipe, data=replace(recipe.data, **drawn), training=loop))


def blocks_of(path: str, blocks: int | list[int] | Literal["all"]) -> list[int]:
    """Return the sorted numbers of the blocks that ``blocks`` selects in an exported encoder.

    Raises:
        RunError: if there is no encoder.
        NeuralModelError: if the encoder does not have these blocks.
    """
    # Imported here, since it loads timm, which --help does not need.
    from ssl_vivit.encoders import load_encoder
    from ssl_vivit.neural.cores.block_reader import chosen_blocks

    try:
        encoder = load_encoder(path)
    except FileNotFoundError as error:
        raise RunError(f"--encoders: {error}") from None
    return chosen_blocks(encoder, blocks, "--blocks")


def finished(cell: Cell) -> bool:
    """Return True if a run of the comparison has been scored.

    Raises:
        RunError: if the folder contains a run with other settings.
    """
    if not (cell.run_dir / "scores.json").is_file():
        return False
    stored = saved_settings(cell.run_dir / "config.yaml")
    asked = without_names(training.to_plain(cell.recipe))
    # feature_cache does not change results, and runs of earlier versions lack it.
    for settings in (stored.get("tuning", {}), asked["tuning"]):
        settings.pop("feature_cache", None)
    if wrong := changed_settings(stored, asked):
        raise RunError(
            f"{cell.run_dir} was run with other settings: {', '.join(wrong)}; choose another "
            "--run_dir, or remove it"
        )
    return True


def collected(planned: list[Cell]) -> NeuralComparison:
    """Collect the scores of all runs, and the reference scores.

    References are the scores of the true rates of simulated sessions, and of the mean response to
    the same movie in training trials.
    """
    made = [scores_of(cell) for cell in planned]
    counts = all("bps_mean" in own["scores"] for tiers in made for own in tiers.values())
    metric = "bps_mean" if counts else "correlation_mean"
    counted = planned[0].recipe.data.train_trials is not None
    found = NeuralComparison(metric, unit="trials" if counted else "share")
    for cell, tiers in zip(planned, made, strict=True):
        for tier, own in tiers.items():
            found.add(tier, cell.row, cell.share, own["scores"])
            found.refer(tier, "true rates", cell.share, own["ceiling"].get(metric))
    # Which trials belong to a fraction depends on the seed.
    draws = {(cell.share, cell.recipe.data.share_seed): cell for cell in planned}
    repeats: dict[tuple[str, float], list[float]] = {}
    for (share, _), cell in draws.items():
        for tier, scores in score_training_repeats(build_sessions(cell.recipe.data)).items():
            if metric in scores:
                repeats.setdefault((tier, share), []).append(scores[metric])
    for (tier, share), values in repeats.items():
        found.refer(tier, "mean of the training repeats", share, mean(values))
    return found


def scores_of(cell: Cell) -> dict[str, Any]:
    """Return the saved scores of a run, by tier.

    Runs of earlier versions have the single tier ``test``.
    """
    mend = "remove this file, and run the comparison again to score the run"
    stored = read_json(cell.run_dir / "scores.json", mend)
    return stored["tiers"] if "tiers" in stored else {stored["tier"]: stored}


if __name__ == "__main__":
    training.run(main)
