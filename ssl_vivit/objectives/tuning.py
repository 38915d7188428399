"""Neural prediction with an encoder that is frozen, partly trained, or trained only later."""

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
    """:class:`NeuralPrediction` with separate settings for the training of the encoder.

    The other modules are readouts and, optionally, an adapter (resampling of the stimulus), a
    modulator (influence of behaviour) and a frame stream (convolution at full frame rate). They are
    always trained, unless the core was fitted before. With a fitted core, all modules except
    readouts are treated like the encoder. Frozen modules have no gradients and stay in eval mode.
    ``tuning.feature_cache`` caches the features of frozen modules, unless an adapter before them is
    trained. ``readout_first`` needs two calls of ``fit``: the first with a frozen encoder, the
    second from the checkpoint of the first with all modules.

    Args:
        model: the model of neurons.
        config: settings of the loss.
        tuning: settings of the encoder's training.
        facts: ``SessionFacts`` of each session of the model.
        fitted_core: whether adapter, modulator and frame stream come from a fitted model, like the
            encoder. ``last_blocks`` trains them in any case.
        session_shares: see :class:`NeuralPrediction`.

    Raises:
        NeuralModelError: for ``last_blocks`` if the encoder is not a ViViT, or if readouts use
            fewer of its blocks than ``tuning.last_blocks``.
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
            # If an adapter is trained, the encoder's input changes at each step.
            if self.tuning.feature_cache and (model.adapter is None or fitted_core):
                model.cache = FeatureCache(self.tuning.feature_cache)
        elif self.tuning.mode == "last_blocks":
            assert self.tuning.last_blocks is not None
            freeze_before_last_blocks(self.encoder, self.tuning.last_blocks)
        self.train()

    def train(self, mode: bool = True) -> TunedNeuralPrediction:
        """Set training or evaluation mode; keep frozen parts in evaluation mode."""
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
        """Return, for each parameter of the encoder or fitted core, the step of its first update.

        Keys are parameter names.
        """
        return dict.fromkeys(self._tuned_names(), self.tuning.readout_steps)

    def learning_rate_shares(self) -> dict[str, float]:
        """Return, for each parameter of the encoder or fitted core, its learning-rate factor.

        Keys are parameter names.
        """
        return dict.fromkeys(self._tuned_names(), self.tuning.encoder_share)

    def no_weight_decay(self) -> set[str]:
        """Return the names of all parameters of readouts and adapter.

        Weight decay would move readout positions to the middle of the screen and shrink the widths
        of readouts to 0. Feature weights of readouts have penalties of their own.
        """
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith(("model.session_readouts.", "model.adapter."))
        }

    def rates(self, parts: Sequence[dict[str, Any]]) -> list[Tensor]:
        """Predict the rates (b, T, neurons) for each session of a batch.

        Args:
            parts: the batch's data of each session, see :meth:`NeuralPrediction.forward`.
        """
        return predict_parts(self.model, parts)

    def _tuned_parts(self) -> list[tuple[str, nn.Module]]:
        """Return the names and modules to which ``tuning`` applies.

        These are the encoder, or all modules except readouts if the core was fitted before.
        """
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
    """Freeze all parameters of a ViViT before its last ``count`` blocks.

    "Before" refers to the order of layers of layer-wise learning-rate decay.

    Args:
        encoder: a ViViT. Blocks that are frozen already are not counted: their output is not used.
        count: number of last blocks that stay trainable, with the norms that follow them.

    Raises:
        NeuralModelError: if the encoder is not a ViViT, or has fewer than ``count`` blocks.
    """
    if not isinstance(encoder, ViViT):
        raise NeuralModelError(
            f"tuning.mode last_blocks needs a ViViT, but the core is a {type(encoder).__name__}; "
            "choose another --tuning.mode, or --core vivit"
        )
    blocks = [
        name
        for name in block_names(encoder)
        if any(parameter.requires_grad for parameter in encoder.get_submodule(name).parameters())
    ]
    if count > len(blocks):
        raise NeuralModelError(
            f"tuning.last_blocks is {count}, but the encoder has {len(blocks)} blocks; give 1 to "
            f"{len(blocks)}, or --tuning.mode full"
        )
    layers = group_parameters(encoder, encoder.group_matcher(), reverse=True)
    first = min(layer for name, layer in layers.items() if name.startswith(f"{blocks[-count]}."))
    for name, parameter in encoder.named_parameters():
        if layers[name] < first:
            parameter.requires_grad_(False)
