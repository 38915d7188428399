"""Computation of the data in the figures of a run, from a model of neurons and trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.trials import TrialBatches
from ssl_vivit.evaluation.neurons import figures as neural_figures
from ssl_vivit.evaluation.neurons.receptive_fields import (
    found_centres,
    receptive_fields,
    true_fields,
)
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.scoring.scores import NeuralScores

Rates = Callable[[dict[str, Any]], Tensor]

# For gradients: number of clips, frames of a clip, and lags up to the last frame of a clip.
_CLIPS, _SPAN, _LAGS = 32, 24, 12


def draw_positions(model: NeuralModel, session: Session, figures: Path) -> None:
    """Draw the receptive-field centres of the model's readout against the true centres.

    Nothing is drawn for recorded sessions, whose true centres are unknown, or for readouts without
    centres.
    """
    truth = true_fields(session)
    found = found_centres(model, session.name, session.frame_size)
    if truth is not None and found is not None:
        path = figures / f"positions_{session.name}.png"
        title = f"{session.name}: receptive-field centres, readout against truth"
        neural_figures.positions(found, truth["center"], path, title=title)


def draw_scores(
    scores: Mapping[str, NeuralScores], truth: Mapping[str, NeuralScores], figures: Path
) -> None:
    """Draw histograms of bits per spike and correlation, with a panel for each session and tier.

    Args:
        scores: tier → scores of the model.
        truth: tier → scores of the true rates.
        figures: folder for the figures.
    """
    for name, label, zero in (
        ("bps", "bits per spike", "mean rate of the neuron"),
        ("correlation", "single-trial correlation", "chance"),
    ):
        found, best = (
            {
                f"{session}, {tier}": own.neurons(session)[name].numpy()
                for tier, own in by_tier.items()
                for session in own.facts
                if _has(own, session, name)
            }
            for by_tier in (scores, truth)
        )
        if found:
            path = figures / f"{label.replace(' ', '_').replace('-', '_')}.png"
            neural_figures.histogram(
                found, path, label=f"{label} of a neuron", zero=zero, ceiling=best
            )


def draw_traces(
    rates: Rates,
    trials: TrialBatches,
    session: Session,
    tier: str,
    scores: NeuralScores,
    figures: Path,
    device: torch.device | str,
) -> None:
    """Draw responses in one trial, recorded and predicted, of the best, median and worst neuron."""
    measure, values, ranked = _ranked(scores, session.name)
    if not len(ranked):
        return
    (part,) = next(trials.once(1, device))["parts"]
    predicted = rates(part)[0].float().cpu().numpy()
    recorded = part["responses"][0].cpu().numpy()
    true = session.true_rates(int(part["trial"][0]))
    units = [ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    neural_figures.traces(
        [
            f"{place}: unit {session.unit_ids[unit]}, {measure} {values[unit]:.3f}"
            for place, unit in zip(("best", "median", "worst"), units, strict=True)
        ],
        recorded[:, units],
        predicted[:, units],
        figures / f"traces_{session.name}_{tier.replace('/', '_')}.png",
        true=None if true is None else true[:, units],
        frames_per_second=session.frames_per_second,
        kind=session.kind,
    )


def draw_fields(
    model: NeuralModel,
    trials: TrialBatches,
    session: Session,
    scores: NeuralScores,
    figures: Path,
    device: torch.device | str,
    *,
    count: int,
) -> None:
    """Draw receptive fields of the ``count`` neurons with the highest scores.

    True filters are drawn below if the session is simulated. Receptive fields are computed from
    gradients of the rates with respect to clips of the movies in ``trials``, which must be trials
    of ``session``. Nothing is drawn if all movies are too short.
    """
    measure, values, ranked = _ranked(scores, session.name)
    units = ranked[:count]
    clips = _clips(trials, device)
    if clips is None or not len(units):
        return
    found = receptive_fields(
        lambda video: model(video, None, session.name), clips, units.tolist(), lags=_LAGS
    )
    truth = true_fields(session)
    # The lag is drawn at which a neuron's filter has the most energy.
    lags = found.filters.square().sum((2, 3)).argmax(1)
    neural_figures.fields(
        [
            f"unit {session.unit_ids[unit]}, {measure} {values[unit]:.2f}\n"
            f"{_LAGS - 1 - lag} frames back"
            for unit, lag in zip(units, lags.tolist(), strict=True)
        ],
        found.filters[torch.arange(len(units)), lags].numpy(),
        found.centres.numpy(),
        figures / f"receptive_fields_{session.name}.png",
        true=None if truth is None else truth["receptive_field"][units],
        true_centres=None if truth is None else truth["center"][units],
    )


def _clips(trials: TrialBatches, device: torch.device | str) -> Tensor | None:
    """Return clips (b, 1, T, H, W) of standardised pixels, cut from all movies in the trials.

    None if all movies are shorter than a clip.
    """
    videos: dict[int, Tensor] = {}
    for batch in trials.once(1, device):
        (part,) = batch["parts"]
        movie = int(part["content"])
        if movie not in videos and part["video"].shape[2] >= _SPAN:
            videos[movie] = part["video"]
    if not videos:
        return None
    each = -(-_CLIPS // len(videos))
    cut = []
    for video in videos.values():
        starts = np.linspace(0, video.shape[2] - _SPAN, each).round().astype(int)
        cut += [video[:, :, start : start + _SPAN] for start in starts]
    return torch.cat(cut[:_CLIPS])


def _ranked(scores: NeuralScores, session: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Rank a session's neurons by bits per spike; if undefined, by single-trial correlation.

    Returns:
        Label of the score, scores of all neurons, and indices of the neurons with finite scores,
        best first.
    """
    name = "bps" if _has(scores, session, "bps") else "correlation"
    values = scores.neurons(session)[name].numpy()
    order = np.argsort(-values, kind="stable")
    label = "bits per spike" if name == "bps" else "correlation"
    return label, values, order[np.isfinite(values[order])]


def _has(scores: NeuralScores, session: str, name: str) -> bool:
    values = scores.neurons(session).get(name)
    return values is not None and bool(values.isfinite().any())
