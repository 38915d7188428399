"""Build a model of neurons from its settings: core, adapter, modulator and readouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.adapters import build_adapter
from ssl_vivit.neural.config import (
    BaselineConfig,
    CoreKind,
    NeuralEncoderChoice,
    NeuralModelConfig,
)
from ssl_vivit.neural.cores.causal_resnet import CausalResNet
from ssl_vivit.neural.cores.causal_x3d import CausalX3D
from ssl_vivit.neural.cores.encoder_fitting import fit_encoder
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.neural.cores.motion_energy import MotionEnergy
from ssl_vivit.neural.cores.vivit_core import core_of
from ssl_vivit.neural.linear_nonlinear import linear_nonlinear
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.modulators import build_modulator
from ssl_vivit.neural.nonlinearity import drive_of
from ssl_vivit.neural.readout.gaussian import ReadoutConfig
from ssl_vivit.neural.readout.linear import FilterKind
from ssl_vivit.neural.recorded_inputs import RATE_TOLERANCE

if TYPE_CHECKING:
    from ssl_vivit.data.sessions.facts import SessionFacts

# Lower bound of mean responses. Without it, a neuron that never fired would start with a drive of
# −∞.
_LEAST_MEAN_RESPONSE = 1e-3

# Penalties of all kinds of readouts. A config may give weights for all of them with any core.
PENALTIES = ("feature_l1", "spread", "mean_offset", "filter_l2", "smoothness")


class BuiltModel(NamedTuple):
    """A model of neurons, and notes on how it was built, one line each."""

    model: NeuralModel
    notes: list[str]


def build_neural_model(
    core: CoreKind,
    encoder: NeuralEncoderChoice,
    config: NeuralModelConfig,
    baseline: BaselineConfig,
    facts: Sequence[SessionFacts],
    *,
    longest: int,
    window: int | None = None,
) -> BuiltModel:
    """Build a new model for recorded sessions, whose neurons start at their mean rates.

    Args:
        core: ``vivit``, which uses the encoder, or the name of a baseline.
        encoder: choice of the encoder. Baselines ignore its named size.
        config: settings of the parts around the core.
        baseline: settings of the baseline cores.
        facts: ``SessionFacts`` of the sessions.
        longest: number of frames of the longest trial.
        window: number of frames of a training window. None means ``longest``.

    Raises:
        NeuralModelError: if settings contradict each other or do not suit the sessions.
    """
    if core != "vivit" and encoder.path is not None:
        raise NeuralModelError(
            f"--core {core} has no encoder, but --encoder {encoder.path} is given; remove "
            "--encoder, or use --core vivit"
        )
    if core != "vivit" and config.layers is not None:
        raise NeuralModelError(
            f"--core {core} has no blocks to choose from, but --model.layers is {config.layers}; "
            "remove --model.layers, or use --core vivit"
        )
    if core in ("ln", "ln_separable"):
        filters: FilterKind = "full" if core == "ln" else "separable"
        model = linear_nonlinear(
            {fact.name: len(fact.unit_ids) for fact in facts},
            facts[0].frame_size,
            behaviour_channels=len(facts[0].behaviour_channels),
            config=replace(baseline.ln, filters=filters),
            nonlinearity=config.nonlinearity,
        )
        start_at_mean_rates(model, facts)
        return BuiltModel(model, [])
    frame_rates: dict[str, FrameRates | None] | None = None
    notes: list[str] = []
    module: torch.nn.Module
    if core == "vivit":
        module, frame_rates, notes = fit_encoder(encoder, facts, longest, window)
    elif core == "resnet":
        module = CausalResNet(baseline.resnet)
    elif core == "energy":
        module = MotionEnergy(baseline.energy, frames_per_second=one_frame_rate(facts))
    else:
        module = CausalX3D(baseline.x3d)
    seen = core_of(module)
    behaviour_channels = len(facts[0].behaviour_channels)
    model = NeuralModel(
        module,
        build_adapter(config.adapter),
        build_modulator(config.modulator, seen.channels, behaviour_channels, seen.temporal_stride),
        build_readouts(config.readout, seen.channels, facts),
        nonlinearity=config.nonlinearity,
        frame_stream=config.frame_stream,
        stream_filters=config.stream_filters,
        frame_rates=frame_rates,
        layers=config.layers,
    )
    if config.readout.bias:
        start_at_mean_rates(model, facts)
    return BuiltModel(model, notes)


def one_frame_rate(facts: Sequence[SessionFacts]) -> float:
    """Return the frame rate that all sessions share, in frames per second.

    Raises:
        NeuralModelError: if the frame rates differ.
    """
    first = facts[0]
    for fact in facts[1:]:
        rates = first.frames_per_second, fact.frames_per_second
        if not math.isclose(*rates, rel_tol=RATE_TOLERANCE):
            raise NeuralModelError(
                f"--core energy needs one frame rate for all sessions, but {first.name} has "
                f"{rates[0]:g} frames per second and {fact.name} has {rates[1]:g}; fit one model "
                "for each session, or resample the sessions to one rate"
            )
    return first.frames_per_second


def build_readouts(
    config: ReadoutConfig, channels: int, facts: Sequence[SessionFacts]
) -> dict[str, torch.nn.Module]:
    """Build a new readout for each session, for a feature map with ``channels`` channels."""
    return {
        fact.name: config.build(
            len(fact.unit_ids),
            channels,
            coordinates=None if fact.coordinates is None else torch.tensor(fact.coordinates),
            pupil=fact.pupil_mean is not None,
        )
        for fact in facts
    }


def own_penalties(model: NeuralModel, weights: Mapping[str, float]) -> dict[str, float]:
    """Return the penalty weights that the readouts of this model use.

    Penalties of other kinds of readouts are left out. Names that no kind of readout has are kept,
    so that the training objective raises an error for them.
    """
    known = {name for r in model.readouts.values() for name in r.regularisation()}  # type: ignore[operator]
    return {name: w for name, w in weights.items() if name in known or name not in PENALTIES}


@torch.no_grad()
def start_at_mean_rates(model: NeuralModel, facts: Sequence[SessionFacts]) -> None:
    """Set readout biases to the drives that give each neuron's mean rate in the training trials."""
    for fact in facts:
        means = torch.tensor(fact.mean_response, dtype=torch.float64).clamp(
            min=_LEAST_MEAN_RESPONSE
        )
        bias: Any = model.readouts[fact.name].bias
        bias.copy_(drive_of(means, model.nonlinearity))
