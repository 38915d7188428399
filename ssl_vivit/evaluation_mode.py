"""Context manager that puts a module into evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block; afterwards each part is in its own again."""
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        # Part by part: train() would reach parts that were in evaluation mode, frozen norms for one.
        for part in training:
            part.training = True
