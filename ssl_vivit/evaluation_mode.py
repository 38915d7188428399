"""Context manager that puts a module into evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside the block, then restore each submodule's mode."""
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        # module.train() would also change submodules that were in evaluation mode, such as frozen
        # norms.
        for part in training:
            part.training = True
