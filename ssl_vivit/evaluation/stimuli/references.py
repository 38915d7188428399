"""Responses that a found stimulus is compared with: to grey, to random stimuli, to recorded movies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.data.randomness import named_generator
from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.chosen_units import ChosenUnits
from ssl_vivit.evaluation.stimuli.constraints import Constraints
from ssl_vivit.evaluation.stimuli.presentation import Presentation

# Movies of a recording whose rates are predicted, spread over all of them.
_MOVIES = 50


class References(NamedTuple):
    """Responses of n units to stimuli that were not made for them.

    Attributes:
        grey: (n,), to the grey screen.
        random: (count, n), to smoothed noise under the constraints of the found stimuli.
        best: (n, T, H, W), deviations from grey of the random stimulus of each unit's largest response.
    """

    grey: Float[np.ndarray, " n"]
    random: Float[np.ndarray, "count n"]
    best: Float[Tensor, "n T H W"]


def random_stimuli(constraints: Constraints, count: int, seed: int) -> Float[Tensor, "b T H W"]:
    """Smoothed white noise, as deviations from grey."""
    draw = named_generator(seed, "random stimuli")
    noise = draw.standard_normal((count, *constraints.shape), dtype=np.float32)
    return constraints.projected(constraints.smoothed(torch.from_numpy(noise)))


@torch.no_grad()
def measure_references(
    rates: Callable[[Tensor], Tensor],
    presentation: Presentation,
    constraints: Constraints,
    units: Sequence[int],
    *,
    count: int = 100,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> References:
    """Measure responses to grey and to random stimuli.

    Args:
        rates: the model: pixels (b, T, H, W) → rates (b, T, neurons).
        presentation: how a stimulus is shown.
        constraints: on the stimulus.
        units: places of the neurons among those that are predicted.
        count: of the random stimuli.
        seed: of the random stimuli.
        batch_size: stimuli at once.
        progress: whether to show a bar.
    """
    shown = random_stimuli(constraints, count, seed)
    stimuli = torch.cat([torch.zeros_like(shown[:1]), shown])
    own = torch.as_tensor(units)
    what = f"random {presentation.kind}s"
    with tqdm(total=count + 1, desc=what, unit=presentation.kind, disable=not progress) as bar:
        found = []
        for some in stimuli.split(batch_size):
            found.append(presentation.responses(rates(presentation.clips(some)))[:, own].cpu())
            bar.update(len(some))
    responses = torch.cat(found).double()
    return References(responses[0].numpy(), responses[1:].numpy(), shown[responses[1:].argmax(0)])


def movie_rates(chosen: ChosenUnits, sessions: Sessions) -> list[Float[Tensor, "T n"]]:
    """Predicted rates of some units in movies of a session, as they were recorded.

    Args:
        chosen: the n units.
        sessions: as :meth:`ChosenUnits.opened` gives it; of more than 50 movies, 50 are taken.
    """
    (session,) = sessions.sessions
    first = {int(session.contents[trial]): trial for trial in reversed(sorted(session.trials))}
    trials, own = list(first.values()), list(chosen.places)
    taken = np.unique(np.linspace(0, len(trials) - 1, _MOVIES).round().astype(int))
    videos = (torch.from_numpy(np.array(session.video(trials[place])))[None] for place in taken)
    return [chosen.rates(video)[0][:, own].double().cpu() for video in videos]


def movie_responses(
    rates: Sequence[Float[Tensor, "T n"]], response: int
) -> Float[np.ndarray, "windows n"]:
    """Return mean rates of all windows of ``response`` frames; a shorter movie has none."""
    long = [each.unfold(0, response, 1).mean(-1) for each in rates if len(each) >= response]
    return torch.cat(long).numpy() if long else np.zeros((0, rates[0].shape[1]))
