"""The search of settings of models of neurons: trials, resuming, pruning, errors."""

from __future__ import annotations

import csv
import fcntl
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import NEURAL, options, small_session

from recipes import search_neural
from recipes.finetune_neural import SAMPLE_PRESET
from recipes.search_neural import (
    SearchRecipe,
    check_space,
    common_recipe,
    main,
    shared_settings,
)
from recipes.search_study import StudyLock, open_study
from ssl_vivit.files import has_ended, process_name, write_json
from ssl_vivit.training import parse, run

optuna = pytest.importorskip("optuna")

RATES = {"training.optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
SETTINGS = NEURAL | {"training.steps": 4, "tuning.held_out_steps": 2}


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sessions") / "a"
    return small_session(folder, train_trials=8, repeats=2, mean_rate=(8.0, 12.0))


def search(monkeypatch, session: str, run_dir: Path, *more: str, **settings: Any) -> None:
    settings = SETTINGS | {"space": RATES, "training.run_dir": str(run_dir)} | settings
    monkeypatch.setattr(
        sys, "argv", ["search_neural.py", "--sessions", session, *options(settings), *more]
    )
    run(main)


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_best_of_all_trials_is_scored_on_neurons_that_none_has_seen(
    session, tmp_path, monkeypatch, capsys
):
    space = RATES | {
        "model.layers": [None, "all"],
        "encoder.overrides.tubelet_size": [[4, 4, 4], [2, 4, 4]],
    }
    search(monkeypatch, session, tmp_path, trials=2, prune=False, space=space)
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete", "complete"]
    kept = {
        row["folder"]: json.loads((tmp_path / row["folder"] / "best" / "score.json").read_text())
        for row in rows
    }
    for row in rows:
        assert float(row["val/bps_mean"]) == kept[row["folder"]]["score"]
        stored = (tmp_path / row["folder"] / "config.yaml").read_text()
        rate = float(row["training.optimizer.learning_rate"])
        assert 1e-4 <= rate <= 1e-2
        assert f"learning_rate: {rate}" in stored
    best = max(kept, key=lambda folder: kept[folder]["score"])
    assert rows[0]["folder"] == best
    # One of five neurons is held out.
    scored = [folder for folder in kept if (tmp_path / folder / "scores.json").exists()]
    assert scored == [best]
    scores = json.loads((tmp_path / best / "scores.json").read_text())
    assert all(tier["held_out"] for tier in scores["tiers"].values())
    # A larger number continues the search; other settings begin another.
    capsys.readouterr()
    search(monkeypatch, session, tmp_path, trials=3, prune=False, space=space)
    assert len(table(tmp_path)) == 3
    assert "trial 3 of 3" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        search(monkeypatch, session, tmp_path, trials=3, space=RATES)
    told = capsys.readouterr().err
    assert (
        "belongs to a search with other settings: space.encoder.overrides.tubelet_size ([[4" in told
    )
    assert "space.model.layers ([None, 'all'] → not set); choose another --run_dir" in told


class Trained:
    """Replacement of a training, with given scores or an exception."""

    def __init__(self, *results: Any) -> None:
        self.results, self.recipes = list(results), []

    def __call__(self, recipe, processes, watch=None):
        self.recipes.append(recipe)
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        if result is None:  # stopped by a signal
            return None
        run_dir = Path(recipe.training.run_dir)
        said = {"step": 2, "name": "val/bps_mean", "score": max(result)}
        write_json(run_dir / "best" / "score.json", said)
        for step, score in enumerate(result):
            ended = []

            class Moment:
                pass

            Moment.step, Moment.end = step, staticmethod(ended.append)
            watch(Moment, score)
            if ended:
                break
        return "fitted"


def rates_of(trained: Trained) -> list[float]:
    return [recipe.training.optimizer.learning_rate for recipe in trained.recipes]


def folders_of(trained: Trained) -> list[str]:
    return [Path(recipe.training.run_dir).name for recipe in trained.recipes]


@pytest.fixture
def trained(monkeypatch):
    def replace(*results: Any) -> Trained:
        made = Trained(*results)
        monkeypatch.setattr(search_neural, "fit_model", made)
        monkeypatch.setattr(search_neural, "conclude", lambda *given: None)
        return made

    return replace


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), None])
def test_a_stopped_trial_is_continued_in_its_folder(
    session, tmp_path, monkeypatch, trained, stopped
):
    first = trained([0.0, 0.1], stopped)
    if stopped is None:
        search(monkeypatch, session, tmp_path, trials=3)
    else:
        with pytest.raises(SystemExit):
            search(monkeypatch, session, tmp_path, trials=3)
    second = trained([0.0, 0.2], [0.0, 0.3])
    search(monkeypatch, session, tmp_path, trials=3)
    assert folders_of(first) == ["trial_0000", "trial_0001"]
    assert folders_of(second)[0] == "trial_0001"
    assert rates_of(second)[0] == rates_of(first)[1]
    assert len({*folders_of(first), *folders_of(second)}) == 3
    assert len({*rates_of(first), *rates_of(second)}) == 3


def test_the_trial_of_a_killed_worker_is_taken_back(session, tmp_path, monkeypatch, trained):
    first = trained([0.0, 0.1])
    search(monkeypatch, session, tmp_path, trials=1)
    settings = SETTINGS | {"space": RATES, "training.run_dir": str(tmp_path)}
    told = ["--sessions", session, *options(settings)]
    config = parse(SearchRecipe, told, preset=SAMPLE_PRESET)
    study, _ = open_study(tmp_path, shared_settings(config), prune=True)
    for folder, process in (("trial_0001", "dead"), ("trial_0002", process_name())):
        left = study.ask()
        left.suggest_float("training.optimizer.learning_rate", 1e-4, 1e-2, log=True)
        left.set_user_attr("folder", folder)
        host = process_name().rsplit("-", 2)[0]
        left.set_user_attr("process", f"{host}-999999999-0a" if process == "dead" else process)
    second = trained([0.0, 0.2])
    # One trial has ended, one is running, and the dead one is continued.
    search(monkeypatch, session, tmp_path, trials=3)
    assert folders_of(first) == ["trial_0000"]
    assert folders_of(second) == ["trial_0001"]
    assert has_ended(f"{host}-999999999-0a")
    assert not has_ended(process_name())
    assert not has_ended("elsewhere-999999999-0a")


def test_trials_below_the_median_are_ended_early(session, tmp_path, monkeypatch, trained, capsys):
    trained(*[[0.0, 0.5, 0.5]] * 5, [0.0, 0.1, 0.9], [0.0, 0.6, 0.6])
    search(monkeypatch, session, tmp_path, trials=7)
    told = capsys.readouterr().out
    assert "trial 5 scores 0.1000, ended early; the best so far is trial 0 with 0.5000" in told
    assert "trial 6 scores 0.6000; the best so far is trial 6" in told


def test_a_trial_that_cannot_be_trained_is_left_out(
    session, tmp_path, monkeypatch, trained, capsys
):
    trained([0.0, 0.5], ValueError("heads"), [0.0, 0.4])
    search(monkeypatch, session, tmp_path, trials=3)
    assert "trial 1 has no score: heads" in capsys.readouterr().out
    trained(*[ValueError("heads")] * 3)
    with pytest.raises(SystemExit):
        search(monkeypatch, session, tmp_path / "none", trials=9)
    assert "error: heads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"training.lr": [1, 2]}, "space: unknown setting training.lr; did you mean"),
        ({"tuning.mode": ["full", "ice"]}, "space: tuning.mode: expected one of"),
        ({"training.steps": [4]}, "space, training.steps: expected a list of two values or more"),
        ({"training.steps": 4}, "space, training.steps: expected a list of two values or more"),
        ({"training.steps": {"low": 4}}, "space, training.steps: a range must have the numbers low and"),
        ({"training.steps": {"low": 4, "high": 4}}, "low 4 must be below high 4"),
        ({"training.steps": {"low": 0, "high": 4, "log": True}}, "low 0 must be above 0 if log"),
        ({"training.steps": {"low": 1, "high": 4, "lg": True}}, "a range must have the numbers low and"),
    ],
)  # fmt: skip
def test_spaces_that_cannot_be_searched_are_refused(space, message):
    config = parse(SearchRecipe, ["--space", json.dumps(space)])
    with pytest.raises((ValueError, RuntimeError), match=message):
        check_space(config.space, common_recipe(config))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", "0"], "nothing to search: give --trials above 0"),
        (["--data.held_out_neurons", "0.1"], "give --held_out_neurons instead, which applies to"),
        (["--evaluation.keep_best", "false"], "a search needs the best score of each trial"),
        (["--held_out_neurons", "1.5"], "held_out_neurons"),
        (["--spaces", "{}"], "unknown setting spaces; did you mean space?"),
    ],
)
def test_mistakes_are_reported_in_one_line(session, tmp_path, monkeypatch, capsys, more, message):
    with pytest.raises(SystemExit):
        search(monkeypatch, session, tmp_path / "run", *more)
    said = capsys.readouterr().err
    assert message in said
    assert not (tmp_path / "run").exists()


def test_a_damaged_study_is_named(session, tmp_path, monkeypatch, capsys):
    (tmp_path / "study.journal").write_text("no journal\nat all\n")
    with pytest.raises(SystemExit):
        search(monkeypatch, session, tmp_path, trials=1)
    assert f"{tmp_path / 'study.journal'} is not a readable study" in capsys.readouterr().err


def test_a_killed_search_continues_with_the_trials_of_an_uninterrupted_one(
    session, tmp_path, monkeypatch, trained
):
    space = RATES | {"model.layers": [None, "all"]}
    scores = [[0.0, 0.1 * n] for n in range(4)]
    whole = trained(*scores)
    search(monkeypatch, session, tmp_path / "whole", trials=4, space=space)
    killed = []
    for number in (1, 3):
        folder = tmp_path / f"killed_{number}"
        # As a kill leaves it, nothing is told any more; the last line is half written.
        monkeypatch.setattr(search_neural, "give_back", lambda trial: None)
        begun = trained(*scores[:number], SystemExit())
        with pytest.raises(SystemExit):
            search(monkeypatch, session, folder, trials=4, space=space)
        journal = folder / "study.journal"
        text = journal.read_text().replace(process_name(), f"{platform.node()}-999999999-0a")
        journal.write_text(text + '{"op_code": 5, "wor')
        rest = trained(*scores[number:])
        search(monkeypatch, session, folder, trials=4, space=space)
        killed.append([*begun.recipes[:number], *rest.recipes])
    for recipes in killed:
        assert [settings_of(recipe) for recipe in recipes] == [
            settings_of(recipe) for recipe in whole.recipes
        ]
    assert len({*rates_of(whole)}) == 4


def settings_of(recipe) -> tuple[float, Any, str]:
    loop = recipe.training
    return loop.optimizer.learning_rate, recipe.model.layers, Path(loop.run_dir).name


def test_a_trial_that_ended_early_stays_pruned_after_a_kill(
    session, tmp_path, monkeypatch, trained, capsys
):
    trained(*[[0.0, 0.5, 0.5]] * 5, [0.0, 0.1, 0.9])
    tell = optuna.Study.tell

    def killed(study, trial, *given, **named):
        if trial.number == 5:
            raise SystemExit
        return tell(study, trial, *given, **named)

    monkeypatch.setattr(optuna.Study, "tell", killed)
    with pytest.raises(SystemExit):
        search(monkeypatch, session, tmp_path, trials=6)
    monkeypatch.setattr(optuna.Study, "tell", tell)
    journal = tmp_path / "study.journal"
    journal.write_text(
        journal.read_text().replace(process_name(), f"{platform.node()}-999999999-0a")
    )
    # The run is at its end, so no evaluation takes place.
    trained([])
    monkeypatch.setattr(search_neural, "fit_model", lambda *given: "fitted")
    search(monkeypatch, session, tmp_path, trials=6)
    assert "trial 5 scores 0.1000, ended early" in capsys.readouterr().out


def test_the_lock_of_a_study_ends_with_its_process(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom recipes.search_study import StudyLock\n"
        f"with StudyLock(Path({str(tmp_path / 'study.journal')!r})):\n"
        "    print(flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    process.stdout.readline()
    with (tmp_path / "study.journal").open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.communicate()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with StudyLock(tmp_path / "study.journal") as lock, lock:
        pass
