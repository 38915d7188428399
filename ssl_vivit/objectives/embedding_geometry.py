"""Measures of the distribution of embeddings on the sphere."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the mean squared distance of positive pairs (Wang & Isola 2020, Sec. 4.1); 0 is best.

    Args:
        first: (n, d) embeddings of length 1.
        second: (n, d) embeddings of length 1; row i forms a pair with row i of ``first``.
    """
    return (first - second).square().sum(1).mean()


def uniformity(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return the log of the mean of exp(−2 · squared distance) over all pairs (Wang & Isola 2020).

    Lower values are more uniform.

    Args:
        embeddings: (n, d) embeddings of length 1, with n ≥ 2.
    """
    similarity = embeddings @ embeddings.T
    others = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    distances = (2 - 2 * similarity).masked_fill(~others, torch.inf)
    pairs = len(embeddings) * (len(embeddings) - 1)
    return torch.logsumexp(-2 * distances.flatten(), 0) - math.log(pairs)


def effective_rank(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of the normalised singular values (Roy & Vetterli 2007, Sec. 2).

    The rank lies between 1 (all embeddings on one line) and min(n, d). NaN if an embedding is not finite.
    """
    # Disable autocast, since solvers on GPUs do not support half precision.
    with torch.autocast(embeddings.device.type, enabled=False):
        gram = (
            embeddings.T @ embeddings
            if embeddings.shape[0] > embeddings.shape[1]
            else (embeddings @ embeddings.T)
        )
    # The solver would raise for values that are not finite. Return NaN instead, since the training
    # loop then raises an error that names the batch.
    finite = gram.isfinite().all()
    gram = torch.where(finite, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return torch.where(finite, torch.special.entr(share).sum().exp(), torch.nan)
