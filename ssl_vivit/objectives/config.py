"""Settings of the objectives.

This module must not import torch or timm, so that commands start fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssl_vivit.settings import check_least, check_types

MaskKind = Literal["tube", "block", "random"]
DecoderPositions = Literal["sinusoidal", "rotary"]
TuningMode = Literal["full", "frozen", "readout_first", "last_blocks"]


@dataclass
class SimCLRConfig:
    """Settings of the SimCLR objective.

    Args:
        features: input of the projection head: ``pooled`` is the pooled vector of a clip,
            ``tokens`` is the mean of its patch tokens. ``tokens`` trains the weights that a dense
            readout uses.
        temperature: temperature of the softmax over candidates.
        hidden_dim: hidden width of the projection head.
        output_dim: width of the contrasted embeddings.
        num_layers: number of linear layers of the projection head (2 in SimCLR v1, 3 in v2).
        batch_norm: use batch normalisation in the projection head, synchronised over GPUs. It
            cannot be synchronised on CPUs: turn it off for several CPU processes.
    """

    features: Literal["pooled", "tokens"] = "pooled"
    temperature: float = 0.1
    hidden_dim: int = 512
    output_dim: int = 128
    num_layers: int = 2
    batch_norm: bool = True

    def __post_init__(self) -> None:
        check_types(self, "objective.")
        check_least(self, "objective.", hidden_dim=1, output_dim=1, num_layers=2)
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature {self.temperature} must be positive")


@dataclass
class MaskedTubeletsConfig:
    """Settings of the masked-tubelets objective.

    Args:
        mask_ratio: fraction of the spatial positions that are hidden. The number of hidden
            positions is rounded down.
        mask: ``random`` hides different random positions at each time step. ``tube`` hides random
            positions that are constant over time. ``block`` hides rectangles that are constant over
            time.
        decoder_depth: number of blocks of the decoder.
        decoder_dim: width of the decoder. null means half of the encoder's width.
        decoder_positions: positions in the decoder: ``sinusoidal``, as in VideoMAE, or ``rotary``,
            which adds rotary positions and needs far fewer training steps.
        normalize_targets: whether to normalise pixels within each tubelet and channel.
    """

    mask_ratio: float = 0.9
    mask: MaskKind = "random"
    decoder_depth: int = 4
    decoder_dim: int | None = None
    decoder_positions: DecoderPositions = "sinusoidal"
    normalize_targets: bool = True

    def __post_init__(self) -> None:
        check_types(self, "objective.")
        check_least(self, "objective.", decoder_depth=1)


@dataclass(frozen=True)
class NeuralPredictionConfig:
    """Settings of the Poisson objective.

    Args:
        regularisation: weights of the readouts' penalties by name, such as ``feature_l1`` or
            ``spread``. Penalties without a weight are not used.
        spread_start: initial factor of the widths of the readouts' Gaussians. With a factor above
            1, gradients of the readout positions depend on a larger part of the feature map. Linear
            baselines have no widths.
        spread_passes: number of forward passes in training (steps × accumulation) over which the
            factor ``spread_start`` goes to 1 geometrically. 0 disables the factor.
        eps: small number that is added to rates inside the logarithm; must be positive.
    """

    regularisation: dict[str, float] = field(default_factory=dict)
    spread_start: float = 1.0
    spread_passes: int = 0
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"objective.eps {self.eps} must be positive")
        if self.spread_start <= 0:
            raise ValueError(f"objective.spread_start {self.spread_start} must be positive")
        check_least(self, "objective.", spread_passes=0)


@dataclass(frozen=True)
class TuningConfig:
    """Settings of the encoder's training and of the length of a run.

    Besides the encoder, a core may have an adapter (resampling of the stimulus), a modulator
    (influence of behaviour) and a frame stream (convolution at full frame rate). With ``--encoder``
    these modules are new and are always trained. With ``--core_from`` they are already fitted, like
    the encoder. Then ``frozen``, ``readout_first`` and ``encoder_share`` apply to them as well, and
    ``frozen`` trains only readouts.

    Args:
        mode: ``full`` trains everything. ``frozen`` does not train the encoder and keeps it in eval
            mode. ``readout_first`` freezes the encoder for readout_steps steps and then trains
            everything. ``last_blocks`` trains the last blocks of a ViViT, and freezes all earlier
            parts of it in eval mode.
        readout_steps: number of steps of ``readout_first`` with a frozen encoder. After them the
            encoder's learning rate is warmed up.
        last_blocks: number of blocks that the mode ``last_blocks`` trains, with the norms after
            them. In Model 2, temporal blocks follow spatial blocks. The number of all blocks
            freezes only the embedding: tubelets, positions, class token and registers before the
            first block.
        encoder_share: factor of the encoder's learning rate, in addition to the layer-wise factors
            of training.optimizer.layer_decay.
        held_out_steps: number of steps at the end in which readouts of held-out neurons
            (data.held_out_neurons) are fitted on the training trials. All other parts are frozen.
            The warm-up takes at most a tenth of these steps.
        patience: the run ends early after this number of evaluations (evaluation.every) on the
            validation trials without a better score. The result of the run is then the best model.
            null trains all steps. The score is the one by which evaluation.keep_best selects the
            best model. In ``readout_first``, evaluations with a frozen encoder do not count. The
            schedule of the learning rate always spans training.steps.
        feature_cache: host memory in each process, in gigabytes, to cache features of frozen
            modules, so that repeated windows are computed once. 0 disables the cache. The cache is
            useful if data.window is at least as long as the trials, since shorter windows start at
            random frames.
    """

    mode: TuningMode = "full"
    readout_steps: int = 0
    last_blocks: int | None = None
    encoder_share: float = 1.0
    held_out_steps: int = 300
    patience: int | None = None
    feature_cache: float = 0.0

    def check(self, steps: int) -> None:
        """Check the settings against each other and the number of steps.

        Args:
            steps: number of steps of the run.

        Raises:
            ValueError: if a setting is out of range or contradicts another; the message names it.
        """
        if self.mode == "readout_first" and not 0 < self.readout_steps < steps:
            raise ValueError(
                f"tuning.readout_steps is {self.readout_steps}; with tuning.mode readout_first it "
                f"must be at least 1 and below training.steps {steps}"
            )
        if self.mode != "readout_first" and self.readout_steps:
            raise ValueError(
                f"tuning.readout_steps {self.readout_steps} needs tuning.mode readout_first, but "
                f"the mode is {self.mode}: set readout_steps to 0"
            )
        if (self.mode == "last_blocks") != (self.last_blocks is not None):
            raise ValueError(
                "tuning.mode last_blocks needs a number of blocks: give --tuning.last_blocks N"
                if self.last_blocks is None
                else f"tuning.last_blocks {self.last_blocks} needs tuning.mode last_blocks, but the "
                f"mode is {self.mode}: remove last_blocks, or give --tuning.mode "
                "last_blocks"
            )
        check_least(self, "tuning.", held_out_steps=1, feature_cache=0)
        if self.feature_cache and self.mode not in ("frozen", "readout_first"):
            raise ValueError(
                f"tuning.feature_cache {self.feature_cache:g} needs a frozen encoder, but "
                f"tuning.mode {self.mode} trains it; set feature_cache to 0, or use "
                "--tuning.mode frozen"
            )
        for name in ("last_blocks", "patience"):
            if getattr(self, name) is not None:
                check_least(self, "tuning.", **{name: 1})
        if self.encoder_share <= 0:
            raise ValueError(
                f"tuning.encoder_share is {self.encoder_share}; it must be above 0; to "
                "freeze the encoder, use --tuning.mode frozen"
            )
