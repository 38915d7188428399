"""Neural prediction with a frozen, partly trained or later trained encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders import ViViT
from ssl_vivit.encoders.intermediates import block_names
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.feature_cache import FeatureCache
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.objectives.config import NeuralPredictionConfig, TuningConfig
from ssl_vivit.objectives.neural_prediction import NeuralPrediction, predict_parts


class TunedNeuralPrediction(NeuralPrediction):
    """:class:`NeuralPrediction` with an encoder that learns at its own pace or not at all.

    What stands around the encoder (adapter, modulator, frame stream, readouts) is always trained,
    unless the core was fitted before: then all but the readouts takes part as the encoder does.
    What is frozen has no gradients and stays in eval mode; ``tuning.feature_cache`` keeps its features,
    unless an adapter before it is trained. ``readout_first`` is two calls of ``fit``:
    one with a frozen encoder, one from its checkpoint on with all.

    Args:
        model: the model of neurons.
        config: settings of the loss.
        tuning: how the encoder takes part.
        facts: of each session of the model.
        fitted_core: whether adapter, modulator and frame stream are of a fitted model, as the
            encoder is; ``last_blocks`` trains them all the same.
        session_shares: as of :class:`NeuralPrediction`.

    Raises:
        NeuralModelError: for ``last_blocks`` of a core that is no ViViT, or of more blocks than are
            read.
    """

    def __init__(
        self,
        model: NeuralModel,
        config: NeuralPredictionConfig | None = None,
        tuning: TuningConfig | None = None,
        *,
        facts: Sequence[SessionFacts],
        fitted_core: bool = False,
        session_shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, config, facts=facts, session_shares=session_shares)
        self.tuning, self.fitted_core = tuning or TuningConfig(), fitted_core
        if self.tuning.mode == "frozen":
            for _, part in self._tuned_parts():
                part.requires_grad_(False)
            # Behind an adapter that learns, the encoder sees other video at each step.
            if self.tuning.feature_cache and (model.adapter is None or fitted_core):
                model.cache = FeatureCache(self.tuning.feature_cache)
        elif self.tuning.mode == "last_blocks":
            assert self.tuning.last_blocks is not None
            freeze_before_last_blocks(self.encoder, self.tuning.last_blocks)
        self.train()

    def train(self, mode: bool = True) -> TunedNeuralPrediction:
        """Set training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.tuning.mode == "frozen":
            for _, part in self._tuned_parts():
                part.eval()
        elif self.tuning.mode == "last_blocks":
            for module in self.encoder.modules():
                parameters = [*module.parameters()]
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
        return self

    def first_steps(self) -> dict[str, int]:
        """Tuned parameter → step at which it joins, which is none but for ``readout_first``."""
        return dict.fromkeys(self._tuned_names(), self.tuning.readout_steps)

    def learning_rate_shares(self) -> dict[str, float]:
        """Tuned parameter → factor on its learning rate."""
        return dict.fromkeys(self._tuned_names(), self.tuning.encoder_share)

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

    def _tuned_parts(self) -> list[tuple[str, nn.Module]]:
        """The module that ``tuning`` is about: the encoder, or all of a core that was fitted before."""
        return [
            (name, part)
            for name, part in self.model.named_children()
            if name == "encoder" or (self.fitted_core and name != "session_readouts")
        ]

    def _tuned_names(self) -> list[str]:
        return [
            f"model.{prefix}.{name}"
            for prefix, part in self._tuned_parts()
            for name, _ in part.named_parameters()
        ]


def freeze_before_last_blocks(encoder: nn.Module, count: int) -> None:
    """Freeze what a ViViT computes before its last blocks, in the order of layer-wise decay.

    Args:
        encoder: a ViViT. Blocks that are frozen altogether are not counted, since nothing reads
            them.
        count: last blocks that stay trainable, with the norms that follow them.

    Raises:
        NeuralModelError: for another core, or for more blocks than there are.
    """
    if not isinstance(encoder, ViViT):
        raise NeuralModelError(
            f"tuning.mode last_blocks trains blocks of a ViViT, and {type(encoder).__name__} has "
            "none; choose another --tuning.mode, or --core vivit"
        )
    blocks = [
        name
        for name in block_names(encoder)
        if any(parameter.requires_grad for parameter in encoder.get_submodule(name).parameters())
    ]
    if count > len(blocks):
        raise NeuralModelError(
            f"tuning.last_blocks is {count}, and the encoder has {len(blocks)} blocks; give 1 to "
            f"{len(blocks)}, or --tuning.mode full"
        )
    layers = group_parameters(encoder, encoder.group_matcher(), reverse=True)
    first = min(layer for name, layer in layers.items() if name.startswith(f"{blocks[-count]}."))
    for name, parameter in encoder.named_parameters():
        if layers[name] < first:
            parameter.requires_grad_(False)
