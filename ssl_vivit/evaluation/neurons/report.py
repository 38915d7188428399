"""Report on a trained model of neurons: scores on test trials, receptive fields, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.neurons.best_model import best_score
from ssl_vivit.evaluation.neurons.evaluation import LABELS
from ssl_vivit.evaluation.neurons.figure_data import (
    draw_fields,
    draw_positions,
    draw_scores,
    draw_traces,
)
from ssl_vivit.evaluation.neurons.receptive_fields import (
    NEAR_PIXELS,
    found_centres,
    position_correlation,
    share_near,
    true_fields,
)
from ssl_vivit.evaluation.neurons.scoring import score, score_true_rates
from ssl_vivit.evaluation.run_summary import first_and_last, text_table
from ssl_vivit.files import write_json
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.neural.scoring.scores import OF_EXPLAINABLE
from ssl_vivit.training.processes import Host


class TierScores(NamedTuple):
    """Scores of a model on the trials of one tier.

    Attributes:
        scores: name → score, by the names of ``NeuralScores.compute``.
        held_out: name → score of the held-out neurons; empty without held-out neurons.
        ceiling: name → score of the true rates; empty for recorded sessions.
    """

    scores: dict[str, float]
    held_out: dict[str, float]
    ceiling: dict[str, float]


class PositionsFound(NamedTuple):
    """Agreement of the readouts' positions with the true receptive fields.

    Attributes:
        x: Pearson's r, over neurons, of the readout's x position and the true x position.
        y: Pearson's r, over neurons, of the readout's y position and the true y position.
        near: fraction of neurons whose readout is within ``NEAR_PIXELS`` pixels of the true
            position.
    """

    x: float
    y: float
    near: float


class NeuralReport(NamedTuple):
    """Scores of a model on test trials, by tier.

    Attributes:
        tiers: name of a tier (see :meth:`Sessions.scored`) → scores.
        positions: session → agreement with the true receptive fields, for simulated sessions.
        started: ``positions`` of the model before training.
    """

    tiers: dict[str, TierScores]
    positions: dict[str, PositionsFound]
    started: dict[str, PositionsFound]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``scores.json``."""
        return {
            name: {key: value._asdict() for key, value in part.items()}
            for name, part in self._asdict().items()
        }


def report(
    predictor: NeuralPredictor,
    sessions: Sessions,
    run_dir: Path,
    host: Host,
    *,
    started: dict[str, PositionsFound] | None = None,
    batch_size: int = 8,
    fields: int = 6,
    device: torch.device | str = "cpu",
) -> NeuralReport | None:
    """Score a model on every tier of test trials.

    Must be called on all processes; the main process writes ``scores.json`` and figures.

    Args:
        predictor: the loaded model.
        sessions: sessions that the model was trained on.
        run_dir: the run's directory.
        host: the processes of the run.
        started: result of :func:`positions_found` before training.
        batch_size: number of trials in a batch.
        fields: number of neurons whose receptive fields are drawn.
        device: device of the computation.

    Returns:
        The report, or None if there are no test trials.
    """
    tiers = sessions.scored()
    if not tiers:
        return None
    model = predictor.to(device).eval().model

    def rates(part: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return model(
                part["video"], part["behaviour"], part["session"], part.get("pupil_centre")
            )

    scores = {
        tier: score(rates, trials, host, batch_size=batch_size, device=device, repeats=True)
        for tier, trials in tiers.items()
    }
    truth = {tier: score_true_rates(trials, repeats=True) for tier, trials in tiers.items()}
    made = NeuralReport(
        {
            tier: TierScores(own.compute(), own.compute("held_out"), truth[tier].compute())
            for tier, own in scores.items()
        },
        positions_found(model, sessions), started or {},
    )  # fmt: skip
    if host.is_main:
        figures = run_dir / "figures"
        draw_scores(scores, truth, figures)
        for session in sessions.sessions:
            draw_positions(model, session, figures)
            own = {tier: trials.of_session(session.name) for tier, trials in tiers.items()}
            own = {tier: trials for tier, trials in own.items() if len(trials)}
            for tier, trials in own.items():
                draw_traces(rates, trials, session, tier, scores[tier], figures, device)
            if fields and own:
                tier, trials = next(iter(own.items()))
                draw_fields(model, trials, session, scores[tier], figures, device, count=fields)
        # Written last: comparisons treat a run with scores.json as finished.
        write_json(run_dir / "scores.json", made.to_json(), indent=1)
    return made


def positions_found(model: NeuralModel, sessions: Sessions) -> dict[str, PositionsFound]:
    """Return session → agreement of readout positions with true receptive fields, if these are known."""
    found = {}
    for session in sessions.sessions:
        truth = true_fields(session)
        centres = found_centres(model, session.name, session.frame_size)
        if truth is not None and centres is not None:
            true = truth["center"]
            found[session.name] = PositionsFound(
                *position_correlation(centres, true), share_near(centres, true, session.frame_size)
            )
    return found


def summary(
    run_dir: Path, made: NeuralReport | None, sessions: Sessions, *, fresh: str | None = None
) -> str:
    """Return the text table that a run prints at its end.

    Args:
        run_dir: the run's directory.
        made: result of :func:`report`.
        sessions: sessions that the model was trained on.
        fresh: command that trains the model without pretrained weights; None if the run used none.
    """
    rows = {"model": str(run_dir / "model")}
    best = best_score(run_dir)
    if best is not None:
        scores = first_and_last(run_dir, best["name"])
        before = f" ({scores[0]:.3f} before training)" if scores else ""
        rows["best on validation"] = (
            f"step {best['step']}, {best['name']} {best['score']:.3f}{before}"
        )
        if scores and best["score"] <= scores[0]:
            rows["warning"] = (
                "no score is above the score before training, so the model does not generalise; "
                "lower --optimizer.learning_rate, raise the penalties (--objective.regularisation), "
                "or give more trials"
            )
    for fact in sessions.facts if made else []:
        for tier, own in made.tiers.items():  # type: ignore[union-attr]
            # Without test trials, validation trials are scored, which also selected the best step.
            chose = tier == "validation" and best is not None
            shown = "validation, which selected the step" if chose else tier
            trained = len(fact.unit_ids) - len(fact.held_out_units)
            rows |= _score_rows(fact.name, shown, own, trained)
        rows |= _position_rows(fact.name, made)  # type: ignore[arg-type]
    rows["figures"] = str(run_dir / "figures")
    if fresh is not None:
        rows["without pretraining"] = fresh
    rows["load it"] = (
        "from ssl_vivit.neural import load_neural_model; "
        f'model = load_neural_model("{run_dir / "model"}")'
    )
    return text_table([*rows.items()])


def _score_rows(session: str, tier: str, made: TierScores, neurons: int) -> dict[str, str]:
    """Return the scores for one session and tier as rows of the summary: label → text.

    A text has the model's score, and the scores of the true rates and of held-out neurons if they
    are known. For FEVE and CC_norm it has the number of neurons over which the score is averaged.
    """
    rows = {}
    for name, label in LABELS.items():
        key = f"{name}_{session}"
        if key not in made.scores:
            continue
        said = f"{made.scores[key]:.3f}"
        if name in OF_EXPLAINABLE:
            said += f" over {made.scores[f'explainable_{session}']:.0f} of {neurons} neurons"
        if key in made.ceiling:
            said += f"; {made.ceiling[key]:.3f} with the true rates"
            if made.ceiling[key] > 0:
                said += f" (ratio {made.scores[key] / made.ceiling[key]:.2f})"
        if key in made.held_out:
            said += f"; held-out neurons {made.held_out[key]:.3f}"
        rows[f"{session}, {tier}: {label}"] = said
    return rows


def _position_rows(session: str, made: NeuralReport) -> dict[str, str]:
    rows = {}
    if session in made.positions:
        x, y, near = made.positions[session]
        said = f"r = {x:.3f} in x, {y:.3f} in y, {near:.0%} within {NEAR_PIXELS:g} pixels"
        if session in made.started:
            x, y, near = made.started[session]
            said += f" ({x:.3f}, {y:.3f}, {near:.0%} before training)"
        rows[f"{session}: found and true receptive fields"] = said
    return rows
