"""Write small sessions for tests, directly from the description of the layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (3, 4)


def folder(
    root: Path,
    name: str = "a",
    *,
    tiers: Sequence[str] = ("train",) * 5 + ("oracle", "oracle", "live_test_main", "none"),
    lengths: Sequence[int] = (12, 15),
    padded: int | None = None,
    neurons: int = 6,
    behaviour: int = 2,
    pupil: bool = True,
    movies: Sequence[int] | None = None,
    calcium: bool = False,
    settings: dict[str, Any] | None = None,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """Write a session of random numbers.

    Args:
        root: parent of the session's folder.
        name: name of the folder.
        tiers: tiers of the trials.
        lengths: lengths of the trials, repeated cyclically.
        padded: length to which trials are padded with NaN; None pads nothing and stores uint8 videos.
        neurons: number of neurons.
        behaviour: number of behaviour channels; 0 writes none.
        pupil: whether to write a pupil centre.
        movies: number of the movie of each trial; all differ if None.
        calcium: whether responses are real numbers instead of counts.
        settings: content of meta/session.json.
        size: size (H, W) of the videos.
        seed: seed of the responses; movies depend only on their number.
    """
    path = root / name
    rng = np.random.default_rng(seed)
    movies = range(len(tiers)) if movies is None else movies
    for trial, movie in enumerate(movies):
        frames = lengths[trial % len(lengths)]
        pixels = np.random.default_rng((7, movie)).integers(0, 256, (*size, frames), dtype=np.uint8)
        responses = rng.poisson(1.0, (neurons, frames)).astype(np.float32)
        arrays = {"videos": pixels, "responses": responses + calcium * rng.random(responses.shape)}
        if behaviour:
            scale = np.arange(1, behaviour + 1)[:, None]
            arrays["behavior"] = scale * (10 + rng.standard_normal((behaviour, frames)))
        if pupil:
            arrays["pupil_center"] = 3 + rng.standard_normal((2, frames))
        for part, array in arrays.items():
            if padded is not None:
                rest = np.full((*array.shape[:-1], padded - frames), np.nan)
                array = np.concatenate([array, rest], axis=-1)
            save(path / "data" / part / f"{trial}.npy", array)
    save(path / "meta" / "trials" / "tiers.npy", np.array(tiers))
    save(path / "meta" / "neurons" / "unit_ids.npy", 100 + np.arange(neurons))
    coordinates = np.arange(3.0 * neurons).reshape(neurons, 3)
    save(path / "meta" / "neurons" / "cell_motor_coordinates.npy", coordinates)
    if settings is not None:
        (path / "meta" / "session.json").write_text(json.dumps(settings))
    return path


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def change(path: Path, part: str, trial: int, edit: Any) -> None:
    """Replace a trial's array by the result of ``edit``."""
    file = path / "data" / part / f"{trial}.npy"
    np.save(file, edit(np.load(file)))
