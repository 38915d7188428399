"""The study of a search: a file of trials, shared by several processes and safe against kills."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_vivit.errors import RunError
from ssl_vivit.files import has_ended, process_name
from ssl_vivit.training.run_directory import changed_settings

if TYPE_CHECKING:
    import optuna

STUDY = "study.journal"
# Attribute of a trial: the process that trains it; removed when the trial is stopped.
PROCESS = "process"


class StudyLock:
    """A reentrant lock on a study's file, which is released when the locking process ends.

    Optuna's own locks are files, which remain if the locking process is killed.

    Args:
        path: the file, which is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._depth = path, 0

    def acquire(self) -> bool:
        """Wait until no other process holds the lock."""
        if not self._depth:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # a file system without locks supports one worker
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._depth += 1
        return True

    def release(self) -> None:
        """Undo one ``acquire``; the lock is released when all are undone."""
        self._depth -= 1
        if not self._depth:
            os.close(self._descriptor)

    def __enter__(self) -> StudyLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def cut_off_torn_line(self) -> None:
        """Remove an incomplete last line of the file, which a killed process has left."""
        with self:
            text = self.path.read_bytes()
            end = text.rfind(b"\n") + 1
            if text[end:].startswith(b"{"):  # lines of a study are JSON objects
                os.truncate(self.path, end)


def open_study(
    run_dir: Path, settings: Mapping[str, Any], prune: bool
) -> tuple[optuna.Study, StudyLock]:
    """Open or create the study of a run directory.

    Args:
        run_dir: directory of the search.
        settings: settings that all trials share.
        prune: end a trial early if its score is below the median score of other trials at the same
            step.

    Returns:
        The study and its lock.

    Raises:
        RunError: if the study belongs to a search with other settings, or cannot be read.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = run_dir / STUDY
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = StudyLock(path)
    try:
        lock.cut_off_torn_line()
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path), lock)),  # type: ignore[arg-type]
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
        )
        stored = study.user_attrs.get("settings")
    except (ValueError, KeyError, AssertionError, OSError) as error:
        raise RunError(
            f"{path} is not a readable study ({error}); choose another --run_dir, or remove it"
        ) from None
    if stored is None:
        study.set_user_attr("settings", dict(settings))
    elif wrong := changed_settings(stored, settings):
        raise RunError(
            f"{path} belongs to a search with other settings: {', '.join(wrong)}; choose another "
            "--run_dir, or remove the folder"
        )
    return study, lock


def next_trial(study: optuna.Study, lock: StudyLock, trials: int) -> optuna.Trial | None:
    """Return a trial to train: an interrupted one, or else a new one.

    Args:
        study: the study.
        lock: the study's lock from :func:`open_study`.
        trials: number of trials of the whole search.

    Returns:
        The trial; None if all trials have ended or are running in other processes.
    """
    import optuna

    with lock:
        left = [trial for trial in running(study) if is_left(trial)]
        if left:
            trial = optuna.Trial(study, left[0]._trial_id)
        elif started(study) < trials:
            trial = study.ask()
        else:
            return None
        trial.set_user_attr(PROCESS, process_name())
    return trial


def is_left(trial: Any) -> bool:
    """Return True if no running process trains this unfinished trial."""
    process = trial.user_attrs.get(PROCESS)
    return process is None or has_ended(process)


def give_back(trial: Any) -> None:
    """Mark a trial as interrupted, so that the next worker continues it."""
    trial.set_user_attr(PROCESS, None)


def running(study: optuna.Study) -> list[Any]:
    """Return the trials that have not ended."""
    import optuna

    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])


def started(study: optuna.Study) -> int:
    """Return the number of trials that have ended, failed or are running."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return sum(trial.state in counted or "refused" in trial.user_attrs for trial in trials)


def suggested(
    study: optuna.Study, trial: Any, space: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Draw a value of each setting for a trial.

    The values depend only on the seed, the trial's number and the scores so far, so that a
    continued search has the trials of an uninterrupted one.

    Args:
        study: the study.
        trial: a trial of the study; if it already has values, it keeps them.
        space: list of values, or range, of each setting, by the setting's dotted name.
        seed: seed of the search.
    """
    import optuna

    values = {}
    for place, (name, where) in enumerate(space.items()):
        (own,) = np.random.SeedSequence([seed, trial.number, place]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(own))
        if isinstance(where, list):
            # Optuna cannot store lists, such as tubelet sizes, so values are stored as JSON.
            values[name] = json.loads(
                trial.suggest_categorical(name, [json.dumps(value) for value in where])
            )
            continue
        whole = isinstance(where["low"], int) and isinstance(where["high"], int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        values[name] = suggest(name, where["low"], where["high"], log=bool(where.get("log")))
    return values
