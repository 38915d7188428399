"""All scores of a model of neurons, from batches on several processes as from everything at once."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.scoring.metrics import PairedMoments, PoissonSums
from ssl_vivit.neural.scoring.repeats import Repeats, RepeatScores

# Below this share of explainable variance (Cadena et al. 2019), what is explained of it is noise.
LEAST_EXPLAINABLE = 0.15

# Scores that divide by what is explainable.
_OF_EXPLAINABLE = ("feve", "cc_norm")


class NeuralScores:
    """Sums in float64 that any number of updates and processes add to; exact but for rounding.

    Repeats of a movie take 48 bytes for each of its frames and neurons.

    Args:
        facts: of each session; the means of the training trials are the null model of
            ``bps_train_null``.
        drop_first: frames at the start of each trial that do not count.
    """

    def __init__(self, facts: Sequence[SessionFacts], *, drop_first: int = 0) -> None:
        self.facts = {fact.name: fact for fact in facts}
        self.drop_first = drop_first
        self._seen = {fact.name: _Seen.nothing(len(fact.unit_ids)) for fact in facts}

    def update(
        self,
        session: str,
        rates: Float[Tensor, "b T neurons"],
        responses: Float[Tensor, "b T neurons"],
        movies: Sequence[str | int] | Int[Tensor, " b"] | None = None,
    ) -> None:
        """Add whole trials.

        Args:
            session: whose neurons.
            rates: expected responses per bin.
            responses: NaN where unknown.
            movies: which movie each trial showed, for scores of repeats; None for no such scores.

        Raises:
            NeuralModelError: for an unknown session, other numbers of neurons or of movies, and
                rates that are negative or NaN.
        """
        if session not in self._seen:
            raise NeuralModelError(
                f"session {session!r} is unknown; scores are for {', '.join(self._seen)}"
            )
        neurons = len(self.facts[session].unit_ids)
        if rates.shape != responses.shape or rates.shape[-1] != neurons:
            raise NeuralModelError(
                f"session {session!r} has {neurons} neurons; rates are of {tuple(rates.shape)}, "
                f"responses of {tuple(responses.shape)} (trials, frames, neurons)"
            )
        if isinstance(movies, Tensor):
            movies = movies.tolist()
        if movies is not None and len(movies) != len(rates):
            raise NeuralModelError(f"{len(rates)} trials show {len(movies)} movies; name one each")
        rates, responses = (x[:, self.drop_first :].detach().cpu() for x in (rates, responses))
        self._seen[session].add(_Seen.of(rates, responses))
        for index, movie in enumerate(movies or ()):
            only = slice(index, index + 1)
            self._seen[session].repeat(str(movie), Repeats.of(responses[only], rates[only]))

    def over_processes(self, gather: Callable[[Any], list[Any]]) -> NeuralScores:
        """The scores of all processes' trials together, the same on each.

        Args:
            gather: gives every process's JSON value, in order of rank, on all processes
                (``ssl_vivit.training.processes.Host.gather``); all of them call this.
        """
        together = NeuralScores(list(self.facts.values()), drop_first=self.drop_first)
        for session, seen in self._seen.items():
            names = sorted({name for part in gather(sorted(seen.movies)) for name in part})
            whole = _Seen.nothing(len(self.facts[session].unit_ids))
            for sums, moments in gather([_packed(seen.sums), _packed(seen.moments)]):
                whole.add(_Seen(_unpacked(PoissonSums, sums), _unpacked(PairedMoments, moments)))
            # One by one: repeats are what is large.
            for name in names:
                movie = seen.movies.get(name)
                own = movie and [_packed(movie.moments), _packed_tensor(movie.trial_variance)]
                for part in gather(own):
                    if part is not None:
                        moments = _unpacked(PairedMoments, part[0])
                        whole.repeat(name, Repeats(moments, _unpacked_tensor(part[1])))
            together._seen[session] = whole
        return together

    def neurons(self, session: str) -> dict[str, Float[Tensor, " neurons"]]:
        """Scores of each neuron of a session, NaN where they are not defined.

        Returns:
            ``poisson``, ``correlation``; for counts ``bps`` and ``bps_train_null``; where movies
            repeat ``correlation_to_average``, ``oracle`` (jackknife), ``fev``, ``feve``,
            ``cc_abs``, ``cc_max`` and ``cc_norm``. ``feve`` and ``cc_norm`` are of what repeats have
            in common (:mod:`ssl_vivit.neural.scoring.repeats`).
        """
        seen, fact = self._seen[session], self.facts[session]
        scores = {"poisson": seen.sums.loss(), "correlation": seen.moments.correlation()}
        if fact.kind == "spikes":
            scores["bps"] = seen.sums.bits_of_neurons()
            scores["bps_train_null"] = seen.sums.bits_of_neurons(_means(fact))
        repeated = [movie for movie in seen.movies.values() if (movie.moments.count > 1).any()]
        if repeated:
            of_repeats = RepeatScores(repeated)
            normalised = of_repeats.normalised_correlation()
            scores |= {
                "correlation_to_average": of_repeats.correlation_to_average(),
                "oracle": of_repeats.oracle(),
                "fev": of_repeats.explainable_variance(),
                "feve": of_repeats.explained(),
                "cc_abs": normalised.absolute,
                "cc_max": normalised.maximum,
                "cc_norm": normalised.normalised,
            }
        return scores

    def compute(self, units: Literal["trained", "held_out"] = "trained") -> dict[str, float]:
        """Scores by name; those that are not defined are left out.

        Args:
            units: which neurons: those that were trained on, or those that were held out.

        Returns:
            For each score of :meth:`neurons`, ``<score>_<session>``, the mean over neurons, and
            ``<score>_mean``, the mean of these over sessions. ``bps`` and ``bps_train_null`` are
            of all neurons of the session together, as the Neural Latents Benchmark has them, and
            ``bps_units`` is the mean over neurons. ``silent_<session>`` counts neurons without
            any response, which means leave out. ``feve`` and ``cc_norm`` are of the neurons with
            explainable variance of 0.15 or more, counted as ``explainable_<session>``.
        """
        by_session: dict[str, dict[str, float]] = {}
        counts: dict[str, float] = {}
        for name, fact in self.facts.items():
            chosen = self._units(fact, units)
            if not chosen.any() or not self._seen[name].sums.known.any():
                continue
            by_session[name], counted = self._of_session(name, chosen)
            counts |= {f"{count}_{name}": float(value) for count, value in counted.items()}
        scores_of = {
            f"{score}_{name}": value
            for name, scores in by_session.items()
            for score, value in scores.items()
        }
        kinds = dict.fromkeys(score for scores in by_session.values() for score in scores)
        means = {
            f"{score}_mean": _mean(scores.get(score, np.nan) for scores in by_session.values())
            for score in kinds
        }
        everything = {**means, **scores_of, **counts}
        return {name: value for name, value in everything.items() if np.isfinite(value)}

    def _of_session(self, name: str, chosen: Tensor) -> tuple[dict[str, float], dict[str, int]]:
        """Means over the chosen neurons, and counts of silent and explainable ones."""
        scores = self.neurons(name)
        silent = self._seen[name].sums.responses == 0
        counts = {"silent": int((silent & chosen).sum())}
        if "fev" in scores:
            able = scores["fev"] >= LEAST_EXPLAINABLE
            counts["explainable"] = int((able & chosen).sum())
            scores |= {key: scores[key].masked_fill(~able, torch.nan) for key in _OF_EXPLAINABLE}
        used = chosen & ~silent
        means = {key: _mean(values[used].tolist()) for key, values in scores.items()}
        if "bps" in scores:
            sums, null = self._seen[name].sums[chosen], _means(self.facts[name])[chosen]
            means["bps_units"] = means["bps"]
            means["bps"] = sums.bits_per_spike()
            means["bps_train_null"] = sums.bits_per_spike(null)
        return means, counts

    @staticmethod
    def _units(fact: SessionFacts, units: str) -> Tensor:
        held_out = torch.tensor([unit in set(fact.held_out_units) for unit in fact.unit_ids])
        return held_out if units == "held_out" else ~held_out


@dataclass
class _Seen:
    """Sums and moments of one session's trials."""

    sums: PoissonSums
    moments: PairedMoments
    movies: dict[str, Repeats] = field(default_factory=dict)

    @classmethod
    def of(cls, rates: Tensor, responses: Tensor) -> _Seen:
        """Some trials (b, T, neurons), without their movies."""
        flat = (values.double().flatten(0, 1) for values in (responses, rates))
        return cls(PoissonSums.of(rates, responses), PairedMoments.of_pairs(*flat))

    @classmethod
    def nothing(cls, neurons: int) -> _Seen:
        """No trials yet."""
        return cls.of(torch.zeros(0, 0, neurons), torch.zeros(0, 0, neurons))

    def add(self, other: _Seen) -> None:
        """Add the sums of other trials."""
        self.sums = self.sums + other.sums
        self.moments = PairedMoments.merged([self.moments, other.moments])

    def repeat(self, name: str, trials: Repeats) -> None:
        """Add trials that showed a movie."""
        known = self.movies.get(name)
        self.movies[name] = trials if known is None else known.merged(trials)


def _means(fact: SessionFacts) -> Tensor:
    return torch.tensor(fact.mean_response, dtype=torch.float64)


def _mean(values: Iterable[float]) -> float:
    """Of those that are defined."""
    numbers = [value for value in values if np.isfinite(value)]
    return float(np.mean(numbers)) if numbers else float("nan")


def _packed(part: PoissonSums | PairedMoments) -> list[dict[str, Any]]:
    return [_packed_tensor(getattr(part, field.name)) for field in fields(part)]


def _unpacked(kind: type[Any], packed: list[dict[str, Any]]) -> Any:
    return kind(*map(_unpacked_tensor, packed))


def _packed_tensor(values: Tensor) -> dict[str, Any]:
    """All bits of a tensor, as JSON."""
    data = base64.b64encode(values.contiguous().numpy().tobytes()).decode()
    return {"shape": list(values.shape), "data": data}


def _unpacked_tensor(packed: dict[str, Any]) -> Tensor:
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype=np.float64)
    return torch.from_numpy(values.copy()).view(packed["shape"])
