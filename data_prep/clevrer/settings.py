"""Choices of the command ``pack``, in a module that imports no video library for ``--help``."""

from __future__ import annotations

from typing import Literal

Storage = Literal["original", "h264", "jpeg"]
# Clips are sampled fastest from this storage, see tests/benchmarks/bench_storage.py.
DEFAULT_STORAGE: Storage = "jpeg"

CLEVRER_FRAMES = 128
