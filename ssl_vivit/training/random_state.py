"""Save and restore the random generators that training draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_process(seed: int, step: int, rank: int) -> None:
    """Seed Python's, NumPy's and torch's generators independently from (seed, step, rank)."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1] & 0xFFFFFFFF))  # noqa: NPY002 -- the generator of users' own code
    torch.manual_seed(int(words[2]))
    if torch.cuda.is_available():
        torch.cuda.manual_seed(int(words[3]))


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of torch's generators (tensors), Python's and NumPy's (JSON values)."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss = random.getstate()
    legacy: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]  # noqa: NPY002
    legacy["state"] = {"key": legacy["state"]["key"].tolist(), "pos": int(legacy["state"]["pos"])}
    return tensors, {"python": [version, list(words), gauss], "numpy": legacy}


def restore(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Restore the states of torch's, Python's and NumPy's random generators.

    Args:
        tensors: torch's states, as :func:`capture` returned them.
        values: Python's and NumPy's states, as :func:`capture` returned them, or after saving and
            loading them as JSON.
    """
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    state = dict(values["numpy"])
    state["state"] = {
        "key": np.asarray(state["state"]["key"], dtype=np.uint32),
        "pos": state["state"]["pos"],
    }
    np.random.set_state(state)  # noqa: NPY002


@contextmanager
def preserved() -> Iterator[None]:
    """Restore the states of all random generators after the block."""
    state = capture()
    try:
        yield
    finally:
        restore(*state)
