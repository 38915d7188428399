"""Measures of the distribution of embeddings on the sphere."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared distance of positive pairs (Wang & Isola 2020, Sec. 4.1); 0 is best.

    Args:
        first, second: (n, d) embeddings of length 1; row i of both is a pair.
    """
    return (first - second).square().sum(1).mean()


def uniformity(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """log mean exp(−2 · squared distance) over pairs (Wang & Isola 2020); lower is more uniform.

    Args:
        embeddings: (n, d) of length 1, n ≥ 2.
    """
    similarity = embeddings @ embeddings.T
    others = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    distances = (2 - 2 * similarity).masked_fill(~others, torch.inf)
    pairs = len(embeddings) * (len(embeddings) - 1)
    return torch.logsumexp(-2 * distances.flatten(), 0) - math.log(pairs)


def effective_rank(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007, Sec. 2).

    Between 1 (all embeddings on one line) and min(n, d); NaN where an embedding is not finite.
    """
    # Autocast would halve the product's precision, in which no GPU's solver works.
    with torch.autocast(embeddings.device.type, enabled=False):
        gram = (
            embeddings.T @ embeddings
            if embeddings.shape[0] > embeddings.shape[1]
            else (embeddings @ embeddings.T)
        )
    # The solver raises on what is not finite; the loop's own refusal names the batch.
    finite = gram.isfinite().all()
    gram = torch.where(finite, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return torch.where(finite, torch.special.entr(share).sum().exp(), torch.nan)
