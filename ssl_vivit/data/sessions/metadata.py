"""Read and check the files below ``meta`` in a session's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssl_vivit.data.sessions.layout import (
    COORDINATES,
    SETTINGS,
    TIER_NAMES,
    TIERS,
    UNIT_IDS,
    VIDEOS,
    tier_of,
)
from ssl_vivit.data.sessions.scan import map_array
from ssl_vivit.errors import SessionError
from ssl_vivit.files import read_whole
from ssl_vivit.nested_text import read_json_text

FRAMES_PER_SECOND = 30.0


def read_unit_ids(session: Path) -> np.ndarray:
    """Return the ids of the neurons, int64 (N,), which must be unique."""
    path = session / UNIT_IDS
    ids = _read(path)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise SessionError(
            f"{path} contains {ids.dtype} of shape {ids.shape}; it must contain one integer for "
            "each neuron"
        )
    if len(np.unique(ids)) < len(ids):
        raise SessionError(f"{path} contains an id more than once; ids must be unique")
    return ids.astype(np.int64)


def read_coordinates(session: Path, neurons: int) -> np.ndarray | None:
    """Return cortical coordinates, float64 (N, 3); None if absent or equal for all neurons."""
    path = session / COORDINATES
    if not path.exists():
        return None
    coordinates = _read(path)
    if coordinates.shape != (neurons, 3):
        raise SessionError(
            f"{path} has shape {coordinates.shape}; it must have shape {(neurons, 3)}, x, y and z "
            "of each neuron; fix or delete the file"
        )
    if not np.isfinite(coordinates).all():
        raise SessionError(
            f"{path} contains values that are not finite; delete the file if positions are unknown"
        )
    return None if (coordinates == coordinates[:1]).all() else coordinates.astype(np.float64)


def read_settings(session: Path) -> tuple[float, str | None]:
    """Return frames per second (default 30), and the kind of responses (None if not given)."""
    path = session / SETTINGS
    if not path.exists():
        return FRAMES_PER_SECOND, None
    try:
        settings = read_json_text(read_whole(path))
    except (OSError, ValueError) as error:
        raise SessionError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise SessionError(f"{path} must contain an object, such as {{'frames_per_second': 30.0}}")
    rate, kind = settings.get("frames_per_second", FRAMES_PER_SECOND), settings.get("responses")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e5:
        raise SessionError(
            f"{path}: frames_per_second is {rate!r}; it must be a number above 0 and below 100,000"
        )
    if kind not in (None, "spikes", "calcium"):
        raise SessionError(f"{path}: responses is {kind!r}; it must be 'spikes' or 'calcium'")
    return float(rate), kind


def read_tier_names(session: Path) -> np.ndarray:
    """Return the tier of each trial as written in tiers.npy, str (trials,)."""
    path = session / TIER_NAMES
    names = _read(path)
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    if names.ndim != 1 or names.dtype.kind != "U":
        raise SessionError(
            f"{path} contains {names.dtype} of shape {names.shape}; it must contain one tier name "
            "for each trial"
        )
    extra = [
        int(file.stem)
        for file in (session / "data" / VIDEOS).glob("*.npy")
        if file.stem.isdecimal() and int(file.stem) >= len(names)
    ]
    if extra:
        raise SessionError(
            f"{path} has tiers of {len(names)} trials, but data/{VIDEOS} contains trial "
            f"{max(extra)}; set a tier for every trial"
        )
    return names


def trials_by_tier(session: Path, names: np.ndarray) -> dict[str, np.ndarray]:
    """Return a dictionary from "train", "validation" and "test" to the numbers of their trials.

    Args:
        session: the session's folder, for messages.
        names: tier of each trial as written in tiers.npy.

    Raises:
        SessionError: if the name of a tier is unknown, or no trial has the tier "train".
    """
    try:
        known = {name: tier_of(str(name)) for name in np.unique(names)}
    except SessionError as error:
        raise SessionError(f"session {session}, {TIER_NAMES}: {error}") from None
    tiers = np.array([known[name] or "" for name in names])
    if "train" not in tiers:
        raise SessionError(
            f"session {session} has no trial with tier 'train' in tiers.npy; it needs at least one"
        )
    return {tier: np.flatnonzero(tiers == tier) for tier in TIERS}


def _read(path: Path) -> np.ndarray:
    return np.array(map_array(path, "every session needs this file"))
