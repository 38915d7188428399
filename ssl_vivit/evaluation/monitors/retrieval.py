"""Retrieval of the other view of a video among the views of all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class ViewFeatures(NamedTuple):
    """Features of some views of each video.

    Attributes:
        features: (n, views, d).
        keys: names of the videos.
        middle_frames: (n, views, C, H, W), each clip's middle frame as the encoder got it.
        frame_numbers: (n, views), the numbers of these frames in their videos.
    """

    features: Tensor
    keys: list[str]
    middle_frames: Tensor
    frame_numbers: Tensor


def view_rows(features: Float[Tensor, "b views d"], batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return the rows of :class:`ViewFeatures` for the videos of a batch, in float32.

    Args:
        features: of the batch.
        batch: with ``clips`` (b, views, C, T, H, W) and ``frames`` (b, views, T).
    """
    middle = batch["clips"].shape[3] // 2
    return {
        "features": features.float(),
        "middle_frames": batch["clips"][:, :, :, middle].float(),
        "frame_numbers": batch["frames"][:, :, middle],
    }


@torch.no_grad()
def collect(
    features: Callable[[dict[str, Any]], Float[Tensor, "b views d"]],
    batches: Iterable[dict[str, Any]],
) -> ViewFeatures:
    """Run a feature function over batches in one process.

    Args:
        features: of a batch.
        batches: as of :func:`view_rows`, with ``key``.
    """
    rows, keys = [], []
    for batch in batches:
        rows.append({n: value.cpu() for n, value in view_rows(features(batch), batch).items()})
        keys += batch["key"]
    joined = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
    return ViewFeatures(keys=keys, **joined)


def retrieval_top1(features: Float[Tensor, "n views d"]) -> float:
    """Share of clips of which the nearest other clip, by cosine, is a view of the same video.

    Args:
        features: (n, views, d) with n ≥ 2 videos and views ≥ 2.

    Returns:
        A share; :func:`chance` is what random features reach.
    """
    n, views, _ = features.shape
    z = F.normalize(rearrange(features, "n views d -> (n views) d"), dim=1)
    similarity = (z @ z.T).fill_diagonal_(-torch.inf)
    video = torch.arange(n * views) // views
    return (video[similarity.argmax(1)] == video).float().mean().item()


def chance(n: int, views: int) -> float:
    """Retrieval that random features reach: other views of a video over all other clips."""
    return (views - 1) / (n * views - 1)


def nearest_videos(
    features: Float[Tensor, "n d"], queries: Int[Tensor, " q"], count: int
) -> tuple[Int[Tensor, "q count"], Float[Tensor, "q count"]]:
    """The nearest other videos of each query, nearest first, and their cosine similarities."""
    z = F.normalize(features, dim=1)
    similarity = z[queries] @ z.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    found = similarity.topk(min(count, len(features) - 1), dim=1)
    return found.indices, found.values
