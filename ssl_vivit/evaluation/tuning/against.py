"""Comparison of a model's tuning with recorded curves, or with the truth of simulated neurons."""

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
    """Recorded and true tuning of the selected units.

    Attributes:
        recorded: predicted and recorded responses to movies, and their agreement; None with fewer
            than three movies.
        true: true tuning of simulated neurons; None for a recording.
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
        chosen: the model and the selected units.
        folder: folder of the session.
        tiers: names of tiers in tiers.npy; None takes all tiers that were not used for training.
        shuffles: number of random shuffles for each control; see :func:`compare_curves`.
        seed: seed of the shuffles.

    Raises:
        SessionError: if the folder holds another session, or if a recorded session has fewer than
            three movies in these tiers.
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
            "movies, too few for a curve; choose other --tiers"
        )
    if curves is None:
        return Known(None, true)
    compared = compare_curves(
        curves.predicted, curves.recorded, curves.training, shuffles=shuffles, seed=seed
    )
    return Known((curves, compared), true)
