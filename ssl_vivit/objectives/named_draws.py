"""Random numbers of an objective, drawn from the names of samples on any process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.randomness import Names, named_generator


def names_of_views(batch: dict[str, Any], purpose: str) -> list[Names] | None:
    """Names of a draw for every view of a batch of clips; None for a batch without names.

    Args:
        batch: with ``clips`` (b, views, …) and perhaps ``draw``, the names of each sample.
        purpose: what is drawn.

    Returns:
        (*names of the sample, purpose, view), in the order of ``b views -> (b views)``.

    Raises:
        ValueError: if there are names of another number of samples than clips.
    """
    if "draw" not in batch:
        return None
    count, views = batch["clips"].shape[:2]
    if len(batch["draw"]) != count:
        raise ValueError(
            f"the batch has {count} samples and names in draw for {len(batch['draw'])}; select both "
            "alike, or leave draw out"
        )
    return [(*names, purpose, view) for names in batch["draw"] for view in range(views)]


def standard_normal(names: Sequence[Names], *shape: int) -> Tensor:
    """Standard normal numbers on the CPU, (b, *shape), that depend on ``names`` as :func:`uniform`'s."""
    rows = [named_generator(*each).standard_normal(shape, dtype=np.float32) for each in names]
    return torch.from_numpy(np.stack(rows))


def uniform(names: Sequence[Names], count: int) -> Float[Tensor, "b count"]:
    """Numbers in [0, 1) on the CPU, a row for each of ``names`` that depends on them alone."""
    rows = [named_generator(*each).random(count, dtype=np.float32) for each in names]
    return torch.from_numpy(np.stack(rows))
