"""Retrieval of the other view of a video among the views of all videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class ViewFeatures(NamedTuple):
    """Features of the views of n videos.

    Attributes:
        features: (n, views, d).
        keys: names of the videos.
        middle_frames: (n, views, C, H, W), middle frame of each view, normalised for the encoder.
        frame_numbers: (n, views), numbers of the middle frames in their videos.
    """

    features: Tensor
    keys: list[str]
    middle_frames: Tensor
    frame_numbers: Tensor


def view_rows(features: Float[Tensor, "b views d"], batch: dict[str, Any]) -> dict[str, Tensor]:
    """Return features, middle frames and frame numbers of the b videos of a batch.

    The result is a dictionary of tensors (b, views, …). Its keys are the tensor attributes of
    :class:`ViewFeatures`.

    Args:
        features: features of each view, (b, views, d); converted to float32.
        batch: a batch with ``clips`` (b, views, C, T, H, W) and ``frames`` (b, views, T).
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
    """Compute the features of the views of all videos in one process.

    Args:
        features: function from a batch to features (b, views, d).
        batches: batches with ``clips`` (b, views, C, T, H, W), ``frames`` (b, views, T) and
            ``key``, the names of the videos.
    """
    rows, keys = [], []
    for batch in batches:
        rows.append({n: value.cpu() for n, value in view_rows(features(batch), batch).items()})
        keys += batch["key"]
    joined = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
    return ViewFeatures(keys=keys, **joined)


def retrieval_top1(features: Float[Tensor, "n views d"]) -> float:
    """Return the fraction of views whose nearest other view, by cosine, is of the same video.

    Args:
        features: (n, views, d) with n ≥ 2 videos and views ≥ 2.

    Returns:
        A fraction; :func:`chance` is its expectation for random features.
    """
    n, views, _ = features.shape
    z = F.normalize(rearrange(features, "n views d -> (n views) d"), dim=1)
    similarity = (z @ z.T).fill_diagonal_(-torch.inf)
    video = torch.arange(n * views) // views
    return (video[similarity.argmax(1)] == video).float().mean().item()


def chance(n: int, views: int) -> float:
    """Return the chance level of retrieval among n videos with ``views`` views each.

    For a given view, it is the fraction of all other views that are of the same video.
    """
    return (views - 1) / (n * views - 1)


def nearest_videos(
    features: Float[Tensor, "n d"], queries: Int[Tensor, " q"], count: int
) -> tuple[Int[Tensor, "q count"], Float[Tensor, "q count"]]:
    """Find the videos with the features most similar to those of query videos.

    Args:
        features: one vector for each of n videos, (n, d).
        queries: indices of the q query videos.
        count: number of videos to find for each query; at most n − 1 are found.

    Returns:
        Indices (q, count) of the found videos, the most similar first, and their cosine
        similarities to the query (q, count). A query does not find itself.
    """
    z = F.normalize(features, dim=1)
    similarity = z[queries] @ z.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    found = similarity.topk(min(count, len(features) - 1), dim=1)
    return found.indices, found.values
