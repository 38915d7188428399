"""Settings of a model of neurons: core, encoder, baselines, and the parts around the core.

This module must not import encoders, not even for type checkers. jsonargparse would import them
before it prints --help, and encoders take longer to load than torch.
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
        path: an exported directory or a name on the hub. Its architecture then replaces ``name``
            and ``overrides``; only the dropout settings of ``overrides`` still apply.
        name: named size of a fresh encoder. null means vivit_neural_small.
        overrides: settings of ViViTConfig in which the fresh encoder differs from its named size.
        geometry: changes to the encoder of ``path``: ``tubelet_size``, ``tubelet_stride``,
            ``temporal_padding`` or ``remainder``. Frame size and channels are always those of the
            sessions. A fresh encoder ignores this setting.
        weights: ``pretrained`` uses the weights of ``path``. ``fresh`` draws random weights, to
            compare with the same architecture without pretraining.
        match_fps: resample the stimulus to the frame rate at which the exported encoder was
            trained. If false, each recorded frame is one frame of the encoder.
        grad_checkpointing: recompute activations in the backward pass, which saves memory and takes
            more time.
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
    """Settings of all parts except the core.

    Args:
        layers: encoder blocks whose tokens are read. null means the last block. A number selects
            one block; negative numbers count from the end. A list, or ``all``, selects several
            blocks, whose tokens are summed with learned weights. In Model 2 the numbers of temporal
            blocks follow those of spatial blocks.
        adapter: settings of the resampling of the stimulus.
        modulator: settings of the modulation of features by behaviour.
        readout: settings of the readouts of all sessions.
        nonlinearity: function from drive to rate: ``softplus``, or ``elu``, which means ELU + 1.
        frame_stream: add a convolution at full frame rate to an encoder's tokens.
        stream_filters: number of space-time filters of the frame stream.
        readout_start: initial positions of readouts without cortical positions. ``energy`` places
            them where local contrast predicts the training responses. ``centre`` leaves them near
            the middle.
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
        ln: settings of the cores ``ln`` and ``ln_separable``. The core determines ``ln.filters``.
        energy: settings of the core ``energy``.
        resnet: settings of the core ``resnet``.
        x3d: settings of the core ``x3d``.
    """

    ln: LinearNonlinearConfig = field(default_factory=LinearNonlinearConfig)
    energy: MotionEnergyConfig = field(default_factory=MotionEnergyConfig)
    resnet: CausalResNetConfig = field(default_factory=CausalResNetConfig)
    x3d: CausalX3DConfig = field(default_factory=CausalX3DConfig)
