"""Recorded tuning curves of a session, and the true tuning of simulated neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ssl_vivit.errors import SessionError
from ssl_vivit.evaluation.chosen_units import ChosenUnits
from ssl_vivit.evaluation.neurons.receptive_fields import true_fields
from ssl_vivit.evaluation.tuning.recorded import (
    LEAST_MOVIES,
    Agreement,
    RecordedCurves,
    compare_curves,
    recorded_curves,
)
from ssl_vivit.evaluation.tuning.truth import TrueTuning, true_tuning


class Known(NamedTuple):
    """Recorded and true tuning of the chosen units.

    Attributes:
        recorded: predicted and recorded responses to the movies, and their agreement; None for fewer
            than three movies.
        true: tuning of simulated neurons; None for recorded ones.
    """

    recorded: tuple[RecordedCurves, Agreement] | None
    true: TrueTuning | None


def read_against(
    chosen: ChosenUnits,
    folder: str,
    tiers: Sequence[str] | None,
    shuffles: int,
    seed: int,
) -> Known:
    """Read a session's recording and compare it with the model.

    Args:
        chosen: the units.
        folder: of the session.
        tiers: of trials, as tiers.npy names them; None for all that were not trained on.
        shuffles: of the controls.
        seed: of the shuffles.

    Raises:
        SessionError: for another session than the model's, or one that says nothing of tuning.
    """
    sessions = chosen.opened(folder)
    truth = true_fields(sessions.sessions[0])
    own = list(chosen.places)
    true = None
    if truth is not None:
        true = true_tuning(
            {name: values[own] for name, values in truth.items()}, chosen.facts.frames_per_second
        )
    curves = recorded_curves(chosen, sessions, tiers)
    if curves is None and true is None:
        raise SessionError(
            f"--against {folder}: its trials outside of training show fewer than {LEAST_MOVIES} "
            "movies, which make no curve; name other --tiers"
        )
    if curves is None:
        return Known(None, true)
    compared = compare_curves(
        curves.predicted, curves.recorded, curves.training, shuffles=shuffles, seed=seed
    )
    return Known((curves, compared), true)
