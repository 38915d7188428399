"""Fit readouts of held-out neurons of a trained model, with all other parts frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.objectives.config import NeuralPredictionConfig
from ssl_vivit.objectives.contract import Step
from ssl_vivit.objectives.neural_prediction import NeuralPrediction


class HeldOutNeurons(NeuralPrediction):
    """Objective that fits the readout parameters of held-out neurons.

    These are positions, widths, features and biases. Gradients of all other neurons are exactly
    zero, so an optimiser without weight decay does not change them. Core, modulator and parameters
    that the neurons of a session share are frozen.

    Args:
        model: a trained model, which becomes part of this objective.
        config: settings of the loss. Of the penalties only ``feature_l1`` is used, for the held-out
            neurons.
        facts: ``SessionFacts`` of each session, which name the held-out neurons
            (``held_out_units``).

    Raises:
        ValueError: if no session has held-out neurons.
    """

    def __init__(
        self,
        model: NeuralModel,
        config: NeuralPredictionConfig | None = None,
        *,
        facts: Sequence[SessionFacts],
    ) -> None:
        # The trained model's widths are already annealed.
        config = replace(config or NeuralPredictionConfig(), spread_passes=0)
        super().__init__(model, config, facts=facts)
        self.held: dict[str, list[int]] = {}
        model.requires_grad_(False)
        for fact in facts:
            held_out = set(fact.held_out_units)
            units = [index for index, unit in enumerate(fact.unit_ids) if unit in held_out]
            self.held[fact.name] = units
            readout = model.readouts[fact.name]
            for parameter in readout.parameters(recurse=False):
                parameter.requires_grad_(bool(units))
        if not any(self.held.values()):
            raise ValueError("no neuron is held out; set data.held_out_neurons above 0")
        self.train()

    def train(self, mode: bool = True) -> HeldOutNeurons:
        """Set training or eval mode of the readouts; keep all other parts in eval mode."""
        super().train(mode)
        for name, part in self.model.named_children():
            if name != "session_readouts":
                part.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Step:
        """Compute the loss of :class:`NeuralPrediction` over held-out neurons."""
        step = super().forward(batch)
        fitted = [p.flatten()[:1].sum() * 0 for p in self.parameters() if p.requires_grad]
        return step._replace(loss=step.loss + torch.stack(fitted).sum())

    def _penalty(self, session: str) -> Tensor:
        features = getattr(self.model.readouts[session], "features", None)
        units = self.held[session]
        weight = self.config.regularisation.get("feature_l1", 0.0)
        if features is None or not units or not weight:
            return self.passes.new_zeros(()).float()
        return weight * features[torch.tensor(units)].abs().sum(1).mean()
