"""A model of neurons as settings that JSON holds, and the model of such settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ssl_vivit.encoders import ViViT
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import StimulusAdapter
from ssl_vivit.neural.cores.core import build_core, core_of
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.pooled_pixels import AppendedBehaviour
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import ConvGRU, FiLM
from ssl_vivit.neural.readout.gaussian import GaussianReadout
from ssl_vivit.neural.readout.linear import LinearReadout

Builder = Callable[[dict[str, Any]], nn.Module]
ADAPTERS: dict[str, Builder] = dict.fromkeys(("scale", "affine"), StimulusAdapter.from_config)
MODULATORS: dict[str, Builder] = {
    "convgru": ConvGRU.from_config,
    "film": FiLM.from_config,
    "appended": AppendedBehaviour.from_config,
}


def settings_of(model: NeuralModel) -> dict[str, Any]:
    """Settings of all parts, which :func:`build_from_settings` makes the model of."""
    stream = model.frame_stream
    return {
        "core": core_of(model.encoder).to_config(),
        "adapter": _described(model.adapter),
        "modulator": _described(model.modulator),
        "readouts": {name: _readout_config(readout) for name, readout in model.readouts.items()},
        "nonlinearity": model.nonlinearity,
        "frame_stream": stream is not None,
        "stream_filters": None if stream is None else stream.hidden,
        "frame_rates": {
            name: None if rates is None else dataclasses.asdict(rates)
            for name, rates in model.frame_rates.items()
        },
    }


def build_from_settings(saved: dict[str, Any], encoder: ViViT | None) -> NeuralModel:
    """Build a model with fresh weights.

    Args:
        saved: settings by part, as of :func:`settings_of`.
        encoder: the core where it is a ViViT; None builds the core too.

    Raises:
        NeuralModelError: for parts of an unknown kind, or that do not fit each other.
        KeyError: for a part that is not described.
    """
    return NeuralModel(
        build_core(saved["core"]) if encoder is None else encoder,
        _rebuilt(saved["adapter"], ADAPTERS, "adapter"),
        _rebuilt(saved["modulator"], MODULATORS, "modulator"),
        {name: _rebuilt_readout(config) for name, config in saved["readouts"].items()},
        nonlinearity=saved["nonlinearity"],
        frame_stream=saved["frame_stream"],
        stream_filters=saved["stream_filters"] or 1,
        frame_rates={
            name: None if rates is None else FrameRates(**rates)
            for name, rates in saved["frame_rates"].items()
        },
    )


def _described(part: nn.Module | None) -> dict[str, Any] | None:
    return None if part is None else part.to_config()  # type: ignore[operator]


def _rebuilt(
    config: dict[str, Any] | None, builders: dict[str, Builder], what: str
) -> nn.Module | None:
    if config is None:
        return None
    if config["kind"] not in builders:
        raise NeuralModelError(
            f"{what} kind {config['kind']!r} is unknown; known: {', '.join(builders)}"
        )
    return builders[config["kind"]](config)


def _readout_config(readout: nn.Module) -> dict[str, Any]:
    if not isinstance(readout, GaussianReadout):
        return readout.to_config()  # type: ignore[operator]
    cortex = readout.cortical_map
    return {
        "kind": "gaussian",
        "neurons": readout.neurons,
        "channels": readout.channels,
        "cortical_axes": None if cortex is None else cortex.coordinates.shape[1],
        **dataclasses.asdict(readout.config),
    }


def _rebuilt_readout(config: dict[str, Any]) -> nn.Module:
    if config["kind"] == "linear":
        return LinearReadout.from_config(config)
    if config["kind"] != "gaussian":
        raise NeuralModelError(
            f"readout kind {config['kind']!r} is unknown; known: gaussian, linear"
        )
    names = ("kind", "neurons", "channels", "cortical_axes")
    settings = {name: value for name, value in config.items() if name not in names}
    neurons, axes = config["neurons"], config["cortical_axes"]
    coordinates = None if axes is None else torch.empty(neurons, axes)  # they come with the weights
    return GaussianReadout(neurons, config["channels"], coordinates=coordinates, **settings)
