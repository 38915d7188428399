"""Random numbers that depend on names alone, never on a process's state or the order of calls."""

from __future__ import annotations

import hashlib

import numpy as np

# Of a sample's draws: seed, epoch and what tells the sample from all others of the epoch.
Names = tuple[int | str, ...]


def named_generator(*names: int | str) -> np.random.Generator:
    """Return a generator seeded by a sequence of names, such as (seed, epoch, sample key).

    The same names give the same numbers in every process and on every Python version: they are
    hashed with SHA-256 (``hash`` is salted per process) into the key of a Philox generator
    (Salmon et al. 2011), whose streams for different keys are independent.

    Args:
        names: integers and strings; ``1`` and ``"1"`` are different names.
    """
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    digest = hashlib.sha256(_bytes(text)).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def name_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone and is spread evenly over names."""
    return int.from_bytes(hashlib.sha256(_bytes(name)).digest()[:8], "little") / 2**64


def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of an epoch's samples, int64 (length,), which (seed, epoch) determine."""
    numbers = named_generator(seed, epoch, "order").random(length)
    return np.argsort(numbers, kind="stable")


def _bytes(text: str) -> bytes:
    # File names need not be UTF-8; Python holds their odd bytes as surrogates.
    return text.encode(errors="surrogateescape")
