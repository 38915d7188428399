"""Comparison of predicted and recorded curves over movies, with shuffled controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.chosen_units import ChosenUnits
from ssl_vivit.evaluation.neurons.scored_tiers import scored_tiers
from ssl_vivit.evaluation.tuning.drift import drift_direction, onset_of

Curves = Float[np.ndarray, "n k"]
# With two movies every correlation is 1 or −1.
LEAST_MOVIES = 3


class Agreement(NamedTuple):
    """Correlations between curves of n units. A curve has the mean responses to k movies.

    Attributes:
        model: (n,), correlation of the predicted and the recorded curve.
        training: (n,), correlation of two recorded curves, the mean over training trials and the
            mean over trials outside training; NaN without training trials.
        reliability: (n,), correlation of the recorded curves of two random halves of the trials,
            averaged over splits.
        other_units: (shuffles,), correlation of each unit's recorded curve with the predicted
            curve of another unit, averaged over units.
        other_movies: (shuffles,), correlation of each unit's recorded curve with its predicted
            curve after permuting the movies of the latter, averaged over units.
    """

    model: Float[np.ndarray, " n"]
    training: Float[np.ndarray, " n"]
    reliability: Float[np.ndarray, " n"]
    other_units: Float[np.ndarray, " shuffles"]
    other_movies: Float[np.ndarray, " shuffles"]

    def to_json(self) -> dict[str, Any]:
        """Return mean and median of correlations over units; mean and 95 % range of controls."""
        told: dict[str, Any] = {"units": len(self.model)}
        for name in ("model", "training", "reliability"):
            values = getattr(self, name)
            values = values[np.isfinite(values)]
            if len(values):
                told[name] = {"mean": float(values.mean()), "median": float(np.median(values))}
        for name in ("other_units", "other_movies"):
            values = getattr(self, name)
            if np.isfinite(values).any():
                low, high = np.nanpercentile(values, [2.5, 97.5]).tolist()
                told[name] = {"mean": float(np.nanmean(values)), "range": [low, high]}
        return told


def compare_curves(
    predicted: Curves,
    recorded: Sequence[Float[np.ndarray, "trials n"]],
    training: Curves | None = None,
    *,
    shuffles: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Correlate predicted and recorded curves over movies for each unit.

    Two controls are computed. The first pairs each recorded curve with the predicted curve of
    another unit, which keeps only the structure over movies that all units share. The second
    permutes the movies of the predicted curves, equally for all units, which keeps only the
    distribution of values.

    Args:
        predicted: (n, k) mean responses of the model.
        recorded: for each movie, mean responses (trials, n) in its trials; NaN where unknown.
        training: (n, k) mean responses in training trials of these movies.
        shuffles: number of shuffles of each control, and of splits of the trials in halves.
        seed: seed of the shuffles.
    """
    rng = np.random.default_rng(seed)
    means = _means(recorded)
    count, movies = predicted.shape
    nothing = np.full(count, np.nan)
    units, exchanged, halves = [], [], []
    for _ in range(shuffles):
        # A random cycle through all units, so that no unit is mapped to itself.
        order = rng.permutation(count)
        other = np.empty(count, int)
        other[order] = np.roll(order, 1)
        units.append(_mean(correlation(predicted[other], means)) if count > 1 else np.nan)
        exchanged.append(_mean(correlation(predicted[:, rng.permutation(movies)], means)))
        halves.append(_halves(recorded, rng))
    return Agreement(
        correlation(predicted, means),
        nothing if training is None else correlation(training, means),
        _nanmean(np.array(halves), 0) if halves else nothing,
        np.array(units),
        np.array(exchanged),
    )


def correlation(one: Curves, two: Curves) -> Float[np.ndarray, " n"]:
    """Return Pearson's r of each row of two arrays; NaN for rows that are constant or have NaN."""
    a, b = (each - each.mean(1, keepdims=True) for each in (one, two))
    product = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    return np.divide((a * b).sum(1), product, out=np.full(len(a), np.nan), where=product > 1e-12)


def _halves(recorded: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Correlate recorded curves of two random halves of trials; NaN if a movie has one trial."""
    if min(map(len, recorded)) < 2:
        return np.full(recorded[0].shape[1], np.nan)
    mixed = [trials[rng.permutation(len(trials))] for trials in recorded]
    first = _means([trials[: len(trials) // 2] for trials in mixed])
    return correlation(first, _means([trials[len(trials) // 2 :] for trials in mixed]))


def _means(recorded: Sequence[np.ndarray]) -> Curves:
    return np.stack([_nanmean(trials, 0) for trials in recorded], 1)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis)
    count = known.sum(axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _mean(values: np.ndarray) -> float:
    return float(_nanmean(values, 0))


class RecordedCurves(NamedTuple):
    """Mean responses to the movies of a session after the onset of the stimulus.

    Attributes:
        directions: (k,), drift directions in degrees, ascending; NaN for movies that are not
            gratings.
        predicted: (n, k), responses of the model, with behaviour at its mean.
        recorded: for each movie, responses (trials, n) in trials outside training.
        training: (n, k), means over the training trials; None if a movie has no training trial.
        tiers: tiers of the trials in ``recorded``.
    """

    directions: Float[np.ndarray, " k"]
    predicted: Curves
    recorded: list[Float[np.ndarray, "trials n"]]
    training: Curves | None
    tiers: tuple[str, ...]


def recorded_curves(
    chosen: ChosenUnits, sessions: Sessions, tiers: Sequence[str] | None = None
) -> RecordedCurves | None:
    """Read recorded responses to each movie, and predict them.

    The onset is the first frame that is not uniform. Predictions use the mean behaviour, so that
    they depend only on the movie.

    Args:
        chosen: the units.
        sessions: the opened recording, from :meth:`ChosenUnits.opened`.
        tiers: names of tiers in tiers.npy; None takes all tiers that were not used for training.

    Returns:
        The curves, or None if the trials show fewer than three movies.

    Raises:
        SessionError: if a tier has no responses.
    """
    (session,) = sessions.sessions
    own = list(chosen.places)

    def by_movie(trials: Sequence[int]) -> dict[int, list[int]]:
        grouped: dict[int, list[int]] = {}
        for trial in trials:
            grouped.setdefault(int(session.contents[trial]), []).append(trial)
        return grouped

    found = scored_tiers(sessions, tiers)
    held_out = by_movie([trial for part in found.values() for _, trial in part.trials])
    if len(held_out) < LEAST_MOVIES:
        return None
    videos = {movie: session.video(trials[0]) for movie, trials in held_out.items()}
    onsets = {movie: onset_of(video) for movie, video in videos.items()}
    towards = {movie: drift_direction(video[onsets[movie] :]) for movie, video in videos.items()}
    order = sorted(videos, key=lambda movie: (np.nan_to_num(towards[movie], nan=np.inf), movie))

    def responses(grouped: Mapping[int, list[int]], movie: int) -> np.ndarray:
        return np.stack(
            [
                _nanmean(session.responses(trial)[onsets[movie] :, own].astype(float), 0)
                for trial in grouped[movie]
            ]
        )

    predicted = [
        chosen.predictor.predict([videos[movie]], session=session.name)[0][onsets[movie] :, own]
        .double().mean(0).cpu().numpy()
        for movie in order
    ]  # fmt: skip
    trained = by_movie(chosen.facts.split["train"])
    training = None
    if trained.keys() >= held_out.keys():
        training = _means([responses(trained, movie) for movie in order])
    return RecordedCurves(
        np.array([towards[movie] for movie in order]),
        np.stack(predicted, 1),
        [responses(held_out, movie) for movie in order],
        training,
        tuple(found),
    )
