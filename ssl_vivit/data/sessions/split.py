"""Split of trials into training, validation and test, and choice of held-out neurons.

The tiers of a session are kept. If training trials are moved to validation, all trials of a movie
are moved together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from math import ceil

import numpy as np

from ssl_vivit.data.randomness import name_fraction
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.layout import TIERS
from ssl_vivit.errors import SessionError

Split = dict[str, np.ndarray]


def split_trials(
    sessions: Sequence[Session],
    *,
    validation_share: float,
    train_share: float,
    train_trials: int | None = None,
    share_seed: int | None = None,
) -> tuple[list[Split], list[str]]:
    """Return the trials of each tier of each session.

    In a session without validation trials, a fraction of the training movies is moved to
    validation, with all of their training trials. These are the movies with the smallest content
    hashes. Movies that are shown in test trials, or in training trials of sessions with a
    validation tier, are not moved. Then a fraction of the
    training trials and of the validation trials is chosen by ``train_share`` or ``train_trials``.
    Trials are chosen by a hash of their names, so a larger fraction includes a smaller one.

    Args:
        sessions: the sessions.
        validation_share: fraction of a session's movies that are moved to validation if it has no
            validation trials.
        train_share: fraction of the training and of the validation trials that are used. Both
            numbers are rounded up in each session, so each is at least one.
        train_trials: number of training trials of each session, instead of ``train_share``.
        share_seed: seed of the choice of trials. None chooses them only by their names.

    Returns:
        A list of splits, and a list of notes for the user, one line each. The split of a session is
        a dictionary from a tier ("train", "validation" or "test") to the numbers of its trials,
        int64, ascending. The key ``spared`` contains the validation trials that are not used.

    Raises:
        SessionError: if a session would have no training trials left, or has fewer than
            ``train_trials``.
    """
    notes: list[str] = []
    splits = [dict(session.tiers) for session in sessions]
    asking = [
        i for i, split in enumerate(splits) if validation_share and not len(split["validation"])
    ]
    fixed = {
        movie
        for i, session in enumerate(sessions)
        for tier in (("test",) if i in asking else ("test", "train"))
        for movie in _movies(session, splits[i][tier])
    }
    moved = {
        movie
        for i in asking
        for movie in _smallest_hashes(
            set(_movies(sessions[i], splits[i]["train"])) - fixed, validation_share
        )
    }
    for i in asking:
        session, train = sessions[i], splits[i]["train"]
        goes = np.array([movie in moved for movie in _movies(session, train)], dtype=bool)
        if goes.all():
            raise SessionError(
                f"session {session.name} has no validation tier, and all of its training movies "
                "would be moved to validation; set the tier of some trials to 'oracle', or set "
                "data.validation_share to 0"
            )
        splits[i] = {**splits[i], "train": train[~goes], "validation": train[goes]}
        notes.append(
            f"{session.name}: no validation tier; {goes.sum()} of {len(train)} training trials "
            f"are moved to validation, and their movies are in no other tier"
            if goes.any()
            else f"{session.name}: no validation tier, and no training movie can be moved to "
            "validation"
        )
    for session, split in zip(sessions, splits, strict=True):
        share = train_share
        if train_trials is not None:
            share = _train_fraction(train_trials, session.name, len(split["train"]))
        whole = split["validation"]
        for tier in ("train", "validation"):
            split[tier] = _nested_fraction(session.name, split[tier], share, share_seed)
        split["spared"] = np.setdiff1d(whole, split["validation"])
    if train_share < 1 or train_trials is not None:
        told = ", ".join(
            f"{s.name} {len(p['train'])} + {len(p['validation'])}"
            for s, p in zip(sessions, splits, strict=True)
        )
        asked = f"data.train_share {train_share:g}"
        if train_trials is not None:
            asked = f"data.train_trials {train_trials}"
        notes.append(f"{asked} leaves these numbers of training + validation trials: {told}")
    return splits, notes + _notes_on_shared_movies(sessions, splits)


def held_out_units(session: Session, share: float) -> np.ndarray:
    """Return a boolean mask (N,) of held-out neurons, chosen by hashes of session and neuron id.

    Args:
        session: the session.
        share: fraction of the neurons that are held out. Their number is rounded. If the fraction
            is above 0, at least one neuron and never all neurons are held out.

    Raises:
        SessionError: if neurons are to be held out of a session with one neuron.
    """
    number = len(session.unit_ids)
    if share and number < 2:
        raise SessionError(
            f"session {session.name} has one neuron, but data.held_out_neurons {share:g} needs two "
            "or more; set data.held_out_neurons to 0"
        )
    held = min(max(round(share * number), 1), number - 1) if share else 0
    order = np.argsort([name_fraction(f"{session.name}\x1f{unit}") for unit in session.unit_ids])
    chosen = np.zeros(number, dtype=bool)
    chosen[order[:held]] = True
    return chosen


def _train_fraction(wanted: int, name: str, there: int) -> float:
    if wanted > there:
        raise SessionError(
            f"data.train_trials is {wanted}, but session {name} has {there} training trials; lower "
            "data.train_trials, or remove the session"
        )
    return wanted / there


def _nested_fraction(name: str, trials: np.ndarray, share: float, seed: int | None) -> np.ndarray:
    prefix = name if seed is None else f"{name}\x1f{seed}"
    order = np.argsort([name_fraction(f"{prefix}\x1ftrial {trial}") for trial in trials])
    # In floats 0.1 · 30 is slightly above 3, which ceil would round to 4.
    return np.sort(trials[order[: max(1, ceil(share * len(trials) - 1e-9))]])


def _movies(session: Session, trials: np.ndarray) -> list[str]:
    return [session.trials[int(trial)].content for trial in trials]


def _smallest_hashes(movies: set[str], share: float) -> list[str]:
    """Return the smallest of the given movie hashes, in ascending order.

    Their number is the fraction ``share`` of all hashes: at least one if there are two or more
    hashes, and never all.
    """
    return sorted(movies)[: min(max(1, round(share * len(movies))), len(movies) - 1)]


def shared_movies(
    shown: Mapping[str, Set[Hashable]], other: str = "train"
) -> dict[str, tuple[int, int]]:
    """Count the movies that tiers have in common with a given tier.

    Args:
        shown: dictionary from each tier to the set of movies that its trials show.
        other: the given tier, a key of ``shown``.

    Returns:
        A dictionary from each other tier to a pair: the number of movies that the tier shares with
        ``other``, and the number of all movies of the tier. Tiers that share no movie are left out.
    """
    compared = {tier: (movies & shown[other], movies) for tier, movies in shown.items()}
    return {
        tier: (len(both), len(movies))
        for tier, (both, movies) in compared.items()
        if both and tier != other
    }


def _notes_on_shared_movies(sessions: Sequence[Session], splits: Sequence[Split]) -> list[str]:
    pairs = list(zip(sessions, splits, strict=True))
    shown = {tier: {m for s, p in pairs for m in _movies(s, p[tier])} for tier in TIERS}
    held_out = {tier: shown[tier] for tier in ("validation", "test")}
    parts = [
        f"{count} of {total} {tier} movies are also in {other}"
        for other, tiers in (("train", shown), ("validation", held_out))
        for tier, (count, total) in shared_movies(tiers, other).items()
    ]
    return [f"tiers have movies in common: {'; '.join(parts)}"] if parts else []
