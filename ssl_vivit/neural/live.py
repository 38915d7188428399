"""Streaming prediction: rates from a model of neurons that receives one frame at a time."""

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
    """Stream of rates of one session's neurons, opened by :meth:`NeuralPredictor.stream`.

    The rates at each frame equal those that :meth:`NeuralPredictor.predict` gives for all frames so
    far. The stream stores what later frames need: keys and values of attention, the frames of an
    incomplete tubelet, the last frames of each causal convolution, and the recurrent state. Later
    frames never change rates that were already returned.

    The model runs in evaluation mode without gradients. It must not be trained while the stream is
    in use.

    Args:
        model: the model, on the device on which it is to run.
        facts: ``SessionFacts`` of the session.
        context: how many seconds attention looks back in each layer. None means all frames so far.
        units: ids of the neurons whose rates are returned, in this order. None means all neurons.

    Attributes:
        facts: ``SessionFacts`` of the session. Frames must have its frame size and frame rate.
        unit_ids: ids of the neurons whose rates a step returns.

    Raises:
        NeuralModelError: if the session does not have one of the units, or ``context`` is not
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
                f"units {', '.join(map(str, unknown))} are not among the {len(facts.unit_ids)} "
                f"neurons of session {facts.name!r}; give ids from its unit_ids"
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
        """Return the expected responses in the next frame, on the model's device.

        A frame counts as padding at the end of a trial if any of its inputs consists only of NaN.
        Its rates are NaN, and only padding may follow. An error leaves the stream unchanged.

        Args:
            frame: (H, W) pixels, uint8 or numbers from 0 to 255.
            behaviour: (K,) all recorded channels, in recorded units. None means the session's mean.
            pupil_centre: (2,) in recorded units. None leaves receptive fields unshifted.

        Raises:
            NeuralModelError: for inputs that the session did not record, for numbers that are not
                finite, and for a frame beyond the encoder's learned positions in time.
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
    """Convert a context in seconds to a number of time steps of tokens, rounded and at least 1.

    Args:
        model: the model whose time steps are counted.
        facts: ``SessionFacts`` of the session.
        context: seconds. None returns None.

    Raises:
        NeuralModelError: if ``context`` is not a finite number above 0.
    """
    if context is None:
        return None
    if not 0 < context < math.inf:
        raise NeuralModelError(
            f"context is {context}; it must be a finite number of seconds above 0, or None for "
            "all frames so far"
        )
    rates = model.frame_rates[facts.name]
    frames_per_second = facts.frames_per_second if rates is None else rates.encoder
    stride = core_of(model.encoder).temporal_stride
    return max(1, round(context * frames_per_second / stride))
