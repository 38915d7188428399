"""Settings of a model of neurons: core, encoder, baselines, and the parts around the core.

No encoder is imported here, not even for type checkers: jsonargparse would import it before it
prints --help, and encoders take longer to load than torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ssl_vivit.neural.adapters import AdapterConfig
from ssl_vivit.neural.cores.causal_resnet import CausalResNetConfig
from ssl_vivit.neural.cores.causal_x3d import CausalX3DConfig
from ssl_vivit.neural.cores.motion_energy import MotionEnergyConfig
from ssl_vivit.neural.modulators import ModulatorConfig
from ssl_vivit.neural.nonlinearity import Nonlinearity
from ssl_vivit.neural.readout.gaussian import ReadoutConfig
from ssl_vivit.neural.readout.linear import LinearNonlinearConfig

Layers = int | list[int] | Literal["all"] | None
ReadoutStart = Literal["energy", "centre"]
CoreKind = Literal["vivit", "ln", "ln_separable", "energy", "resnet", "x3d"]


@dataclass(frozen=True)
class NeuralEncoderChoice:
    """Choice of the encoder of a model of neurons.

    Args:
        path: an exported directory or a name on the hub. Its architecture takes the place of
            ``name`` and ``overrides``, of which dropout alone still holds.
        name: a named size for a fresh encoder; null is vivit_neural_small.
        overrides: settings of ViViTConfig in which the fresh encoder differs from its size.
        geometry: settings that are changed in the encoder of ``path``, beside those that the
            sessions ask for: ``tubelet_size``, ``tubelet_stride``, ``temporal_padding``,
            ``remainder``. A fresh encoder does not read them.
        weights: ``pretrained`` takes the weights of ``path``; ``fresh`` draws them anew, for a
            comparison with the same model without pretraining.
        match_fps: show an exported encoder the stimulus at the frame rate that it was trained at;
            otherwise a recorded frame is one of its frames.
        grad_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    path: str | None = None
    name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Any] = field(default_factory=dict)
    weights: Literal["pretrained", "fresh"] = "pretrained"
    match_fps: bool = True
    grad_checkpointing: bool = False


@dataclass(frozen=True)
class NeuralModelConfig:
    """Settings of all parts but the core.

    Args:
        layers: blocks of the encoder whose tokens are read: null for the last; the number of one,
            negative from the end; a list, or ``all``, for the sum of several with learned weights.
            Blocks of Model 2 are numbered through its spatial ones, then its temporal ones.
        adapter: resampling of the stimulus.
        modulator: what behaviour does to the features.
        readout: how neurons read them.
        nonlinearity: from drive to rate; ``elu`` is ELU + 1.
        frame_stream: a convolution at full frame rate beside an encoder's tokens.
        stream_filters: its space-time filters.
        readout_start: ``energy`` puts readouts that have no cortical positions where local
            contrast predicts the training responses; ``centre`` leaves them near the middle.
    """

    layers: Layers = None
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    modulator: ModulatorConfig = field(default_factory=ModulatorConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    nonlinearity: Nonlinearity = "softplus"
    frame_stream: bool = True
    stream_filters: int = 64
    readout_start: ReadoutStart = "energy"


@dataclass(frozen=True)
class BaselineConfig:
    """Settings of the baseline cores.

    Args:
        ln: of ``ln`` and ``ln_separable``; which of them, the core says.
        energy: of ``energy``.
        resnet: of ``resnet``.
        x3d: of ``x3d``.
    """

    ln: LinearNonlinearConfig = field(default_factory=LinearNonlinearConfig)
    energy: MotionEnergyConfig = field(default_factory=MotionEnergyConfig)
    resnet: CausalResNetConfig = field(default_factory=CausalResNetConfig)
    x3d: CausalX3DConfig = field(default_factory=CausalX3DConfig)
