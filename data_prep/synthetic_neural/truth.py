"""Ground truth of a simulated session: receptive fields, settings and the best possible scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.torch import save_file

from data_prep.synthetic_neural.population import Filters, pixel_centres
from data_prep.synthetic_neural.stimuli import Movie
from ssl_vivit.errors import DataError
from ssl_vivit.files import write_json
from ssl_vivit.nested_text import read_json_text

TENSORS = "meta/ground_truth.safetensors"
FACTS = "meta/ground_truth.json"


class Ceiling:
    """Scores of the true rates, an upper bound for models."""

    def __init__(self) -> None:
        self._rates: list[np.ndarray] = []
        self._responses: list[np.ndarray] = []

    def add(self, rates: Float[np.ndarray, "t n"], responses: Float[np.ndarray, "t n"]) -> None:
        """Add a trial to the scores.

        Args:
            rates: (T, N), true expected responses per frame.
            responses: (T, N), simulated responses.
        """
        self._rates.append(rates)
        self._responses.append(responses)

    def values(self, counts: bool) -> dict[str, Any]:
        """Return the scores over all trials as JSON values; NaN becomes None.

        Args:
            counts: True if responses are spike counts; a calcium signal has no bits per spike.

        Returns:
            A dictionary. ``correlation`` is the correlation of true rate and response, averaged
            over neurons. ``signal_share`` is the fraction of the responses' variance that is
            variance of the true rate, averaged over neurons. ``bits_per_spike`` is the score of the
            true rates of all neurons together, relative to a model that predicts each neuron's
            mean rate on these trials (Pei et al. 2021, Neural Latents Benchmark, equation 3).
            ``neurons`` contains a list with one value per neuron for each of these scores.
        """
        rates = np.concatenate(self._rates).astype(np.float64)
        responses = np.concatenate(self._responses).astype(np.float64)
        signal = rates.var(0)
        noise = rates.mean(0) if counts else np.maximum(responses.var(0) - signal, 0)
        apart = (rates - rates.mean(0)) * (responses - responses.mean(0))
        scale = rates.std(0) * responses.std(0)
        neurons = {
            "correlation": _ratio(apart.mean(0), scale),
            "signal_share": _ratio(signal, signal + noise),
        }
        values = {name: float(each[~np.isnan(each)].mean()) for name, each in neurons.items()}
        if counts:
            spikes = responses.sum(0)
            null = responses.mean(0)
            # A neuron without spikes has no log term; its gain is minus its expected spikes.
            log_ratio = np.log(rates / np.where(null > 0, null, 1))
            gain = (responses * log_ratio).sum(0) - (rates - null).sum(0)
            neurons["bits_per_spike"] = _ratio(gain, spikes * np.log(2))
            values["bits_per_spike"] = float(gain.sum() / (max(spikes.sum(), 1) * np.log(2)))
        listed = {
            name: [None if np.isnan(x) else round(float(x), 6) for x in each]
            for name, each in neurons.items()
        }
        return {**{name: round(value, 6) for name, value in values.items()}, "neurons": listed}


def write_ground_truth(
    folder: Path,
    filters: Filters,
    settings: dict[str, Any],
    movies: Sequence[Movie],
    ceiling: Ceiling,
) -> None:
    """Save the parameters of the neurons, settings and scores in a session's folder.

    Args:
        folder: the session's folder.
        filters: filters of the neurons.
        settings: settings of the simulation.
        movies: movie of each trial.
        ceiling: scores of the true rates on the test trials.
    """
    tensors = {
        **filters.population.tensors(),
        "receptive_field": filters.even,
        "receptive_field_odd": filters.odd,
        "surround_field": filters.around,
        "fast_kernel": filters.fast,
        "slow_kernel": filters.slow,
    }
    height, width = filters.population.size
    facts = {
        "settings": settings,
        "units": {
            "center": "x, y in [-1, 1]; -1 and 1 are the outer edges of the frame",
            "sigma": "pixels, along and across the preferred motion",
            "direction": "radians, of the preferred motion; 0 is to the right, pi/2 downwards",
            "spatial_frequency": "cycles a pixel",
            "speed": "1/s",
            "mean_rate": "expected responses a frame",
        },
        "pixel_centres": {
            axis: [round(float(place), 6) for place in pixel_centres(length)]
            for axis, length in (("x", width), ("y", height))
        },
        "movies": [movie.number for movie in movies],
        "textures": sorted({movie.number for movie in movies if not movie.clips}),
        "ceiling": ceiling.values(counts=not settings["calcium"]),
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / TENSORS)
    write_json(folder / FACTS, facts)


def settings_of(session: str | Path) -> dict[str, Any]:
    """Return the settings that a session was simulated with.

    Raises:
        DataError: if the folder is not a simulated session.
    """
    return _facts(session)["settings"]


def summary(session: str | Path) -> str:
    """Summarise a simulated session in two lines.

    Raises:
        DataError: if the folder is not a simulated session.
    """
    facts = _facts(session)
    settings, ceiling = facts["settings"], facts["ceiling"]
    scores = f"correlation {ceiling['correlation']:.3f}"
    if "bits_per_spike" in ceiling:
        scores = f"{ceiling['bits_per_spike']:.3f} bits per spike, {scores}"
    return (
        f"{session}: {settings['neurons']} neurons, {len(facts['movies'])} trials of "
        f"{settings['seconds']:g} s at {settings['frames_per_second']:g} Hz\n"
        f"scores of the true rates on live_test_main, an upper bound for models: {scores}"
    )


def _facts(session: str | Path) -> dict[str, Any]:
    try:
        facts = read_json_text((Path(session) / FACTS).read_text())
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict) or not {"settings", "ceiling", "movies"} <= facts.keys():
        raise DataError(
            f"--out {session} exists and is not a simulated session; choose another --out"
        )
    return facts


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
