"""The study of a search: trials in one file, which several processes share and which outlives kills."""

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
# Of a running trial: the process that trains it; none after the trial was stopped.
PROCESS = "process"


class StudyLock:
    """A lock on a study's file that ends with its process; blocks may be nested.

    Optuna's own locks are files, which stay when their process is killed.

    Args:
        path: the file, which is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._depth = path, 0

    def acquire(self) -> bool:
        """Wait until no other process holds the lock."""
        if not self._depth:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            with suppress(OSError):  # a file system without locks, where one worker is safe
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._depth += 1
        return True

    def release(self) -> None:
        """End the block; the outermost gives the lock back."""
        self._depth -= 1
        if not self._depth:
            os.close(self._descriptor)

    def __enter__(self) -> StudyLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def cut_off_torn_line(self) -> None:
        """Remove the end of a last line that a killed process was writing."""
        with self:
            text = self.path.read_bytes()
            end = text.rfind(b"\n") + 1
            if text[end:].startswith(b"{"):  # else it is no study
                os.truncate(self.path, end)


def open_study(
    run_dir: Path, settings: Mapping[str, Any], prune: bool
) -> tuple[optuna.Study, StudyLock]:
    """Open the study of a run directory, or begin it.

    Args:
        run_dir: the search's directory.
        settings: that all trials have to share.
        prune: end trials early whose score is below the median.

    Raises:
        RunError: for a study of another search, and a file that cannot be read.
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
            f"{path} is no study that can be read ({error}); choose another --run_dir, or remove it"
        ) from None
    if stored is None:
        study.set_user_attr("settings", dict(settings))
    elif wrong := changed_settings(stored, settings):
        raise RunError(
            f"{path} is of a search with other settings: {', '.join(wrong)}; choose another "
            "--run_dir, or remove the folder"
        )
    return study, lock


def next_trial(study: optuna.Study, lock: StudyLock, trials: int) -> optuna.Trial | None:
    """Take over a trial that was stopped or whose process was killed, or begin another one.

    Args:
        study: the search.
        lock: of :func:`open_study`.
        trials: of the whole search.

    Returns:
        None if all trials have ended or are running in other processes.
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
    """Return whether nobody trains a trial that has not ended."""
    process = trial.user_attrs.get(PROCESS)
    return process is None or has_ended(process)


def give_back(trial: Any) -> None:
    """Let a trial that was stopped be continued by the next worker."""
    trial.set_user_attr(PROCESS, None)


def running(study: optuna.Study) -> list[Any]:
    """Return the trials that have not ended."""
    import optuna

    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])


def started(study: optuna.Study) -> int:
    """Return how many trials have ended, were refused or are running."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return sum(trial.state in counted or "refused" in trial.user_attrs for trial in trials)


def suggested(
    study: optuna.Study, trial: Any, space: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return a value of each setting, drawn by a trial.

    Draws depend on the seed, the trial's number and the scores so far, so that a search that was
    killed goes on with the trials of an uninterrupted one.

    Args:
        study: the search.
        trial: one of its trials; one that has ended keeps its values.
        space: setting → its values, or its range.
        seed: of the search.
    """
    import optuna

    values = {}
    for place, (name, where) in enumerate(space.items()):
        (own,) = np.random.SeedSequence([seed, trial.number, place]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(own))
        if isinstance(where, list):
            # Optuna stores numbers and words; tubelets are lists.
            values[name] = json.loads(
                trial.suggest_categorical(name, [json.dumps(value) for value in where])
            )
            continue
        whole = isinstance(where["low"], int) and isinstance(where["high"], int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        values[name] = suggest(name, where["low"], where["high"], log=bool(where.get("log")))
    return values
