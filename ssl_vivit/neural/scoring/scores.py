"""Scores of a model of neurons, accumulated over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.scoring.by_movie import UNNAMED, Trials, TrialsByMovie

# Minimum fraction of explainable variance (Cadena et al. 2019). Below it, FEVE is mostly noise.
LEAST_EXPLAINABLE = 0.15

# Scores that divide by an estimate of explainable variance.
OF_EXPLAINABLE = ("feve", "cc_norm")

# Number of resamples whose scores are computed together.
_AT_ONCE = 100


class NeuralScores:
    """Accumulates the scores of a model of neurons over batches and processes, in float64.

    Up to rounding, the scores do not depend on how trials are split into batches. Movies with
    repeats take 48 bytes for each frame and neuron.

    Args:
        facts: ``SessionFacts`` of each session. The null model of the score ``bps_train_null`` is
            the mean response of each neuron in the training trials.
        drop_first: number of frames at the start of each trial that are not scored.
    """

    def __init__(self, facts: Sequence[SessionFacts], *, drop_first: int = 0) -> None:
        self.facts = {fact.name: fact for fact in facts}
        self.drop_first = drop_first
        self._seen = {fact.name: TrialsByMovie(len(fact.unit_ids)) for fact in facts}

    def update(
        self,
        session: str,
        rates: Float[Tensor, "b T neurons"],
        responses: Float[Tensor, "b T neurons"],
        movies: Sequence[str | int] | Int[Tensor, " b"] | None = None,
    ) -> None:
        """Add the predicted rates and the responses of complete trials.

        Args:
            session: name of the session.
            rates: expected responses per bin.
            responses: responses, NaN if unknown.
            movies: movie that each trial showed, for scores of repeats. None omits these scores.

        Raises:
            NeuralModelError: for an unknown session, a wrong number of neurons or movies, or rates
                that are negative or NaN.
        """
        if session not in self._seen:
            raise NeuralModelError(
                f"session {session!r} is unknown; scores are for {', '.join(self._seen)}"
            )
        neurons = len(self.facts[session].unit_ids)
        if rates.shape != responses.shape or rates.shape[-1] != neurons:
            raise NeuralModelError(
                f"session {session!r} has {neurons} neurons; rates have shape {tuple(rates.shape)} "
                f"and responses {tuple(responses.shape)}; both must have the shape (trials, "
                "frames, neurons)"
            )
        if isinstance(movies, Tensor):
            movies = movies.tolist()
        if movies is not None and len(movies) != len(rates):
            raise NeuralModelError(
                f"movies has {len(movies)} names for {len(rates)} trials; name one movie per trial"
            )
        rates, responses = (x[:, self.drop_first :].detach().cpu() for x in (rates, responses))
        if movies is None:
            self._seen[session].add(UNNAMED, Trials.of(rates, responses))
        for index, movie in enumerate(movies or ()):
            only = slice(index, index + 1)
            trial = Trials.of(rates[only], responses[only], repeats=True)
            self._seen[session].add(str(movie), trial)

    def over_processes(self, gather: Callable[[Any], list[Any]]) -> NeuralScores:
        """Return the scores of the trials of all processes; all processes must call this.

        Args:
            gather: function that returns the JSON values of all processes in order of rank, such as
                ``ssl_vivit.training.processes.Host.gather``.
        """
        together = NeuralScores(list(self.facts.values()), drop_first=self.drop_first)
        for session, seen in self._seen.items():
            names = sorted({name for part in gather(sorted(seen.movies)) for name in part})
            # Gather one movie at a time, since repeats take much memory.
            for name in names:
                own = seen.movies.get(name)
                for part in gather(own and own.packed()):
                    if part is not None:
                        together._seen[session].add(name, Trials.unpacked(part))
        return together

    def movies(self, session: str) -> list[str]:
        """Return the names of the movies of a session's trials.

        The argument ``counts`` of :meth:`neurons` and :meth:`resampled` has this order.
        """
        return [name for name in self._seen[session].movies if name != UNNAMED]

    def neurons(
        self, session: str, counts: Float[Tensor, "... movies"] | None = None
    ) -> dict[str, Float[Tensor, "... neurons"]]:
        """Return the scores of each neuron of a session; NaN if a score is undefined.

        Args:
            session: name of the session.
            counts: number of times that each movie counts, in the order of :meth:`movies`. None
                counts each movie once.

        Returns:
            ``poisson`` and ``correlation``. If responses are spike counts, also ``bps`` and
            ``bps_train_null``. If movies repeat, also ``correlation_to_average``, ``oracle``
            (jackknife), ``fev``, ``feve``, ``cc_abs``, ``cc_max`` and ``cc_norm`` (see
            :mod:`ssl_vivit.neural.scoring.repeats`).
        """
        seen, fact = self._seen[session], self.facts[session]
        sums = seen.sums(counts)
        scores = {"poisson": sums.loss(), "correlation": seen.moments(counts).correlation()}
        if fact.kind == "spikes":
            scores["bps"] = sums.bits_of_neurons()
            scores["bps_train_null"] = sums.bits_of_neurons(_means(fact))
        if (of_repeats := seen.of_repeats(counts)) is not None:
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
        """Return the mean scores of sessions by name; undefined scores are left out.

        Args:
            units: whether to score the neurons used in training or the held-out neurons.

        Returns:
            For each score of :meth:`neurons`, ``<score>_<session>`` is the mean over neurons, and
            ``<score>_mean`` is the mean of these means over sessions. ``bps`` and
            ``bps_train_null`` are for all neurons of a session together, as in the Neural Latents
            Benchmark; ``bps_units`` is the mean over neurons. ``silent_<session>`` is the number of
            neurons without any response, which are excluded from means. ``feve`` and ``cc_norm``
            are means over neurons with a fraction of explainable variance of at least 0.15;
            ``explainable_<session>`` is the number of these neurons.
        """
        by_session: dict[str, dict[str, float]] = {}
        numbers: dict[str, float] = {}
        for name in self._scored(units):
            scored = self._chosen(name, units)
            means = self._of_session(name, scored)
            by_session[name] = {score: float(value) for score, value in means.items()}
            numbers |= {f"{kind}_{name}": float(n) for kind, n in scored.counts().items()}
        found = {name: float(value) for name, value in _by_name(by_session).items()}
        return {name: value for name, value in (found | numbers).items() if np.isfinite(value)}

    def counted(self, units: Literal["trained", "held_out"] = "trained") -> dict[str, int]:
        """Return the number of neurons in each mean of :meth:`compute`, by the name of the score.

        For ``<score>_mean`` it is the number over all sessions.

        Args:
            units: see :meth:`compute`.
        """
        by_session = {}
        for name in self._scored(units):
            chosen = self._chosen(name, units)
            by_session[name] = {
                score: int(values.isfinite().sum())
                for score, values in self._used(name, chosen).items()
            }
            if "bps" in by_session[name]:
                by_session[name]["bps_units"] = by_session[name]["bps"]
                together = int(chosen.units.sum())
                by_session[name] |= {"bps": together, "bps_train_null": together}
        found: dict[str, int] = {}
        for name, numbers in by_session.items():
            for score, number in numbers.items():
                found[f"{score}_{name}"] = number
                found[f"{score}_mean"] = found.get(f"{score}_mean", 0) + number
        return found

    def resampled(
        self,
        counts: Mapping[str, Float[Tensor, "resamples movies"]],
        units: Literal["trained", "held_out"] = "trained",
    ) -> dict[str, Float[np.ndarray, " resamples"]]:
        """Return scores on resampled movies, by the names of :meth:`compute`; NaN if undefined.

        Sessions that are missing in ``counts`` are left out. If a session is missing, means over
        sessions are left out as well. Neurons with enough explainable variance are chosen again in
        each resample.

        Args:
            counts: dictionary from the name of a session to the number of times that each movie
                counts in each resample, (resamples, movies), in the order of :meth:`movies`.
            units: see :meth:`compute`.
        """
        scored = self._scored(units)
        by_session = {}
        for name in scored:
            if name in counts:
                chosen = self._chosen(name, units)
                # Compute resamples in groups, since each one needs memory for the scores of all neurons.
                parts = [
                    self._of_session(name, chosen, some) for some in counts[name].split(_AT_ONCE)
                ]
                by_session[name] = {
                    score: torch.cat([part[score] for part in parts]).numpy() for score in parts[0]
                }
        return _by_name(by_session, means=len(by_session) == len(scored))

    def _scored(self, units: str) -> list[str]:
        """Return the sessions with known responses and with neurons of the group ``units``."""
        return [
            name
            for name, fact in self.facts.items()
            if self._units(fact, units).any() and self._seen[name].sums().known.any()
        ]

    def _chosen(self, name: str, units: str) -> _Chosen:
        silent = self._seen[name].sums().responses == 0
        fev = self.neurons(name).get("fev")
        able = None if fev is None else fev >= LEAST_EXPLAINABLE
        return _Chosen(self._units(self.facts[name], units), silent, able)

    def _of_session(
        self, name: str, chosen: _Chosen, counts: Tensor | None = None
    ) -> dict[str, Float[Tensor, ...]]:
        """Return one session's scores by name, over the chosen neurons as in :meth:`compute`."""
        scores = self._used(name, chosen, counts)
        means = {key: _mean_of_defined(values) for key, values in scores.items()}
        if "bps" in scores:
            sums = self._seen[name].sums(counts)[chosen.units]
            means["bps_units"] = means["bps"]
            means["bps"] = sums.bits_together()
            means["bps_train_null"] = sums.bits_together(_means(self.facts[name])[chosen.units])
        return means

    def _used(
        self, name: str, chosen: _Chosen, counts: Tensor | None = None
    ) -> dict[str, Float[Tensor, "... used"]]:
        """Return the scores of each chosen neuron that is not silent.

        Scores that divide by explainable variance are NaN for neurons with too little of it.
        """
        scores = self.neurons(name, counts)
        if "fev" in scores:
            # Choose neurons again in each resample, so that no score divides by nearly 0.
            hidden = ~(scores["fev"] >= LEAST_EXPLAINABLE)
            scores |= {key: scores[key].masked_fill(hidden, torch.nan) for key in OF_EXPLAINABLE}
        used = chosen.units & ~chosen.silent
        return {key: values[..., used] for key, values in scores.items()}

    @staticmethod
    def _units(fact: SessionFacts, units: str) -> Tensor:
        held_out = torch.tensor([unit in set(fact.held_out_units) for unit in fact.unit_ids])
        return held_out if units == "held_out" else ~held_out


class _Chosen(NamedTuple):
    """Boolean masks (neurons,) that select the neurons of a session for mean scores.

    Attributes:
        units: neurons of the requested group.
        silent: neurons without any response.
        able: neurons with enough explainable variance. None without repeats.
    """

    units: Tensor
    silent: Tensor
    able: Tensor | None

    def counts(self) -> dict[str, int]:
        """Return the numbers of silent and of explainable neurons in the requested group."""
        found = {"silent": int((self.silent & self.units).sum())}
        if self.able is not None:
            found["explainable"] = int((self.able & self.units).sum())
        return found


def _means(fact: SessionFacts) -> Tensor:
    return torch.tensor(fact.mean_response, dtype=torch.float64)


def _by_name(by_session: Mapping[str, Mapping[str, Any]], *, means: bool = True) -> dict[str, Any]:
    """Return scores by the names ``<score>_<session>`` and ``<score>_mean``.

    ``<score>_mean`` is the mean over the sessions that have this score. If ``means`` is false, no
    means are returned.
    """
    kinds = dict.fromkeys(score for scores in by_session.values() for score in scores if means)
    over_sessions = {
        f"{score}_mean": _mean([own[score] for own in by_session.values() if score in own])
        for score in kinds
    }
    of_sessions = {
        f"{score}_{name}": value
        for name, scores in by_session.items()
        for score, value in scores.items()
    }
    return over_sessions | of_sessions


def _mean(values: Sequence[Any]) -> Any:
    """Return the elementwise mean of numbers or of arrays, ignoring values that are not finite."""
    stacked = torch.as_tensor(np.stack(values))
    return _mean_of_defined(stacked.movedim(0, -1)).numpy()


def _mean_of_defined(values: Float[Tensor, "... neurons"]) -> Float[Tensor, ...]:
    """Return the mean of the finite values over the last axis; NaN if no value is finite."""
    return values.masked_fill(~values.isfinite(), torch.nan).nanmean(-1)
