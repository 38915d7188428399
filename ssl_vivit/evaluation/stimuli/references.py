"""Responses to grey, random stimuli and movies, for comparison with most exciting stimuli."""

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

# Maximum number of movies of a recording for which rates are predicted.
_MOVIES = 50


class References(NamedTuple):
    """Responses of n units to stimuli that were not optimised for them.

    Attributes:
        grey: (n,), responses to the grey screen.
        random: (count, n), responses to smoothed noise under the constraints of the ascent.
        best: (n, T, H, W), the random stimulus with the largest response of each unit, as
            deviations from grey.
    """

    grey: Float[np.ndarray, " n"]
    random: Float[np.ndarray, "count n"]
    best: Float[Tensor, "n T H W"]


def random_stimuli(constraints: Constraints, count: int, seed: int) -> Float[Tensor, "b T H W"]:
    """Draw smoothed white noise that fulfils the constraints, as deviations from grey."""
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
        constraints: constraints on the stimulus.
        units: indices of the units among the neurons that ``rates`` predicts.
        count: number of random stimuli.
        seed: seed of the random stimuli.
        batch_size: number of stimuli in a batch.
        progress: whether to show a progress bar.
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
    """Predict rates of units for the movies of a session; at most 50 movies are used.

    Args:
        chosen: the n units.
        sessions: the opened recording, from :meth:`ChosenUnits.opened`.

    Returns:
        Rates (T, n) for each movie.
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
    """Return mean rates in all windows of ``response`` consecutive frames of all movies.

    Movies that are shorter than a window are left out.

    Args:
        rates: rates of n units for each movie, from :func:`movie_rates`.
        response: number of frames in a window.
    """
    long = [each.unfold(0, response, 1).mean(-1) for each in rates if len(each) >= response]
    return torch.cat(long).numpy() if long else np.zeros((0, rates[0].shape[1]))
