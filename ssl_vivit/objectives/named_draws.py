"""Random numbers of objectives that depend on the names of samples, not on the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.randomness import Names, named_generator


def names_of_views(batch: dict[str, Any], purpose: str) -> list[Names] | None:
    """Return the names that seed a random draw for each view of a batch of clips.

    Args:
        batch: batch with ``clips`` (b, views, …). Optionally it has ``draw``, a tuple of names for
            each of the b samples, such as (seed, epoch, key of the sample).
        purpose: what the random numbers are for, such as ``mask``.

    Returns:
        A tuple (*names of the sample, purpose, index of the view) for each of the b · views clips:
        first all views of the first sample, then those of the next. None if the batch has no
        ``draw``.

    Raises:
        ValueError: if the numbers of samples in ``draw`` and ``clips`` differ.
    """
    if "draw" not in batch:
        return None
    count, views = batch["clips"].shape[:2]
    if len(batch["draw"]) != count:
        raise ValueError(
            f"the batch has {count} samples, but draw has names of {len(batch['draw'])}; select "
            "the same samples in both, or remove draw"
        )
    return [(*names, purpose, view) for names in batch["draw"] for view in range(views)]


def standard_normal(names: Sequence[Names], *shape: int) -> Tensor:
    """Return standard normal numbers (len(names), *shape) on the CPU.

    ``names[i]`` is a tuple that seeds element i of the first axis.
    """
    rows = [named_generator(*each).standard_normal(shape, dtype=np.float32) for each in names]
    return torch.from_numpy(np.stack(rows))


def uniform(names: Sequence[Names], count: int) -> Float[Tensor, "b count"]:
    """Return uniform numbers in [0, 1), shape (len(names), count), on the CPU.

    ``names[i]`` is a tuple that seeds row i.
    """
    rows = [named_generator(*each).random(count, dtype=np.float32) for each in names]
    return torch.from_numpy(np.stack(rows))
