"""Report on a trained model of neurons: scores on test trials, receptive fields, figures, a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.neurons.best_model import best_score
from ssl_vivit.evaluation.neurons.figure_data import (
    draw_fields,
    draw_positions,
    draw_scores,
    draw_traces,
)
from ssl_vivit.evaluation.neurons.receptive_fields import (
    found_centres,
    position_correlation,
    true_fields,
)
from ssl_vivit.evaluation.neurons.scoring import score, score_true_rates
from ssl_vivit.evaluation.run_summary import text_table
from ssl_vivit.files import write_json
from ssl_vivit.neural.model import NeuralModel
from ssl_vivit.neural.prediction import NeuralPredictor
from ssl_vivit.training.processes import Host


class NeuralReport(NamedTuple):
    """Scores of a model on test trials.

    Attributes:
        scores: as ``NeuralScores.compute`` names them.
        held_out: the same of the neurons that were held out; empty where there are none.
        ceiling: the same of the true rates; empty for recorded sessions.
        positions: session → r of found and true receptive fields (x, y), where these are known.
        started: the same before training.
        tier: "test", or "validation" where there are no test trials.
    """

    scores: dict[str, float]
    held_out: dict[str, float]
    ceiling: dict[str, float]
    positions: dict[str, tuple[float, float]]
    started: dict[str, tuple[float, float]]
    tier: str


def report(
    predictor: NeuralPredictor,
    sessions: Sessions,
    run_dir: Path,
    host: Host,
    *,
    started: dict[str, tuple[float, float]] | None = None,
    batch_size: int = 8,
    fields: int = 6,
    device: torch.device | str = "cpu",
) -> NeuralReport | None:
    """Score a model on the test trials; the main process writes ``scores.json`` and figures.

    Args:
        predictor: the model, as it was loaded.
        sessions: those that it was trained on.
        run_dir: the run's directory.
        host: the processes; all of them call this.
        started: what :func:`positions_found` said of the fresh model.
        batch_size: trials at once.
        fields: neurons whose receptive fields are drawn.
        device: where to compute.

    Returns:
        The report; None where there are no trials to score on.
    """
    tier, trials = ("test", sessions.test) if sessions.test else ("validation", sessions.validation)
    if trials is None:
        return None
    model = predictor.to(device).eval().model

    def rates(part: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return model(
                part["video"], part["behaviour"], part["session"], part.get("pupil_centre")
            )

    scores = score(rates, trials, host, batch_size=batch_size, device=device, repeats=True)
    truth = score_true_rates(trials, repeats=True)
    made = NeuralReport(
        scores.compute(), scores.compute("held_out"), truth.compute(),
        positions_found(model, sessions), started or {}, tier,
    )  # fmt: skip
    if host.is_main:
        write_json(run_dir / "scores.json", made._asdict(), indent=1)
        figures = run_dir / "figures"
        draw_scores(scores, truth, figures)
        for session in sessions.sessions:
            draw_positions(model, session, figures)
            draw_traces(rates, trials, session, scores, figures, device)
            if fields:
                draw_fields(model, trials, session, scores, figures, device, count=fields)
    return made


def positions_found(model: NeuralModel, sessions: Sessions) -> dict[str, tuple[float, float]]:
    """Session → r of the readouts' positions and the true ones in x and y, where these are known."""
    found = {}
    for session in sessions.sessions:
        truth = true_fields(session)
        centres = found_centres(model, session.name, session.frame_size)
        if truth is not None and centres is not None:
            found[session.name] = position_correlation(centres, truth["center"])
    return found


def summary(
    run_dir: Path, made: NeuralReport | None, sessions: Sessions, *, fresh: str | None = None
) -> str:
    """The table that a run prints at its end.

    Args:
        run_dir: the run's directory.
        made: what :func:`report` returned.
        sessions: those that the model was trained on.
        fresh: command that fits the same model without the pretrained weights; None where there are
            none.
    """
    rows = {"model": str(run_dir / "model")}
    best = best_score(run_dir)
    if best is not None:
        rows["best on validation"] = f"step {best['step']}, {best['name']} {best['score']:.3f}"
    for fact in sessions.facts if made else []:
        rows |= _rows(fact.name, made)  # type: ignore[arg-type]
    rows["figures"] = str(run_dir / "figures")
    if fresh is not None:
        rows["without pretraining"] = fresh
    rows["load it"] = (
        "from ssl_vivit.neural import load_neural_model; "
        f'model = load_neural_model("{run_dir / "model"}")'
    )
    return text_table([*rows.items()])


def _rows(session: str, made: NeuralReport) -> dict[str, str]:
    rows = {}
    for name, label in (
        ("bps", "bits per spike"),
        ("correlation", "single-trial correlation"),
        ("correlation_to_average", "correlation to average"),
        ("feve", "explained of explainable variance"),
    ):
        key = f"{name}_{session}"
        if key not in made.scores:
            continue
        said = f"{made.scores[key]:.3f}"
        if key in made.ceiling:
            share = made.scores[key] / made.ceiling[key] if made.ceiling[key] > 0 else float("nan")
            said += f" of {made.ceiling[key]:.3f} with the true rates ({share:.0%})"
        if key in made.held_out:
            said += f"; neurons held out of training {made.held_out[key]:.3f}"
        rows[f"{session}, {made.tier}: {label}"] = said
    if session in made.positions:
        x, y = made.positions[session]
        said = f"r = {x:.3f} in x, {y:.3f} in y"
        if session in made.started:
            x, y = made.started[session]
            said += f" ({x:.3f}, {y:.3f} before training)"
        rows[f"{session}: found and true receptive fields"] = said
    return rows
