"""Settings of the objectives. This module imports neither torch nor timm, so commands start fast."""

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
        features: what is contrasted: the ``pooled`` vector of a clip, or the mean of its patch
            ``tokens``, so that the weights which a dense readout uses are the ones trained.
        temperature: of the softmax over candidates.
        hidden_dim: hidden width of the projection head.
        output_dim: width of the embeddings that are contrasted.
        num_layers: linear layers of the projection head (2 as SimCLR v1, 3 as v2).
        batch_norm: batch normalisation in the projection head, synchronised over GPUs. There is no
            synchronised one on CPUs: turn it off for several CPU processes.
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
        mask_ratio: share of the spatial positions that is hidden, rounded down.
        mask: ``random`` hides other positions at every time, ``tube`` random positions at all
            times, ``block`` rectangles at all times.
        decoder_depth: blocks of the decoder.
        decoder_dim: its width; null is half the encoder's.
        decoder_positions: its positions: ``sinusoidal``, as VideoMAE's, or ``rotary`` besides, which
            learns in far fewer steps what to look at.
        normalize_targets: whether pixels are normalised within each tubelet and channel.
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
        regularisation: weight of each penalty that the readouts name (``feature_l1``, ``spread``,
            …); those that are not named weigh nothing.
        spread_start: what the width of the readouts' Gaussians is multiplied with at the start;
            above 1, positions feel the map from further away.
        spread_passes: forward passes in training (steps × accumulation) over which that factor
            goes to 1, in equal ratios; 0 leaves the widths alone. Linear baselines have none.
        eps: added to rates within the logarithm.
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

    Beside ``--core_from`` adapter, modulator and frame stream come fitted as the encoder does:
    ``frozen``, ``readout_first`` and encoder_share then hold for them, too, so that ``frozen`` fits
    readouts alone. Beside ``--encoder`` they start fresh and are always trained.

    Args:
        mode: ``full`` trains everything; ``frozen`` leaves the encoder as it is, in eval mode;
            ``readout_first`` does so for readout_steps steps and then trains everything;
            ``last_blocks`` trains the last blocks of a ViViT and leaves what comes before them as
            it is, in eval mode.
        readout_steps: steps of ``readout_first`` before the encoder joins; it warms up from then.
        last_blocks: blocks of ``last_blocks`` that are trained, and the norms after them. Blocks of
            Model 2 are in order its spatial ones, then its temporal ones. As many as the encoder
            has train all of it but the embedding: tubelets, positions of tubelets, class token and
            registers before the first block.
        encoder_share: factor on the encoder's learning rate, beside layer_decay's.
        held_out_steps: steps at the end in which the readouts of neurons that were held out
            (data.held_out_neurons) are fitted on the training trials, all else frozen.
        patience: evaluations (evaluation.every) on the validation trials without a better score
            after which the run ends early, with the best model as its result; null trains all
            steps. The score is the one of evaluation.keep_best. Evaluations before the encoder
            joins in ``readout_first`` do not count. The learning rate follows the schedule of all
            training.steps.
        feature_cache: gigabytes of host memory in each process for features of what is frozen, so
            that a window which is seen again is not computed again; 0 keeps none. It has use where
            data.window is at least as long as trials, since shorter windows start at random.
    """

    mode: TuningMode = "full"
    readout_steps: int = 0
    last_blocks: int | None = None
    encoder_share: float = 1.0
    held_out_steps: int = 300
    patience: int | None = None
    feature_cache: float = 0.0

    def check(self, steps: int) -> None:
        """Refuse settings under which nothing is trained.

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
        if (self.mode == "last_blocks") != (self.last_blocks is not None):
            raise ValueError(
                "tuning.mode last_blocks needs a number of blocks: give --tuning.last_blocks N"
                if self.last_blocks is None
                else f"tuning.last_blocks {self.last_blocks} belongs to tuning.mode last_blocks; the "
                f"mode is {self.mode}: leave last_blocks out, or give --tuning.mode last_blocks"
            )
        check_least(self, "tuning.", held_out_steps=1, feature_cache=0)
        if self.feature_cache and self.mode not in ("frozen", "readout_first"):
            raise ValueError(
                f"tuning.feature_cache {self.feature_cache:g} keeps features of a frozen encoder, and "
                f"tuning.mode {self.mode} trains it; leave feature_cache at 0, or take --tuning.mode "
                "frozen"
            )
        for name in ("last_blocks", "patience"):
            if getattr(self, name) is not None:
                check_least(self, "tuning.", **{name: 1})
        if self.encoder_share <= 0:
            raise ValueError(
                f"tuning.encoder_share is {self.encoder_share}; it must be above 0 (tuning.mode "
                "frozen trains no encoder)"
            )
