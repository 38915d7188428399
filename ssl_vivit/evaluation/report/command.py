"""Write the report of a run as one HTML page, which needs no network.

python -m ssl_vivit.evaluation.report runs/neurons
python -m ssl_vivit.evaluation.report runs/neurons --compare runs/compare/comparison.json
python -m ssl_vivit.evaluation.report runs/simclr --out simclr.html
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ssl_vivit import training
from ssl_vivit.errors import DataError, RunError
from ssl_vivit.evaluation.report.page import Section, note, page
from ssl_vivit.evaluation.report.run_files import RunFiles
from ssl_vivit.files import read_json, write_text
from ssl_vivit.settings import check_least


@dataclass
class ReportCommand:
    """Write the report of a run as one HTML page.

    Args:
        run: directory of the run; may be given as the first argument.
        out: path of the page; null writes report.html to the run's directory.
        sessions: folders of the recordings of a model of neurons; null takes those in the run's
            config.
        compare: path of a comparison.json from recipes/compare_neural.py, which compares the model
            with baselines.
        draw: number of units per session whose receptive fields and tuning are drawn; 0 omits both.
    """

    run: str = "runs/finetune_neural"
    out: str | None = None
    sessions: str | list[str] | None = None
    compare: str | None = None
    draw: int = 6

    def __post_init__(self) -> None:
        check_least(self, draw=0)


def main() -> None:
    """Read the run, compute scores and figures that it does not contain, and write the page."""
    config = training.parse(ReportCommand, first="run")
    run = RunFiles(Path(config.run))
    out = Path(config.out) if config.out is not None else run.folder / "report.html"
    if out.is_dir():
        raise RunError(f"--out {out} is a directory; give the name of an HTML file")
    with TemporaryDirectory() as folder:
        found = sections(run, config, Path(folder))
    from ssl_vivit.evaluation.report.training_sections import state

    told = state(run)
    if run.going_on:
        print(f"{told} The report shows the results so far.", file=sys.stderr)
    write_text(out, page(run.folder.resolve().name, told, found))
    print(f"report  {out}")


def sections(run: RunFiles, config: ReportCommand, folder: Path) -> list[Section]:
    """Return all sections whose files the run's directory has, in the order of the page.

    Args:
        run: files of the run.
        config: options of the command.
        folder: temporary folder for figures.
    """
    # Imported here to keep --help fast; these modules load torch.
    from ssl_vivit.evaluation.report import training_sections as of_training
    from ssl_vivit.evaluation.report.comparison_sections import comparison

    # Read before the model is evaluated, so that a wrong file is reported at once.
    compared: list[Section | None] = []
    own = run.folder / "comparison.json"
    for path in [*([own] if own.is_file() else []), *map(Path, filter(None, [config.compare]))]:
        content = read_json(path, "give a comparison.json of recipes/compare_neural.py")
        compared.append(comparison(content, path))
    found: list[Section | None] = []
    if run.model is not None:
        found += neural(run, config, folder)
    else:
        from ssl_vivit.evaluation.report.neural_sections import stored_scores

        found.append(stored_scores(run))
    found += compared
    found += [
        of_training.probes(run),
        of_training.csv_section(run.folder / "units.csv", "Units"),
        of_training.csv_section(run.folder / "differences.csv", "Differences of units"),
        of_training.csv_section(run.folder / "trials.csv", "Trials of the search"),
        of_training.figures(run, folder),
        of_training.numbers(run),
        of_training.environment(run),
        of_training.settings(run),
    ]
    return [part for part in found if part is not None]


def neural(run: RunFiles, config: ReportCommand, folder: Path) -> list[Section | None]:
    """Return the sections of a model of neurons; scores and traces need its recordings."""
    import torch

    from ssl_vivit.errors import SessionError
    from ssl_vivit.evaluation.report import model_sections as of_model
    from ssl_vivit.evaluation.report import neural_sections as of_recordings
    from ssl_vivit.neural.checkpoint import load_neural_model

    assert run.model is not None
    predictor = load_neural_model(run.model).eval()
    predictor.to("cuda" if torch.cuda.is_available() else "cpu")
    named = run.setting("data.sessions") if config.sessions is None else config.sessions
    folders = [named] if isinstance(named, str) else named or []
    if not isinstance(folders, list) or not all(isinstance(each, str) for each in folders):
        raise DataError(
            f"{run.folder / 'config.yaml'} is damaged: data.sessions is {named!r}, not a list of "
            "folders; give the folders by --sessions"
        )
    found: list[Section | None] = []
    best: dict[str, list[int]] = {}
    print("scoring the model on the test trials", file=sys.stderr)
    try:
        scored = of_recordings.score_model(run, predictor, folders)
    except SessionError as error:
        if config.sessions is not None:
            raise
        told = f"Scores, units and traces are left out: {error}."
        print(told, file=sys.stderr)
        found += [Section("Recordings", note(told)), of_recordings.stored_scores(run)]
    else:
        best = of_recordings.best_units(scored, config.draw)
        found += [
            of_recordings.scores(scored.tiers),
            of_recordings.best_and_worst(scored, folder),
            of_recordings.units(scored),
        ]
    if config.draw:
        print("drawing receptive fields and tuning curves; --draw 0 omits them", file=sys.stderr)
    for fact in predictor.facts if config.draw else []:
        chosen = best.get(fact.name) or list(fact.unit_ids[: config.draw])
        found += [
            of_model.fields(predictor, fact.name, chosen, folder),
            of_model.tuning(predictor, fact.name, chosen, folder),
        ]
    return found
