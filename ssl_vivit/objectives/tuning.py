"""How much of the encoder a model of neurons trains, and from when on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.objectives.config import NeuralPredictionConfig, TuningConfig
from ssl_vivit.objectives.neural_prediction import NeuralPrediction, predict_parts


class TunedNeuralPrediction(NeuralPrediction):
    """:class:`NeuralPrediction` with an encoder that learns at its own pace or not at all.

    What stands around the encoder (adapter, modulator, frame stream, readouts) is always trained. A
    frozen encoder has no gradients and stays in eval mode. ``readout_first`` is two calls of ``fit``:
    one with a frozen encoder, one from its checkpoint on with all.

    Args:
        model: the model of neurons.
        config: settings of the loss.
        tuning: how the encoder takes part.
        facts: of each session of the model.
    """

    def __init__(
        self,
        model: NeuralModel,
        config: NeuralPredictionConfig | None = None,
        tuning: TuningConfig | None = None,
        *,
        facts: Sequence[SessionFacts],
    ) -> None:
        super().__init__(model, config, facts=facts)
        self.tuning = tuning or TuningConfig()
        if self.tuning.mode == "frozen":
            self.encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TunedNeuralPrediction:
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.tuning.mode == "frozen":
            self.encoder.eval()
        return self

    def first_steps(self) -> dict[str, int]:
        """Encoder parameter → step at which it joins, which is none but for ``readout_first``."""
        return dict.fromkeys(self._encoder_names(), self.tuning.readout_steps)

    def learning_rate_shares(self) -> dict[str, float]:
        """Encoder parameter → factor on its learning rate."""
        return dict.fromkeys(self._encoder_names(), self.tuning.encoder_share)

    def no_weight_decay(self) -> set[str]:
        """Everything of readouts and adapter.

        Weight decay would pull positions to the middle of the screen and widths to nothing;
        features have penalties of their own.
        """
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith(("model.session_readouts.", "model.adapter."))
        }

    def rates(self, parts: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Rates (b, T, neurons) for each part of a batch."""
        return predict_parts(self.model, parts)

    def _encoder_names(self) -> list[str]:
        return [f"model.encoder.{name}" for name, _ in self.encoder.named_parameters()]
