"""Reuse of a core that was fitted to recorded neurons, with new readouts for other sessions.

The core here includes all of a model except its readouts: encoder or baseline, adapter, modulator
and frame stream.
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
    """Load a model of neurons whose core is to be reused.

    Args:
        path: a run, an exported model of neurons, or a name on the hub.
        option: command-line option that gave the path, for messages.

    Raises:
        NeuralModelError: if there is no model of neurons, or if it is a linear model, whose neurons
            read pixels and share no core.
    """
    try:
        found = NeuralPredictor.from_pretrained(path)
    except (FileNotFoundError, ExportError, NeuralModelError) as error:
        raise NeuralModelError(f"{option}: {error}") from None
    if isinstance(found.model.encoder, PooledPixels):
        raise NeuralModelError(
            f"{option} {path} is a linear model, whose neurons read pixels and share no core; give "
            "a model with another core, or fit a new linear model with --core ln"
        )
    return found


def check_encoder(path: str, option: str = "--encoder", core_option: str = "--core_from") -> None:
    """Refuse a path without an exported encoder, before sessions are opened.

    Args:
        path: an exported directory or a name on the hub.
        option: command-line option that gave the path, for messages.
        core_option: command-line option that accepts a model of neurons, for messages.

    Raises:
        NeuralModelError: if there is no encoder. If the path holds a model of neurons, the message
            names the options that use its core or only its encoder.
    """
    for place in (Path(path), Path(path) / "model"):
        if is_kind(place, MODEL_OF_NEURONS):
            alone = place / "encoder"
            mend = f", or {option} {alone} to use only its encoder" if alone.is_dir() else ""
            raise NeuralModelError(
                f"{option} {path} is a model of neurons, not an encoder; give {core_option} {path} "
                f"to use its core (all parts except readouts){mend}"
            )
    try:
        read_config(locate(path, ENCODER), ENCODER)
    except (FileNotFoundError, ExportError) as error:
        raise NeuralModelError(f"{option}: {error}") from None


def core_inputs(fitted: NeuralPredictor) -> SessionFacts:
    """Return ``SessionFacts`` with the frame size and behaviour channels required of new sessions.

    These are the facts of the model's first session. If the core uses no behaviour, their behaviour
    channels are removed.
    """
    if fitted.model.behaviour_channels:
        return fitted.facts[0]
    return replace(fitted.facts[0], behaviour_channels=(), recorded_channels=None)


def build_on_core(
    fitted: NeuralPredictor, config: NeuralModelConfig, facts: Sequence[SessionFacts]
) -> BuiltModel:
    """Replace the readouts of a fitted model, in place, by new ones for other sessions.

    Args:
        fitted: the fitted model.
        config: settings, of which only ``readout`` and ``nonlinearity`` are used.
        facts: ``SessionFacts`` of the new sessions, which must match :func:`core_inputs`.

    Returns:
        The model and a note on its core. The neurons start at their mean rates.

    Raises:
        NeuralModelError: if a session has a frame rate at which the core was not fitted.
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
        f"core_from: {', '.join(parts)} as fitted to {sessions}; the settings encoder, baseline, "
        "model.layers, model.adapter, model.modulator, model.frame_stream and "
        "model.stream_filters are ignored"
    )
    return BuiltModel(model, [note])


def _rates_like(fitted: NeuralPredictor, fact: SessionFacts) -> FrameRates | None:
    """Return how the fitted model resamples stimuli with the frame rate of the new session.

    None means that such stimuli are not resampled.

    Raises:
        NeuralModelError: if no session of the model has this frame rate.
    """
    for known in fitted.facts:
        if math.isclose(known.frames_per_second, fact.frames_per_second, rel_tol=RATE_TOLERANCE):
            return fitted.model.frame_rates[known.name]
    there = sorted({known.frames_per_second for known in fitted.facts})
    told = " and ".join(f"{rate:g}" for rate in there)
    raise NeuralModelError(
        f"session {fact.name} has {fact.frames_per_second:g} frames per second, but the core of "
        f"--core_from was fitted at {told} frames per second; resample the session to such a rate, "
        "or fit a new core with --encoder"
    )
