"""Choices of the command ``pack``, which ``--help`` shows without importing a video library."""

from __future__ import annotations

from typing import Literal

Storage = Literal["original", "h264", "jpeg"]
# The fastest to sample clips from by tests/benchmarks/bench_storage.py.
DEFAULT_STORAGE: Storage = "jpeg"

CLEVRER_FRAMES = 128
