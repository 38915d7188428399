"""Scores of a model of neurons on whole trials, computed by all processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.data.sessions.trials import TrialBatches
from ssl_vivit.neural.scoring.scores import NeuralScores
from ssl_vivit.training.processes import Host

Rates = Callable[[dict[str, Any]], Tensor]
Seen = Callable[[dict[str, Any], Tensor], None]


def score(
    rates: Rates,
    trials: TrialBatches,
    host: Host,
    *,
    batch_size: int,
    device: torch.device | str,
    repeats: bool = False,
    seen: Seen | None = None,
) -> NeuralScores:
    """Score a model on all trials, which are divided among the processes.

    Args:
        rates: function from a part of a batch to rates (b, T, neurons). A part is a dictionary with
            trials of one session.
        trials: whole trials.
        host: the processes of the run.
        batch_size: maximum number of trials in a batch.
        device: device of the model.
        repeats: whether to compute scores of repeated movies, such as FEVE; this takes more memory.
        seen: function called after each prediction of this process, with the part of the batch and
            the predicted rates.

    Returns:
        Scores over all trials, on all processes.
    """
    own = trials.of_process(host.rank, host.world_size)
    scores, last, calls = NeuralScores(trials.facts), None, 0
    for batch in own.once(batch_size, device):
        (part,) = batch["parts"]
        movies = part["content"].tolist() if repeats else None
        predicted = rates(part).float()
        scores.update(part["session"], predicted, part["responses"], movies)
        if seen is not None:
            seen(part, predicted)
        last, calls = part, calls + 1
    _equalise_calls(rates, last, calls, trials, host, device)
    return scores.over_processes(host.gather)


def score_true_rates(trials: TrialBatches, *, repeats: bool = False) -> NeuralScores:
    """Score the true rates of simulated sessions, an upper limit for models.

    Recorded sessions have no scores.
    """
    scores = NeuralScores(trials.facts)
    known = {session.name: session for session in trials.sessions if session.has_true_rates}
    simulated = [item for item in trials.trials if trials.sessions[item[0]].name in known]
    for batch in trials.only(simulated).once(1, "cpu"):
        (part,) = batch["parts"]
        true = known[part["session"]].true_rates(int(part["trial"]))
        movies = part["content"].tolist() if repeats else None
        scores.update(part["session"], torch.from_numpy(true)[None], part["responses"], movies)
    return scores


def _equalise_calls(
    rates: Rates,
    last: dict[str, Any] | None,
    calls: int,
    trials: TrialBatches,
    host: Host,
    device: torch.device | str,
) -> None:
    """Repeat calls of ``rates`` until all processes have made the same number of calls.

    This is necessary if weights are sharded, since each call gathers weights from all processes.
    """
    missing = max(host.gather(calls)) - calls
    if missing and last is None:
        (last,) = next(trials.once(1, device))["parts"]
    for _ in range(missing):
        assert last is not None
        rates(last)
