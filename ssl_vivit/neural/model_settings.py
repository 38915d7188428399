"""Conversion of a model of neurons to JSON-serialisable settings and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ssl_vivit.encoders import ViViT
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.causal_resnet import CausalResNet, CausalResNetConfig
from ssl_vivit.neural.cores.causal_x3d import CausalX3D, CausalX3DConfig
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.motion_energy import MotionEnergy, MotionEnergyConfig
from ssl_vivit.neural.cores.pooled_pixels import AppendedBehaviour, PooledPixels
from ssl_vivit.neural.cores.vivit_core import core_of
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.linear import LinearNonlinearConfig, LinearReadout

# For each part: kind → function that builds it from its other settings. A ViViT is saved in its own
# directory instead.
BUILDERS: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "core": {
        "resnet": lambda **settings: CausalResNet(CausalResNetConfig(**settings)),
        "x3d": lambda **settings: CausalX3D(CausalX3DConfig(**settings)),
        "energy": lambda frames_per_second, **settings: MotionEnergy(
            MotionEnergyConfig(**settings), frames_per_second=frames_per_second
        ),
        "pixels": PooledPixels,
    },
    "adapter": {
        "scale": lambda: StimulusAdapter("scale"),
        "affine": lambda: StimulusAdapter("affine"),
    },
    "modulator": {"convgru": ConvGRU, "film": FiLM, "appended": AppendedBehaviour},
    "readout": {
        "gaussian": lambda **settings: _gaussian_readout(**settings),
        "linear": lambda **settings: _linear_readout(**settings),
    },
}


def settings_of(model: NeuralModel) -> dict[str, Any]:
    """Return the settings of all parts, from which :func:`build_from_settings` builds the model."""
    stream = model.frame_stream
    return {
        "core": core_of(model.encoder).to_config(),
        "adapter": _described(model.adapter),
        "modulator": _described(model.modulator),
        "readouts": {name: _described(readout) for name, readout in model.readouts.items()},
        "nonlinearity": model.nonlinearity,
        "frame_stream": stream is not None,
        "stream_filters": None if stream is None else stream.hidden,
        "stream_frames": None if stream is None else stream.kernel[0],
        "frame_rates": {
            name: None if rates is None else dataclasses.asdict(rates)
            for name, rates in model.frame_rates.items()
        },
        "layers": None if model.block_reader is None else list(model.block_reader.blocks),
    }


def build_from_settings(saved: dict[str, Any], encoder: ViViT | None) -> NeuralModel:
    """Build a model with fresh weights.

    Args:
        saved: settings by part, as returned by :func:`settings_of`.
        encoder: the core, if it is a ViViT. None builds the core from ``saved``.

    Raises:
        NeuralModelError: if a part is of an unknown kind, or parts do not fit each other.
        KeyError: if ``saved`` lacks a part.
    """
    return NeuralModel(
        encoder or build_part("core", saved["core"]),
        build_part("adapter", saved["adapter"]),
        build_part("modulator", saved["modulator"]),
        {name: build_part("readout", config) for name, config in saved["readouts"].items()},
        nonlinearity=saved["nonlinearity"],
        frame_stream=saved["frame_stream"],
        stream_filters=saved["stream_filters"] or 1,
        # Earlier versions derived stream_frames from the sessions' frame rates.
        stream_frames=saved.get("stream_frames"),
        frame_rates={
            name: None if rates is None else FrameRates(**rates)
            for name, rates in saved["frame_rates"].items()
        },
        # Earlier versions read only the last block.
        layers=saved.get("layers"),
    )


def build_part(part: str, config: dict[str, Any] | None) -> Any:
    """Build a module with fresh weights from the dictionary that its ``to_config`` returned.

    Args:
        part: ``core``, ``adapter``, ``modulator`` or ``readout``.
        config: the dictionary. None, for a model without this part, returns None.

    Raises:
        NeuralModelError: if the kind is unknown.
    """
    if config is None:
        return None
    builders = BUILDERS[part]
    if config["kind"] not in builders:
        raise NeuralModelError(
            f"{part} kind {config['kind']!r} is unknown; known kinds: {', '.join(builders)}"
        )
    settings = {name: value for name, value in config.items() if name != "kind"}
    lists = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    return builders[config["kind"]](**{**settings, **lists})


def _described(part: nn.Module | None) -> dict[str, Any] | None:
    return None if part is None else part.to_config()  # type: ignore[operator]


def _gaussian_readout(
    neurons: int, channels: int, cortical_axes: int | None, **settings: Any
) -> GaussianReadout:
    # Placeholder coordinates, which are replaced when the weights are loaded.
    coordinates = None if cortical_axes is None else torch.empty(neurons, cortical_axes)
    return GaussianReadout(neurons, channels, coordinates=coordinates, **settings)


def _linear_readout(
    neurons: int, pooled: tuple[int, int, int], behaviour_channels: int, **settings: Any
) -> LinearReadout:
    config = LinearNonlinearConfig(**settings)
    return LinearReadout(neurons, pooled, behaviour_channels, config)
