"""Sections of a model of neurons that need no recordings: receptive fields and tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_vivit.evaluation.chosen_units import ChosenUnits, chosen_of
from ssl_vivit.evaluation.fields.figure import draw_ellipses, draw_maps
from ssl_vivit.evaluation.fields.methods import by_gradient, by_position, clips_of_noise
from ssl_vivit.evaluation.fields.white_noise import WhiteNoise
from ssl_vivit.evaluation.report.page import Section, paragraph, picture
from ssl_vivit.evaluation.tuning.curves import measure_curves
from ssl_vivit.evaluation.tuning.figure import draw_curves
from ssl_vivit.evaluation.tuning.gratings import Protocol
from ssl_vivit.evaluation.tuning.stimuli import default_stimuli
from ssl_vivit.neural.prediction import NeuralPredictor

# As in `python -m ssl_vivit.evaluation.fields`: number of clips for gradients, seconds before a
# response, and side of a square of noise in pixels.
_CLIPS, _PAST, _CHECK = 32, 0.5, 2


def fields(predictor: NeuralPredictor, session: str, units: Sequence[int], folder: Path) -> Section:
    """Return a section with figures of readout positions and of receptive fields by gradient.

    Args:
        predictor: the model.
        session: session of the neurons.
        units: ids of the units whose receptive fields are drawn.
        folder: folder for the figures.
    """
    chosen = chosen_of(predictor, session, units)
    facts = chosen.facts
    lags = max(2, round(_PAST * facts.frames_per_second))
    noise = WhiteNoise(facts.frame_size, _CHECK, 1, 1.0, 255 * facts.video_mean, 0)
    found = {"gradient": by_gradient(chosen, clips_of_noise(noise, _CLIPS, 2 * lags), lags=lags)}
    parts = []
    everywhere = by_position(chosen_of(predictor, session, None))
    if everywhere is not None:
        path = folder / f"positions_{session}.png"
        draw_ellipses({"position": everywhere.ellipses}, facts.frame_size, path)
        parts.append(picture(path, f"{session}: readout positions of all units"))
        placed = by_position(chosen)
        assert placed is not None
        found["position"] = placed
    path = folder / f"fields_{session}.png"
    ellipses = {name: each.ellipses for name, each in found.items()}
    draw_maps(found, ellipses, _names(chosen), range(len(chosen.places)), facts, path)
    parts.append(picture(path, f"{session}: receptive fields by gradient, and their time courses"))
    return Section(f"Receptive fields, {session}", "".join(parts))


def tuning(predictor: NeuralPredictor, session: str, units: Sequence[int], folder: Path) -> Section:
    """Return a section with tuning curves for direction, frequencies, contrast and size.

    Args:
        predictor: the model.
        session: session of the neurons.
        units: ids of the units whose curves are drawn.
        folder: folder for the figure.
    """
    chosen = chosen_of(predictor, session, units)
    facts = chosen.facts
    protocol = Protocol(
        facts.frame_size, facts.frames_per_second, 255 * facts.video_mean, seconds=2.5
    )
    stimuli = default_stimuli(facts.frame_size, facts.frames_per_second)
    curves = measure_curves(chosen.rates, protocol, stimuli, chosen.places, chosen.centres())
    path = folder / f"tuning_{session}.png"
    draw_curves(curves, None, _names(chosen), range(len(chosen.places)), path)
    told = "Rates above grey in response to drifting gratings, with behaviour at its mean."
    body = paragraph(told) + picture(path, f"{session}: tuning curves of the model")
    return Section(f"Tuning, {session}", body)


def _names(chosen: ChosenUnits) -> list[str]:
    return [f"unit {unit}" for unit in chosen.unit_ids]
