"""Load batches for a model of neurons from recorded sessions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ssl_vivit.data.sessions.facts import (
    SessionFacts,
    check_inputs,
    known_facts,
    measured_facts,
)
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.layout import SENSORIUM_TIERS, TIERS
from ssl_vivit.data.sessions.split import Split, split_trials
from ssl_vivit.data.sessions.trials import TrialBatches
from ssl_vivit.data.sessions.windows import Batching, WindowBatches
from ssl_vivit.errors import SessionError
from ssl_vivit.settings import check_least, check_type

logger = logging.getLogger(__name__)


Standardisation = Literal["encoder", "session"]
SessionWeights = Literal["responses", "equal"]


@dataclass(frozen=True)
class NeuralDataConfig:
    """Settings of the sessions and of the batches from them.

    Args:
        sessions: folders in the Sensorium 2023 layout.
        window: number of frames of a training window. Shorter trials are padded.
        batching: ``mix``: every batch contains windows of all sessions. ``alternate``: every batch
            contains windows of one session.
        drop_first: number of frames at the start of a training window or a whole trial whose
            responses are ignored in loss and scores.
        held_out_neurons: fraction of each session's neurons that are held out of training.
        train_share: fraction of the training and of the validation trials that are used. Both
            numbers are rounded up in each session. A larger fraction includes all trials of a
            smaller one.
        train_trials: number of training trials that are used in each session, instead of the
            fraction train_share. The same fraction of the session's validation trials is used,
            rounded up. null means that train_share is used.
        share_seed: seed of the choice of trials for train_share or train_trials. null means that
            trials are chosen by a hash of the names of session and trial. With equal seeds, the
            trials of a larger fraction include those of a smaller fraction.
        validation_share: fraction of the training movies that are used for validation, in sessions
            without a validation tier.
        standardize: mean and standard deviation by which pixels are standardised. ``session``
            computes them from the sessions' training stimuli. ``encoder`` uses the values with
            which an exported encoder was trained. A core without an exported encoder always uses
            the values of the sessions.
        session_weights: ``responses`` gives every known response equal weight in the loss, so
            sessions with more windows and neurons have more weight. ``equal`` gives every session
            equal weight over an epoch.
        in_memory: whether to keep trials in memory after they were read.
    """

    sessions: str | list[str] | None = None
    window: int = 60
    batching: Batching = "mix"
    drop_first: int = 0
    held_out_neurons: float = 0.0
    train_share: float = 1.0
    train_trials: int | None = None
    share_seed: int | None = None
    validation_share: float = 0.1
    standardize: Standardisation = "encoder"
    session_weights: SessionWeights = "responses"
    in_memory: bool = False

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check the settings that do not depend on the data.

        Raises:
            SessionError: if a setting is out of range.
        """
        check_least(self, "data.", window=1)
        if not 0 <= self.drop_first < self.window:
            raise SessionError(
                f"data.drop_first is {self.drop_first}; it must be 0 or more and below "
                f"data.window {self.window}"
            )
        if not 0 < self.train_share <= 1:
            raise SessionError(f"data.train_share is {self.train_share}; it must be in (0, 1]")
        if self.train_trials is not None:
            check_least(self, "data.", train_trials=1)
            if self.train_share != 1:
                raise SessionError(
                    f"data.train_trials {self.train_trials} and data.train_share "
                    f"{self.train_share:g} both set the number of trials; remove one of them"
                )
        check_type("data.standardize", self.standardize, Standardisation)
        check_type("data.session_weights", self.session_weights, SessionWeights)
        check_type("data.batching", self.batching, Batching)
        for name in ("held_out_neurons", "validation_share"):
            if not 0 <= getattr(self, name) < 1:
                raise SessionError(
                    f"data.{name} is {getattr(self, name)}; it must be 0 or more and below 1"
                )


class Sessions(NamedTuple):
    """Result of :func:`build_sessions`.

    Attributes:
        train: windows of the training trials.
        validation: whole validation trials. None if there are none.
        test: whole test trials. None if there are none.
        facts: ``SessionFacts`` of each session, in the order of the config.
        sessions: open sessions, in the order of the config.
        every_validation: all validation trials, including those that train_share or train_trials
            leaves out.
    """

    train: WindowBatches
    validation: TrialBatches | None
    test: TrialBatches | None
    facts: list[SessionFacts]
    sessions: list[Session]
    every_validation: TrialBatches | None = None

    def scored(self) -> dict[str, TrialBatches]:
        """Return the trials on which a finished model is scored.

        The result is a dictionary from the name of each test tier in tiers.npy to batches of its
        trials. Test tiers are scored separately, because some contain other kinds of movies than
        the training tier. If there are no test trials, the only key is "validation", with all
        validation trials. These do not depend on ``train_share``, so that models with different
        fractions are comparable. If there are no validation trials either, the result is empty.
        """
        if self.test is None:
            left = self.every_validation or self.validation
            return {} if left is None else {"validation": left}
        by_name: dict[str, list[tuple[int, int]]] = {}
        for i, trial in self.test.trials:
            by_name.setdefault(str(self.sessions[i].tier_names[trial]), []).append((i, trial))
        published = {name: place for place, name in enumerate(SENSORIUM_TIERS)}
        order = sorted(by_name, key=lambda name: (published.get(name, len(published)), name))
        return {name: self.test.only(by_name[name]) for name in order}


def build_sessions(
    config: NeuralDataConfig,
    *,
    seed: int = 0,
    facts: Sequence[SessionFacts] | None = None,
    pixel_statistics: tuple[float, float] | None = None,
    core: SessionFacts | None = None,
) -> Sessions:
    """Open the sessions, split their trials and compute their statistics.

    The main process logs notes on the sessions as warnings.

    Args:
        config: settings of sessions and batches.
        seed: seed of all random draws.
        facts: ``SessionFacts`` of the sessions of a checkpoint. Their split, statistics and
            held-out neurons are used, and every session of ``config`` must be among them. None
            means that ``SessionFacts`` are computed from the sessions.
        pixel_statistics: mean and standard deviation for pixels scaled to [0, 1], by which the
            video is standardised. None computes them from the training stimuli.
        core: ``SessionFacts`` of a session to which a core was fitted. The sessions must have the
            frame size and the number of behaviour channels of this session. The model uses the same
            behaviour channels as the core. None means no fitted core.

    Raises:
        SessionError: if a session is invalid, or does not fit the other sessions, ``facts`` or
            ``core``.
    """
    config.check()
    paths = [config.sessions] if isinstance(config.sessions, str) else config.sessions
    if not paths:
        raise SessionError(
            "data.sessions is not set; give folders of sessions, or simulate a session with "
            "`python -m data_prep.synthetic_neural`"
        )
    sessions = [Session(path, in_memory=config.in_memory) for path in paths]
    notes = [note for session in sessions for note in session.notes]
    _check_together(sessions)
    if core is not None:
        for session in sessions:
            check_inputs(session, core)
    splits: list[Split] = []
    if facts is None:
        splits, told = split_trials(
            sessions,
            validation_share=config.validation_share,
            train_share=config.train_share,
            train_trials=config.train_trials,
            share_seed=config.share_seed,
        )
        channels = None if core is None else core.behaviour_channels
        found, dropped = measured_facts(sessions, splits, config.held_out_neurons, channels)
        notes += told + dropped + _rates_note(sessions)
        if pixel_statistics is not None:
            mean, std = pixel_statistics
            found = [replace(fact, video_mean=mean, video_std=std) for fact in found]
    else:
        found = [known_facts(session, facts) for session in sessions]
    _check_lengths(sessions, found, config.drop_first)
    notes += _window_note(sessions, found, config.window)
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            logger.warning("%s", note)
    train = WindowBatches(
        sessions,
        found,
        window=config.window,
        batching=config.batching,
        seed=seed,
        drop_first=config.drop_first,
    )
    whole = {}
    for tier in ("validation", "test"):
        trials = [(i, trial) for i, fact in enumerate(found) for trial in fact.split[tier]]
        whole[tier] = (
            TrialBatches(sessions, found, trials, drop_first=config.drop_first) if trials else None
        )
    spared = [(i, int(trial)) for i, split in enumerate(splits) for trial in split["spared"]]
    every = whole["validation"]
    if every is not None and spared:
        every = TrialBatches(sessions, found, every.trials + spared, drop_first=config.drop_first)
    return Sessions(train, whole["validation"], whole["test"], found, sessions, every)


def _check_together(sessions: Sequence[Session]) -> None:
    names = [session.name for session in sessions]
    for name in names:
        if names.count(name) > 1:
            raise SessionError(
                f"{names.count(name)} sessions have the name {name}; rename their folders, since a "
                "model identifies sessions by name"
            )
    sizes = {session.name: session.frame_size for session in sessions}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {h}×{w}" for name, (h, w) in sizes.items())
        raise SessionError(
            f"the sessions' videos have different sizes (H×W): {told}; resize them to one size, or "
            f"train a model for each size"
        )
    channels = {session.name: session.behaviour_channels for session in sessions}
    if len(set(channels.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in channels.items())
        raise SessionError(
            f"the sessions have different numbers of behaviour channels: {told}; write the same "
            f"channels for all, or remove data/behavior from all"
        )


def _check_lengths(
    sessions: Sequence[Session], facts: Sequence[SessionFacts], drop_first: int
) -> None:
    for session, fact in zip(sessions, facts, strict=True):
        for tier in TIERS:
            for trial in fact.split[tier]:
                if session.lengths[trial] <= drop_first:
                    raise SessionError(
                        f"data.drop_first {drop_first} drops all {session.lengths[trial]} frames "
                        f"of trial {trial} of session {session.name}; lower data.drop_first"
                    )


def _window_note(
    sessions: Sequence[Session], facts: Sequence[SessionFacts], window: int
) -> list[str]:
    """Return a note if windows are longer than every training trial, so that all are padded."""
    longest = max(
        (int(session.lengths[trial]) for session, fact in zip(sessions, facts, strict=True)
         for trial in fact.split["train"]),
        default=window,
    )  # fmt: skip
    if window <= longest:
        return []
    return [
        f"windows of {window} frames are longer than the longest training trial ({longest}) and "
        f"are padded; --data.window {longest} trains faster"
    ]


def _rates_note(sessions: Sequence[Session]) -> list[str]:
    if len({session.frames_per_second for session in sessions}) == 1:
        return []
    told = ", ".join(f"{session.name} {session.frames_per_second:g} Hz" for session in sessions)
    return [
        f"sessions have different frame rates ({told}); one frame of each session is one time step "
        "of the model"
    ]
