"""How much of an encoder a model of neurons trains, and from when on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.objectives.contract import Step
from ssl_vivit.objectives.neural_prediction import (
    NeuralPrediction,
    NeuralPredictionConfig,
    predict_parts,
)


@dataclass(frozen=True)
class TuningConfig:
    """How the encoder takes part in training.

    Args:
        mode: ``full`` trains everything; ``frozen`` leaves the encoder as it is, in eval mode;
            ``readout_first`` does so for readout_steps steps and then trains everything.
        readout_steps: steps of ``readout_first`` before the encoder joins; it warms up from then.
        encoder_share: factor on the encoder's learning rate, beside layer_decay's.
        held_out_steps: steps at the end in which the readouts of neurons that were held out
            (data.held_out_neurons) are fitted on the training trials, all else frozen.
    """

    mode: Literal["full", "frozen", "readout_first"] = "full"
    readout_steps: int = 0
    encoder_share: float = 1.0
    held_out_steps: int = 300

    def check(self, steps: int) -> None:
        """Refuse what leaves nothing to do.

        Args:
            steps: of the run.

        Raises:
            ValueError: naming the setting and its range.
        """
        if self.mode == "readout_first" and not 0 < self.readout_steps < steps:
            raise ValueError(
                f"tuning.readout_steps is {self.readout_steps}; with tuning.mode readout_first it "
                f"must lie between 1 and training.steps {steps}, exclusive"
            )
        if self.mode != "readout_first" and self.readout_steps:
            raise ValueError(
                f"tuning.readout_steps {self.readout_steps} belongs to tuning.mode readout_first; "
                f"the mode is {self.mode}: leave readout_steps at 0"
            )
        if self.held_out_steps < 1:
            raise ValueError(
                f"tuning.held_out_steps is {self.held_out_steps}; it must be at least 1"
            )
        if self.encoder_share <= 0:
            raise ValueError(
                f"tuning.encoder_share is {self.encoder_share}; it must be above 0 (tuning.mode "
                "frozen trains no encoder)"
            )


class TunedNeuralPrediction(NeuralPrediction):
    """:class:`NeuralPrediction` whose encoder may rest: no gradients, eval mode, no weight decay.

    What stands around the encoder (adapter, modulator, frame stream, readouts) is always trained.

    Args:
        model: the model of neurons; its ``encoder`` is what may rest.
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
        self.resting = self.tuning.mode != "full"
        self.train()

    def train(self, mode: bool = True) -> TunedNeuralPrediction:
        """As of every module; an encoder that rests stays in eval mode."""
        super().train(mode)
        # The parent's constructor may call this before there is a tuning.
        if getattr(self, "resting", False):
            self.encoder.eval()
        return self

    def begin_step(self, step: int) -> None:
        """What the encoder does in a step follows from its number alone, so resuming is exact."""
        waits = self.tuning.mode == "readout_first" and step < self.tuning.readout_steps
        self.resting = waits or self.tuning.mode == "frozen"
        self.train(self.training)

    def first_steps(self) -> dict[str, int]:
        """Parameter → steps before it is trained."""
        late = self.tuning.readout_steps if self.tuning.mode == "readout_first" else 0
        return dict.fromkeys(self._encoder_names(), late)

    def learning_rate_shares(self) -> dict[str, float]:
        """Parameter → factor on its learning rate."""
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

    def forward(self, batch: dict[str, Any]) -> Step:
        """As of :class:`NeuralPrediction`."""
        tuned = [p for p in self.encoder.parameters() if p.requires_grad]
        if not (self.training and self.resting and tuned) or self._recomputes():
            return super().forward(batch)
        # Without requires_grad no graph is built through the encoder, unless what stands in front
        # of it is trained. Turned off for good, DistributedDataParallel would not see it join.
        for parameter in tuned:
            parameter.requires_grad_(False)
        try:
            step = super().forward(batch)
        finally:
            for parameter in tuned:
                parameter.requires_grad_(True)
        # DistributedDataParallel waits for a gradient of each; the loop drops them.
        nothing = [p.flatten()[:1].sum() * 0 for p in tuned if not isinstance(p, DTensor)]
        if nothing:
            step = step._replace(loss=step.loss + torch.stack(nothing).sum())
        return step

    def rates(self, parts: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Rates (b, T, neurons) for each part of a batch."""
        return predict_parts(self.model, parts)

    def _recomputes(self) -> bool:
        """Whether the backward pass runs the encoder again, which must then be as it was.

        With an adapter in front that happens while the encoder waits, too; its gradients, which
        the loop drops, are the price.
        """
        trunk = getattr(self.encoder, "trunk", None)
        return self.model.adapter is not None and getattr(trunk, "grad_checkpointing", False)

    def _encoder_names(self) -> list[str]:
        inside = {id(parameter) for parameter in self.encoder.parameters()}
        return [name for name, parameter in self.named_parameters() if id(parameter) in inside]
