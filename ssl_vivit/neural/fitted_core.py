"""A core that was fitted to recorded neurons and is read by the neurons of other sessions.

The core is all of a model but its readouts: encoder or baseline, adapter, modulator, frame stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.encoders.vivit import ENCODER
from ssl_vivit.errors import ExportError, NeuralModelError
from ssl_vivit.exported.directory import is_kind, read_config
from ssl_vivit.exported.hub import locate
from ssl_vivit.neural.building import BuiltModel, build_readouts, start_at_mean_rates
from ssl_vivit.neural.config import NeuralModelConfig
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.pooled_pixels import PooledPixels
from ssl_vivit.neural.cores.vivit_core import core_of
from ssl_vivit.neural.prediction import MODEL_OF_NEURONS, NeuralPredictor
from ssl_vivit.neural.recorded_inputs import RATE_TOLERANCE


def open_core(path: str, option: str = "--core_from") -> NeuralPredictor:
    """Open a model of neurons whose core others are to read.

    Args:
        path: a run, an exported model of neurons, or a name on the hub.
        option: by which it was given.

    Raises:
        NeuralModelError: if there is none, or its neurons read pixels and share no core.
    """
    try:
        found = NeuralPredictor.from_pretrained(path)
    except (FileNotFoundError, ExportError, NeuralModelError) as error:
        raise NeuralModelError(f"{option}: {error}") from None
    if isinstance(found.model.encoder, PooledPixels):
        raise NeuralModelError(
            f"{option} {path} is a linear model, whose neurons read pixels and share no core; fit "
            "one anew by --core ln, or give a model with another core"
        )
    return found


def check_encoder(path: str, option: str = "--encoder", core_option: str = "--core_from") -> None:
    """Refuse a path without an exported encoder, before sessions are opened.

    Args:
        path: an exported directory or a name on the hub.
        option: by which it was given.
        core_option: that takes a model of neurons.

    Raises:
        NeuralModelError: if there is no encoder. Of a model of neurons it names the options that
            take it or its encoder.
    """
    for place in (Path(path), Path(path) / "model"):
        if is_kind(place, MODEL_OF_NEURONS):
            alone = place / "encoder"
            mend = f", and {option} {alone} its encoder alone" if alone.is_dir() else ""
            raise NeuralModelError(
                f"{option} {path} is a model of neurons; {core_option} {path} takes its core (all "
                f"but readouts){mend}"
            )
    try:
        read_config(locate(path, ENCODER), ENCODER)
    except (FileNotFoundError, ExportError) as error:
        raise NeuralModelError(f"{option}: {error}") from None


def core_inputs(fitted: NeuralPredictor) -> SessionFacts:
    """Facts of the first session of the model, with the behaviour channels that its core takes."""
    if fitted.model.behaviour_channels:
        return fitted.facts[0]
    return replace(fitted.facts[0], behaviour_channels=(), recorded_channels=None)


def build_on_core(
    fitted: NeuralPredictor, config: NeuralModelConfig, facts: Sequence[SessionFacts]
) -> BuiltModel:
    """Build fresh readouts of other sessions on the core of a fitted model, which is modified.

    Args:
        fitted: the model; its readouts are replaced.
        config: of which readout and nonlinearity are used; all else is the core's.
        facts: of the new sessions, with the inputs of :func:`core_inputs`.

    Returns:
        The model, whose neurons start at their mean rates, and lines about it.

    Raises:
        NeuralModelError: for a session at a frame rate that the core was not fitted at.
    """
    model = fitted.model
    rates = {fact.name: _rates_like(fitted, fact) for fact in facts}
    model.nonlinearity = config.nonlinearity
    channels = core_of(model.encoder).channels
    model.set_readouts(build_readouts(config.readout, channels, facts), rates)
    if config.readout.bias:
        start_at_mean_rates(model, facts)
    kept = {
        "adapter": model.adapter,
        "modulator": model.modulator,
        "frame stream": model.frame_stream,
    }
    parts = [
        type(model.encoder).__name__,
        *(name for name, part in kept.items() if part is not None),
    ]
    sessions = ", ".join(fact.name for fact in fitted.facts)
    note = (
        f"core_from: {', '.join(parts)} as fitted to {sessions}; encoder, baseline, model.layers, "
        "model.adapter, model.modulator, model.frame_stream and model.stream_filters are not read"
    )
    return BuiltModel(model, [note])


def _rates_like(fitted: NeuralPredictor, fact: SessionFacts) -> FrameRates | None:
    """Resampling of the session of the model that has this one's frame rate."""
    for known in fitted.facts:
        if math.isclose(known.frames_per_second, fact.frames_per_second, rel_tol=RATE_TOLERANCE):
            return fitted.model.frame_rates[known.name]
    there = sorted({known.frames_per_second for known in fitted.facts})
    told = " and ".join(f"{rate:g}" for rate in there)
    raise NeuralModelError(
        f"session {fact.name} has {fact.frames_per_second:g} frames per second, and the core of "
        f"core_from was fitted at {told}: resample the session to that, or fit a core by --encoder"
    )
