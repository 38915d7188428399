"""All scores of a model of neurons, accumulated over batches and processes."""

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

# Below this share of explainable variance (Cadena et al. 2019), what is explained of it is noise.
LEAST_EXPLAINABLE = 0.15

# Scores that divide by what is explainable.
OF_EXPLAINABLE = ("feve", "cc_norm")

# Resamples whose scores are computed together.
_AT_ONCE = 100


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
        self._seen = {fact.name: TrialsByMovie(len(fact.unit_ids)) for fact in facts}

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
        if movies is None:
            self._seen[session].add(UNNAMED, Trials.of(rates, responses))
        for index, movie in enumerate(movies or ()):
            only = slice(index, index + 1)
            trial = Trials.of(rates[only], responses[only], repeats=True)
            self._seen[session].add(str(movie), trial)

    def over_processes(self, gather: Callable[[Any], list[Any]]) -> NeuralScores:
        """Return the scores of the trials of all processes, on each of them.

        Args:
            gather: gives every process's JSON value, in order of rank, on all processes
                (``ssl_vivit.training.processes.Host.gather``); all of them call this.
        """
        together = NeuralScores(list(self.facts.values()), drop_first=self.drop_first)
        for session, seen in self._seen.items():
            names = sorted({name for part in gather(sorted(seen.movies)) for name in part})
            # One by one: repeats are what is large.
            for name in names:
                own = seen.movies.get(name)
                for part in gather(own and own.packed()):
                    if part is not None:
                        together._seen[session].add(name, Trials.unpacked(part))
        return together

    def movies(self, session: str) -> list[str]:
        """Names of the movies that a session's trials showed, in the order of resampling."""
        return [name for name in self._seen[session].movies if name != UNNAMED]

    def neurons(
        self, session: str, counts: Float[Tensor, "... movies"] | None = None
    ) -> dict[str, Float[Tensor, "... neurons"]]:
        """Scores of each neuron of a session, NaN where they are not defined.

        Args:
            session: whose neurons.
            counts: how many times the trials of each of :meth:`movies` count; None is once.

        Returns:
            ``poisson``, ``correlation``; for counts ``bps`` and ``bps_train_null``; where movies
            repeat ``correlation_to_average``, ``oracle`` (jackknife), ``fev``, ``feve``,
            ``cc_abs``, ``cc_max`` and ``cc_norm``. ``feve`` and ``cc_norm`` are of what repeats have
            in common (:mod:`ssl_vivit.neural.scoring.repeats`).
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
        numbers: dict[str, float] = {}
        for name in self._scored(units):
            scored = self._chosen(name, units)
            means = self._of_session(name, scored)
            by_session[name] = {score: float(value) for score, value in means.items()}
            numbers |= {f"{kind}_{name}": float(n) for kind, n in scored.counts().items()}
        found = {name: float(value) for name, value in _by_name(by_session).items()}
        return {name: value for name, value in (found | numbers).items() if np.isfinite(value)}

    def counted(self, units: Literal["trained", "held_out"] = "trained") -> dict[str, int]:
        """Numbers of neurons that the means of :meth:`compute` are over, by their names.

        ``<score>_mean`` counts the neurons of all sessions.

        Args:
            units: which neurons.
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
        """Scores on resampled movies, by the names of :meth:`compute`; NaN where not defined.

        Sessions that ``counts`` does not name are left out; so are means over sessions, then.
        Neurons with enough explainable variance are chosen in each resample anew.

        Args:
            counts: session → how many times each of :meth:`movies` counts in each resample.
            units: which neurons.
        """
        scored = self._scored(units)
        by_session = {}
        for name in scored:
            if name in counts:
                chosen = self._chosen(name, units)
                # Some at a time: each takes the memory of all neurons' scores.
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
        """Means over the chosen neurons."""
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
        """Scores of the neurons that means are over, NaN where one does not count for a score."""
        scores = self.neurons(name, counts)
        if "fev" in scores:
            # In each resample anew, so that no score divides by next to nothing.
            hidden = ~(scores["fev"] >= LEAST_EXPLAINABLE)
            scores |= {key: scores[key].masked_fill(hidden, torch.nan) for key in OF_EXPLAINABLE}
        used = chosen.units & ~chosen.silent
        return {key: values[..., used] for key, values in scores.items()}

    @staticmethod
    def _units(fact: SessionFacts, units: str) -> Tensor:
        held_out = torch.tensor([unit in set(fact.held_out_units) for unit in fact.unit_ids])
        return held_out if units == "held_out" else ~held_out


class _Chosen(NamedTuple):
    """Neurons of a session that enter its means: bool (neurons).

    Attributes:
        units: those asked for.
        silent: those without any response.
        able: those with enough explainable variance; None without repeats.
    """

    units: Tensor
    silent: Tensor
    able: Tensor | None

    def counts(self) -> dict[str, int]:
        """Numbers of silent and of explainable neurons among those asked for."""
        found = {"silent": int((self.silent & self.units).sum())}
        if self.able is not None:
            found["explainable"] = int((self.able & self.units).sum())
        return found


def _means(fact: SessionFacts) -> Tensor:
    return torch.tensor(fact.mean_response, dtype=torch.float64)


def _by_name(by_session: Mapping[str, Mapping[str, Any]], *, means: bool = True) -> dict[str, Any]:
    """``<score>_<session>``, and ``<score>_mean`` over the sessions that have the score."""
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
    """Mean over numbers, or over arrays entry by entry; of those that are defined."""
    stacked = torch.as_tensor(np.stack(values))
    return _mean_of_defined(stacked.movedim(0, -1)).numpy()


def _mean_of_defined(values: Float[Tensor, "... neurons"]) -> Float[Tensor, ...]:
    """Return the mean of the defined values; NaN where there are none."""
    return values.masked_fill(~values.isfinite(), torch.nan).nanmean(-1)
