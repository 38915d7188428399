"""Rates as frames come: a model of neurons that is fed one frame after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.evaluation_mode import evaluation_mode
from ssl_vivit.neural.cores.past import Past
from ssl_vivit.neural.cores.vivit_core import core_of
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.recorded_inputs import Array, RecordedFrames


class NeuralStream:
    """Rates of one session's neurons, frame by frame; :meth:`NeuralPredictor.stream` opens one.

    At each frame they equal the rates that :meth:`NeuralPredictor.predict` gives for all frames so far.
    What a frame needs of earlier ones is kept: keys and values of attention, the frames of
    an unfinished tubelet, the last frames of each causal convolution, and the recurrent state. A
    frame that is fed later cannot change rates that were returned.

    The model computes in evaluation mode without gradients, and must not be trained meanwhile.

    Args:
        model: the model, on the device where it is to run.
        facts: of the session.
        context: seconds that attention looks back on, in each layer; None is all.
        units: ids of the neurons whose rates are wanted, in this order; None is all.

    Attributes:
        facts: of the session; its frame size and frame rate are those of the frames to feed.
        unit_ids: ids of the neurons whose rates a step returns.

    Raises:
        NeuralModelError: for a unit that the session does not have, and a context that is not
            positive.
    """

    def __init__(
        self,
        model: NeuralModel,
        facts: SessionFacts,
        *,
        context: float | None = None,
        units: Sequence[int] | None = None,
    ) -> None:
        self._model, self.facts = model, facts
        like = next(model.parameters())
        self._frames = RecordedFrames(facts, like)
        self._past = Past(attention_steps(model, facts, context))
        self.unit_ids = facts.unit_ids if units is None else tuple(units)
        unknown = [unit for unit in self.unit_ids if unit not in facts.unit_ids]
        if unknown:
            raise NeuralModelError(
                f"units {', '.join(map(str, unknown))} are not among the {len(facts.unit_ids)} of "
                f"session {facts.name!r}; take ids of its unit_ids"
            )
        self._chosen: Tensor | None = None
        if units is not None:
            places = [facts.unit_ids.index(unit) for unit in self.unit_ids]
            self._chosen = torch.tensor(places, device=like.device, dtype=torch.long)

    @torch.no_grad()
    def step(
        self,
        frame: Array,
        behaviour: Array | None = None,
        pupil_centre: Array | None = None,
    ) -> Float[Tensor, " neurons"]:
        """Expected responses in the next frame, on the model's device.

        A frame in which an input is NaN throughout is padding at the end of a trial: its rates are
        NaN, and no other frame may follow. A frame that is refused leaves the stream as it was.

        Args:
            frame: (H, W) pixels, uint8 or numbers from 0 to 255.
            behaviour: (K,) with all recorded channels, in recorded units. None stands for the
                session's mean.
            pupil_centre: (2,) in recorded units. None leaves receptive fields in place.

        Raises:
            NeuralModelError: for inputs that the session did not record, numbers that are not finite,
                and beyond the end of learned positions in time.
        """
        given = self._frames.take(frame, behaviour, pupil_centre)
        if given is None:
            like = next(self._model.parameters())
            return like.new_full((len(self.unit_ids),), torch.nan)
        with evaluation_mode(self._model):
            rates = self._model.step(
                given.video, self._past, given.behaviour, self.facts.name, given.pupil_centre
            )[0, 0]
        return rates if self._chosen is None else rates[self._chosen]


def attention_steps(model: NeuralModel, facts: SessionFacts, context: float | None) -> int | None:
    """Time steps of tokens that so many seconds hold, to the nearest one and at least 1.

    Args:
        model: whose tokens.
        facts: of the session.
        context: seconds; None gives None.

    Raises:
        NeuralModelError: unless it is a positive number.
    """
    if context is None:
        return None
    if not 0 < context < math.inf:
        raise NeuralModelError(
            f"context is {context}; give seconds above 0, or None for all frames so far"
        )
    rates = model.frame_rates[facts.name]
    frames_per_second = facts.frames_per_second if rates is None else rates.encoder
    stride = core_of(model.encoder).temporal_stride
    return max(1, round(context * frames_per_second / stride))
