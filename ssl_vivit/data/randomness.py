"""Random numbers that depend only on names, not on the state of a process or the order of calls."""

from __future__ import annotations

import hashlib

import numpy as np

# Names of a sample's random draws: seed, epoch, and values that identify the sample in the epoch.
Names = tuple[int | str, ...]


def named_generator(*names: int | str) -> np.random.Generator:
    """Return a generator seeded by a sequence of names, such as (seed, epoch, sample key).

    Equal names give equal numbers in every process and every Python version. The names are hashed
    with SHA-256, since ``hash`` is salted for each process. The digest is the key of a Philox
    generator (Salmon et al. 2011), whose streams for different keys are independent.

    Args:
        names: integers and strings. ``1`` and ``"1"`` are different names.
    """
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    digest = hashlib.sha256(_bytes(text)).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def name_fraction(name: str) -> float:
    """Return a number in [0, 1) that depends only on the name and is uniform over names."""
    return int.from_bytes(hashlib.sha256(_bytes(name)).digest()[:8], "little") / 2**64


def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return a permutation of an epoch's samples, int64 (length,), given by seed and epoch."""
    numbers = named_generator(seed, epoch, "order").random(length)
    return np.argsort(numbers, kind="stable")


def _bytes(text: str) -> bytes:
    # File names are not always UTF-8; Python represents their invalid bytes as surrogates.
    return text.encode(errors="surrogateescape")
