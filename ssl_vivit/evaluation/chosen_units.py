"""Loading a model of neurons and selecting units (neurons) of one of its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.loader import NeuralDataConfig, Sessions, build_sessions
from ssl_vivit.errors import ExportError, NeuralModelError, SessionError
from ssl_vivit.evaluation.neurons.receptive_fields import found_centres
from ssl_vivit.neural.checkpoint import load_neural_model
from ssl_vivit.neural.prediction import NeuralPredictor

_LISTED = 12


@dataclass(frozen=True)
class ChosenUnits:
    """Selected neurons of one session of a model.

    Attributes:
        predictor: the model.
        facts: ``SessionFacts`` of the session, such as its frame rate and the ids of its units.
        places: indices of the selected neurons among all neurons of the session.
    """

    predictor: NeuralPredictor
    facts: SessionFacts
    places: tuple[int, ...]

    @property
    def unit_ids(self) -> tuple[int, ...]:
        """Ids of the selected neurons."""
        return tuple(self.facts.unit_ids[place] for place in self.places)

    def rates(self, video: Float[Tensor, "b T H W"]) -> Float[Tensor, "b T N"]:
        """Predict rates (b, T, neurons) of all neurons of the session from its video.

        Behavioural variables are set to their means.

        Args:
            video: pixels from 0 to 255, (b, T, H, W).
        """
        rates = self.predictor.predict(video, session=self.facts.name)
        assert isinstance(rates, Tensor)
        return rates

    def differentiable_rates(self, video: Float[Tensor, "b T H W"]) -> Float[Tensor, "b T N"]:
        """Predict rates like :meth:`rates`, with gradients with respect to the pixels.

        Args:
            video: pixels from 0 to 255, (b, T, H, W); the range is not checked.
        """
        model = self.predictor.model
        seen = self.facts.standardised_video(video)[:, None].to(next(model.parameters()))
        return model(seen, None, self.facts.name)

    def centres(self) -> Float[np.ndarray, "n 2"] | None:
        """Return receptive-field centres (x, y) of the n selected neurons, (n, 2).

        −1 and 1 are the edges of the frame. The result is None if the readout has no centres.
        """
        found = found_centres(self.predictor.model, self.facts.name, self.facts.frame_size)
        return None if found is None else found[list(self.places)]

    def opened(self, folder: str) -> Sessions:
        """Open the recording of the session, with the statistics and data split used in training.

        Args:
            folder: folder of the recording.

        Raises:
            SessionError: if the folder does not hold the recording that the model was trained on.
        """
        found = build_sessions(NeuralDataConfig(folder, window=1), facts=self.predictor.facts)
        (session,) = found.sessions
        if session.name != self.facts.name:
            raise SessionError(
                f"{folder} holds session {session.name}, but the units are of session "
                f"{self.facts.name}; add --session {session.name}"
            )
        return found


def choose_units(
    model: str, session: str | None = None, units: int | Sequence[int] | None = None
) -> ChosenUnits:
    """Load a model of neurons and select neurons of one session.

    The model is moved to the GPU if there is one.

    Args:
        model: a directory, as for :func:`ssl_vivit.neural.load_neural_model`.
        session: name of the session; may be None if the model has only one.
        units: ids of the neurons; None selects all neurons of the session.

    Raises:
        NeuralModelError: if the model, the session or a unit does not exist, or if the model has
            several sessions and ``session`` is None.
    """
    try:
        predictor = load_neural_model(model)
    except (FileNotFoundError, ExportError, NeuralModelError) as error:
        raise NeuralModelError(f"model: {error}") from None
    return chosen_of(predictor, session, units)


def chosen_of(
    predictor: NeuralPredictor, session: str | None, units: int | Sequence[int] | None
) -> ChosenUnits:
    """Select neurons of a loaded model; see :func:`choose_units`."""
    there = ", ".join(predictor.sessions)
    if session is None and len(predictor.sessions) > 1:
        raise NeuralModelError(f"the model has several sessions; choose one by --session: {there}")
    if session is not None and session not in predictor.sessions:
        raise NeuralModelError(
            f"--session {session}: the model has no such session; it has {there}"
        )
    facts = predictor.facts[predictor.sessions.index(session or predictor.sessions[0])]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ChosenUnits(predictor.to(device), facts, _places(facts, units))


def _places(facts: SessionFacts, units: int | Sequence[int] | None) -> tuple[int, ...]:
    if units is None:
        return tuple(range(len(facts.unit_ids)))
    wanted = [units] if isinstance(units, int) else list(dict.fromkeys(units))
    if not wanted:
        raise NeuralModelError("--units is empty; give ids of units, or omit --units to use all")
    place = {unit: index for index, unit in enumerate(facts.unit_ids)}
    missing = [unit for unit in wanted if unit not in place]
    if missing:
        known = [str(unit) for unit in facts.unit_ids[:_LISTED]]
        more = " …" if len(facts.unit_ids) > _LISTED else ""
        raise NeuralModelError(
            f"--units {' '.join(map(str, missing))}: session {facts.name} has no such unit; its "
            f"{len(facts.unit_ids)} units are {', '.join(known)}{more}"
        )
    return tuple(place[unit] for unit in wanted)
