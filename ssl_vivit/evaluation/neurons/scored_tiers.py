"""Trials on which a trained model is scored, by tier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.layout import SENSORIUM_TIERS
from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.data.sessions.trials import TrialBatches
from ssl_vivit.errors import SessionError


def scored_tiers(sessions: Sessions, asked: Sequence[str] | None = None) -> dict[str, TrialBatches]:
    """Return the trials that have responses, grouped by the tiers in tiers.npy.

    All trials that the model was trained on belong to ``train``. Validation trials that were split
    off the training trials belong to ``validation``. Trials whose responses were withheld during
    training are included if the responses are now available.

    Args:
        sessions: sessions, opened with the statistics and split of the model's training.
        asked: names of tiers; None takes all but ``train``.

    Returns:
        Tier → trials in all sessions. Tiers are in the order of ``asked``; if it is None, in the
        order of Sensorium 2023.

    Raises:
        SessionError: if a tier does not exist or has no responses, or if ``asked`` is None and only
            training trials have responses.
    """
    by_name: dict[str, list[tuple[int, int]]] = {}
    for place, (session, fact) in enumerate(zip(sessions.sessions, sessions.facts, strict=True)):
        for tier, trial in _tiers_of_trials(session, fact):
            by_name.setdefault(tier, []).append((place, trial))
    if asked is None:
        published = {name: place for place, name in enumerate(SENSORIUM_TIERS)}
        order = sorted(by_name, key=lambda name: (published.get(name, len(published)), name))
        chosen = [name for name in order if name != "train"]
        if not chosen:
            raise SessionError(
                "the sessions have no trials with responses except the training trials; give "
                "--tiers train to score these"
            )
    else:
        chosen = [*dict.fromkeys(asked)]
    for name in chosen:
        if name not in by_name:
            raise SessionError(_missing(name, sessions.sessions, by_name))
    drop_first = sessions.train.drop_first
    return {
        name: TrialBatches(sessions.sessions, sessions.facts, by_name[name], drop_first=drop_first)
        for name in chosen
    }


def _tiers_of_trials(session: Session, fact: SessionFacts) -> Iterable[tuple[str, int]]:
    trained = set(fact.split["train"])
    yield from (("train", trial) for trial in fact.split["train"])
    for tier in ("validation", "test"):
        for trial in session.tiers[tier].tolist():
            if trial not in trained:
                yield str(session.tier_names[trial]), trial
    split_off = set(fact.split["validation"]) & set(session.tiers["train"].tolist())
    yield from (("validation", trial) for trial in sorted(split_off - trained))


def _missing(name: str, sessions: Sequence[Session], known: Iterable[str]) -> str:
    have = f"choose from the tiers with responses: {', '.join(known)}"
    holders = [each.name for each in sessions if name in each.tier_names]
    if holders:
        return (
            f"--tiers {name}: all responses of this tier in {', '.join(holders)} are withheld "
            f"(0 or NaN), or its trials are not used; {have}"
        )
    return f"--tiers {name}: no session has a tier of this name; {have}"
