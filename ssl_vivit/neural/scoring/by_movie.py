"""Sums and moments of predicted rates and responses for each movie of a session.

Scores are computed from them. Scores of resampled movies need no second pass over the trials.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.neural.scoring.metrics import PairedMoments, PoissonSums
from ssl_vivit.neural.scoring.repeats import Repeats, RepeatScores

# Name of the movie for trials without a named movie.
UNNAMED = ""


@dataclass(frozen=True)
class Trials:
    """Sums and moments of predicted rates and responses over trials, from which scores follow.

    Attributes:
        sums: sums for the Poisson likelihood.
        moments: moments for the single-trial correlation.
        repeats: moments for scores of repeats of one movie. None if the movies are unknown.
    """

    sums: PoissonSums
    moments: PairedMoments
    repeats: Repeats | None = None

    @classmethod
    def of(cls, rates: Tensor, responses: Tensor, *, repeats: bool = False) -> Trials:
        """Compute sums and moments of rates and responses, each (trials, frames, neurons).

        If ``repeats`` is true, all trials must show one movie.
        """
        flat = (values.double().flatten(0, 1) for values in (responses, rates))
        return cls(
            PoissonSums.of(rates, responses),
            PairedMoments.of_pairs(*flat),
            Repeats.of(responses, rates) if repeats else None,
        )

    def __add__(self, other: Trials) -> Trials:
        one, two = self.repeats, other.repeats
        return Trials(
            self.sums + other.sums,
            PairedMoments.merged([self.moments, other.moments]),
            one if two is None else two if one is None else one.merged(two),
        )

    def packed(self) -> list[Any]:
        """Return all sums and moments as a JSON-serialisable list."""
        own: list[Any] = [_packed(self.sums), _packed(self.moments)]
        if self.repeats is not None:
            own += [_packed(self.repeats.moments), _packed_tensor(self.repeats.trial_variance)]
        return own

    @classmethod
    def unpacked(cls, packed: list[Any]) -> Trials:
        """Rebuild trials from the list that :meth:`packed` returned."""
        sums, moments, *rest = packed
        repeats = None
        if rest:
            repeats = Repeats(_unpacked(PairedMoments, rest[0]), _unpacked_tensor(rest[1]))
        return cls(_unpacked(PoissonSums, sums), _unpacked(PairedMoments, moments), repeats)


class TrialsByMovie:
    """One session's trials, grouped by the movie that they showed.

    Args:
        neurons: number of neurons of the session.

    Attributes:
        movies: dictionary from the name of a movie to the :class:`Trials` that showed it, in the
            order in which movies were first added.
    """

    def __init__(self, neurons: int) -> None:
        self.movies: dict[str, Trials] = {}
        nothing = torch.zeros(0, 0, neurons)
        self._nothing = Trials.of(nothing, nothing)

    def add(self, movie: str, trials: Trials) -> None:
        """Add trials that showed a movie."""
        known = self.movies.get(movie)
        self.movies[movie] = trials if known is None else known + trials

    def sums(self, counts: Float[Tensor, "... movies"] | None = None) -> PoissonSums:
        """Return the Poisson sums over all trials.

        Args:
            counts: number of times that each movie counts, in the order of :attr:`movies`. None
                counts each movie once.
        """
        parts = [trials.sums for trials in self._parts()]
        return PoissonSums.resampled(parts, self._once() if counts is None else counts)

    def moments(self, counts: Float[Tensor, "... movies"] | None = None) -> PairedMoments:
        """Return the joint moments of responses and rates over all trials.

        Args:
            counts: see :meth:`sums`.
        """
        parts = [trials.moments for trials in self._parts()]
        return PairedMoments.resampled(parts, self._once() if counts is None else counts)

    def of_repeats(self, counts: Float[Tensor, "... movies"] | None = None) -> RepeatScores | None:
        """Return scores of neurons from movies with repeats; None if no movie was repeated.

        Args:
            counts: see :meth:`sums`.
        """
        repeated = [
            (place, trials.repeats)
            for place, trials in enumerate(self.movies.values())
            if trials.repeats is not None and bool((trials.repeats.moments.count > 1).any())
        ]
        if not repeated:
            return None
        places, movies = zip(*repeated, strict=True)
        return RepeatScores(movies, None if counts is None else counts[..., list(places)])

    def _parts(self) -> list[Trials]:
        return [*self.movies.values()] or [self._nothing]

    def _once(self) -> Tensor:
        return torch.ones(len(self._parts()), dtype=torch.float64)


def _packed(part: PoissonSums | PairedMoments) -> list[dict[str, Any]]:
    return [_packed_tensor(getattr(part, field.name)) for field in fields(part)]


def _unpacked(kind: type[Any], packed: list[dict[str, Any]]) -> Any:
    return kind(*map(_unpacked_tensor, packed))


def _packed_tensor(values: Tensor) -> dict[str, Any]:
    """Return a tensor as a JSON-serialisable dictionary, without loss of precision."""
    data = base64.b64encode(values.contiguous().numpy().tobytes()).decode()
    return {"shape": list(values.shape), "data": data}


def _unpacked_tensor(packed: dict[str, Any]) -> Tensor:
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype=np.float64)
    return torch.from_numpy(values.copy()).view(packed["shape"])
