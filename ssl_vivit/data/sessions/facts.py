"""Facts of sessions that are saved with a model: units, statistics and split of trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.layout import TIERS
from ssl_vivit.data.sessions.scan import TrialFacts
from ssl_vivit.data.sessions.split import Split, held_out_units
from ssl_vivit.errors import SessionError
from ssl_vivit.moments import Moments

# Largest height or width of a frame in pixels; a damaged file may contain any number.
_LONGEST_SIDE = 65_535


@dataclass(frozen=True)
class SessionFacts:
    """Facts of a session that a model needs if the session's files are not available.

    They are saved in checkpoints and exported models.

    Args:
        name: name of the session.
        unit_ids: ids of the neurons, in the order of the neurons in the model's readout.
        frames_per_second: frame rate of video, responses and behaviour.
        kind: kind of responses, "spikes" or "calcium".
        frame_size: (H, W) of its videos in pixels.
        video_mean: mean of pixel / 255, over the training trials of all sessions of the model.
        video_std: standard deviation of pixel / 255 over these trials.
        behaviour_channels: indices of the recorded behaviour channels that the model uses.
        behaviour_mean: mean of each of these channels over the session's training trials.
        behaviour_std: standard deviation of each channel; 1 for a channel that is constant in this
            session.
        pupil_mean: mean of x and y of the pupil's centre over the session's training trials. None
            if it was not measured.
        pupil_std: standard deviations of x and y. None if the pupil was not measured.
        mean_response: mean response of each neuron per frame, over the session's training trials.
        coordinates: cortical coordinates (x, y, z) of each neuron. None if not measured.
        split: dictionary from a tier ("train", "validation" or "test") to the numbers of the trials
            in this tier.
        held_out_units: ids of the held-out neurons.
        recorded_channels: number of all recorded behaviour channels. None in models of earlier
            versions.
    """

    name: str
    unit_ids: tuple[int, ...]
    frames_per_second: float
    kind: Literal["spikes", "calcium"]
    frame_size: tuple[int, int]
    video_mean: float
    video_std: float
    behaviour_channels: tuple[int, ...]
    behaviour_mean: tuple[float, ...]
    behaviour_std: tuple[float, ...]
    pupil_mean: tuple[float, float] | None
    pupil_std: tuple[float, float] | None
    mean_response: tuple[float, ...]
    coordinates: tuple[tuple[float, ...], ...] | None
    split: dict[str, tuple[int, ...]]
    held_out_units: tuple[int, ...] = ()
    recorded_channels: int | None = None

    def standardised_video(self, video: Shaped[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
        """Standardise pixels from 0 to 255, uint8 or float, for the model."""
        return (video.float() - 255 * self.video_mean) / (255 * self.video_std)

    def standardised_behaviour(
        self, behaviour: Float[Tensor, "*dims k_all"]
    ) -> Float[Tensor, "*dims k"]:
        """Select the channels that the model uses from all recorded ones, and standardise them."""
        kept = behaviour[..., list(self.behaviour_channels)]
        mean, std = kept.new_tensor(self.behaviour_mean), kept.new_tensor(self.behaviour_std)
        return (kept - mean) / std

    def standardised_pupil(self, centre: Float[Tensor, "*dims 2"]) -> Float[Tensor, "*dims 2"]:
        """Standardise the recorded centre of the pupil; ``pupil_mean`` must not be None."""
        return (centre - centre.new_tensor(self.pupil_mean)) / centre.new_tensor(self.pupil_std)

    def to_json(self) -> dict[str, Any]:
        """Return these ``SessionFacts`` as a JSON-serialisable dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SessionFacts:
        """Rebuild ``SessionFacts`` from the dictionary that :meth:`to_json` returned.

        The dictionary may have been written to a JSON file and read again.

        Raises:
            SessionError: if a field of ``SessionFacts`` is missing or invalid, or a key is unknown.
        """
        names = {field.name for field in fields(cls)}
        wrong = (values.keys() ^ names) - {"recorded_channels"}
        if wrong:
            raise SessionError(
                f"facts of a session have missing or unknown entries: {', '.join(sorted(wrong))}"
            )
        if not isinstance(values["name"], str):
            raise SessionError(f"facts of a session: name is {values['name']!r}; it must be text")
        for name, least in (("unit_ids", None), ("behaviour_channels", 0), ("frame_size", 1)):
            found = values[name]
            whole = isinstance(found, list | tuple) and all(type(each) is int for each in found)
            if not whole or (least is not None and min(found, default=least) < least):
                raise SessionError(
                    f"facts of session {values['name']!r}: {name} is {found}; it must be a list of valid whole numbers"
                )
        if len(values["frame_size"]) != 2 or max(values["frame_size"]) > _LONGEST_SIDE:
            raise SessionError(
                f"facts of session {values['name']!r}: frame_size is {values['frame_size']}; it "
                "must be height and width, each at most 65,535"
            )
        for name, value in values.items():
            numbers = _numbers(value)
            if not np.isfinite(numbers).all() or (
                name.endswith("_std") and min(numbers, default=1) <= 0
            ):
                raise SessionError(
                    f"facts of session {values['name']!r}: {name} is {value}; it must be finite, and above 0 if it is a standard deviation"
                )
        if values["frames_per_second"] <= 0 or len(values["mean_response"]) != len(
            values["unit_ids"]
        ):
            raise SessionError(
                f"facts of session {values['name']!r}: unit_ids has {len(values['unit_ids'])} and "
                f"mean_response {len(values['mean_response'])} entries, frames_per_second is "
                f"{values['frames_per_second']}; both lists must have one entry for each neuron, "
                "and frames_per_second must be above 0"
            )
        split = {tier: tuple(trials) for tier, trials in values["split"].items()}
        return cls(**{**{name: _tuples(value) for name, value in values.items()}, "split": split})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _numbers(value: Any) -> list[float]:
    """Return all numbers in nested lists."""
    if isinstance(value, list | tuple):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def check_inputs(session: Session, core: SessionFacts) -> None:
    """Check that a fitted core can be used with the stimuli and behaviour of a session.

    Args:
        session: the new session.
        core: ``SessionFacts`` of a session to which the core was fitted. If the core uses no
            behaviour channels, behaviour is not checked.

    Raises:
        SessionError: if frame size or behaviour channels differ; the message says how.
    """
    told = f"session {session.name} does not fit the core of --core_from:"
    if session.frame_size != core.frame_size:
        sizes = ["×".join(map(str, size)) for size in (session.frame_size, core.frame_size)]
        raise SessionError(
            f"{told} its videos are {sizes[0]} (H×W), but the core was fitted to {sizes[1]}; "
            f"resize the videos to {sizes[1]}"
        )
    if not core.behaviour_channels:
        return
    least = max(core.behaviour_channels) + 1
    wanted = core.recorded_channels or max(least, session.behaviour_channels)
    if session.behaviour_channels != wanted:
        raise SessionError(
            f"{told} the session has {session.behaviour_channels} behaviour channels, but the core "
            f"was fitted to {wanted}; write data/behavior with {wanted} channels, or use a core "
            "that was fitted with model.modulator.kind none"
        )


def measured_facts(
    sessions: Sequence[Session],
    splits: Sequence[Split],
    held_out: float,
    behaviour_channels: Sequence[int] | None = None,
) -> tuple[list[SessionFacts], list[str]]:
    """Compute the :class:`SessionFacts` of sessions from their training trials.

    Args:
        sessions: sessions of one model.
        splits: for each session, a dictionary from "train", "validation" and "test" to the numbers
            of the trials in this tier.
        held_out: fraction of each session's neurons that are held out of training.
        behaviour_channels: indices of the recorded behaviour channels that the model uses. None
            means the channels that vary in at least one session.

    Returns:
        The ``SessionFacts`` of each session, and notes for the user on behaviour channels that are
        not used and on neurons that are held out.
    """
    trained: list[list[TrialFacts]] = [
        [session.trials[int(trial)] for trial in split["train"]]
        for session, split in zip(sessions, splits, strict=True)
    ]
    video = Moments.merged(trial.video for trials in trained for trial in trials)
    behaviours = [
        Moments.merged(trial.behaviour for trial in trials if trial.behaviour is not None)
        if session.behaviour_channels
        else None
        for session, trials in zip(sessions, trained, strict=True)
    ]
    varying = [moments.varies for moments in behaviours if moments is not None]
    kept = np.flatnonzero(np.any(varying, axis=0)) if varying else np.zeros(0, dtype=np.int64)
    if behaviour_channels is not None:
        kept = np.array(behaviour_channels, dtype=np.int64)
    notes = []
    if behaviour_channels is None and len(kept) < sessions[0].behaviour_channels:
        dropped = sorted({*range(sessions[0].behaviour_channels)} - {*kept.tolist()})
        notes.append(
            f"behaviour channels without variance in training trials are dropped: "
            f"{', '.join(map(str, dropped))} of {sessions[0].behaviour_channels}"
        )
    facts = []
    for session, split, trials, behaviour in zip(
        sessions, splits, trained, behaviours, strict=True
    ):
        hidden = held_out_units(session, held_out)
        if hidden.any():
            notes.append(
                f"{session.name}: {hidden.sum()} of {len(hidden)} neurons are held out of training"
            )
        pupil = (
            Moments.merged(trial.pupil for trial in trials if trial.pupil is not None)
            if session.has_pupil
            else None
        )
        coordinates = session.coordinates
        facts.append(
            SessionFacts(
                name=session.name,
                unit_ids=tuple(session.unit_ids.tolist()),
                frames_per_second=session.frames_per_second,
                kind=session.kind,
                frame_size=session.frame_size,
                video_mean=float(video.mean) / 255,
                video_std=_divisors(video) / 255,
                behaviour_channels=tuple(kept.tolist()),
                behaviour_mean=tuple(behaviour.mean[kept].tolist()) if behaviour else (),
                behaviour_std=tuple(_divisors(behaviour)[i] for i in kept) if behaviour else (),
                pupil_mean=(float(pupil.mean[0]), float(pupil.mean[1])) if pupil else None,
                pupil_std=(_divisors(pupil)[0], _divisors(pupil)[1]) if pupil else None,
                mean_response=tuple(
                    Moments.merged(trial.responses for trial in trials).mean.tolist()
                ),
                coordinates=None
                if coordinates is None
                else tuple(map(tuple, coordinates.tolist())),
                split={tier: tuple(split[tier].tolist()) for tier in TIERS},
                held_out_units=tuple(session.unit_ids[hidden].tolist()),
                recorded_channels=session.behaviour_channels,
            )
        )
    return facts, notes


def known_facts(session: Session, facts: Sequence[SessionFacts]) -> SessionFacts:
    """Return the ``SessionFacts`` that a checkpoint contains for a session.

    Trials whose responses are withheld in the session are removed from the split.

    Args:
        session: the open session.
        facts: ``SessionFacts`` of all sessions in the checkpoint.

    Raises:
        SessionError: if the session is not in the checkpoint, or differs from the session in the
            checkpoint; the message says how.
    """
    by_name = {fact.name: fact for fact in facts}
    fact = by_name.get(session.name)
    if fact is None:
        raise SessionError(
            f"session {session.name} ({len(session.unit_ids)} neurons) is not in the checkpoint, "
            "which has "
            + ", ".join(f"{f.name} ({len(f.unit_ids)} neurons)" for f in by_name.values())
            + "; give the folder of one of these sessions"
        )
    told = f"session {session.name} differs from the session in the checkpoint:"
    ids = tuple(session.unit_ids.tolist())
    if ids != fact.unit_ids:
        counts = f"{len(ids)} neurons instead of {len(fact.unit_ids)}"
        common = len({*ids} & {*fact.unit_ids})
        raise SessionError(
            f"{told} {counts}, {common} of them with the same ids"
            + (", in another order" if sorted(ids) == sorted(fact.unit_ids) else "")
            + "; give the folder that the model was trained on"
        )
    for what, here, there in (
        ("frame size", session.frame_size, fact.frame_size),
        ("frames per second", session.frames_per_second, fact.frames_per_second),
        ("kind of responses", session.kind, fact.kind),
        ("measured pupil centre", session.has_pupil, fact.pupil_mean is not None),
        (
            "number of behaviour channels",
            session.behaviour_channels,
            max(session.behaviour_channels, max(fact.behaviour_channels, default=-1) + 1)
            if fact.recorded_channels is None
            else fact.recorded_channels,
        ),
    ):
        if here != there:
            raise SessionError(
                f"{told} {what} is {here} instead of {there}; give the folder that the model was "
                f"trained on"
            )
    withheld = {trial for trials in session.withheld.values() for trial in trials}
    split = {
        tier: tuple(trial for trial in trials if trial not in withheld)
        for tier, trials in fact.split.items()
    }
    for tier, trials in split.items():
        gone = [trial for trial in trials if trial not in session.trials]
        if gone:
            raise SessionError(
                f"{told} trial {gone[0]} of its {tier} split is missing or has tier 'none' "
                f"({len(gone)} of {len(trials)} trials); give the folder that the "
                "model was trained on"
            )
    return replace(fact, split=split)


def _divisors(moments: Moments) -> Any:
    """Return the standard deviation of each channel as Python numbers; 1 for constant channels."""
    return np.where(moments.varies, moments.std, 1.0).tolist()
