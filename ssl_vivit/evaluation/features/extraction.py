"""Frozen features of clips: of encoders, and of pixels to compare them with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.errors import RunError
from ssl_vivit.evaluation.features.config import Summary
from ssl_vivit.evaluation_mode import evaluation_mode

if TYPE_CHECKING:
    from ssl_vivit.encoders import ViViT


class BatchFeatures(NamedTuple):
    """Clips as vectors and as tokens.

    Attributes:
        vectors: (b, d).
        tokens: (b, t, n, d), or None where they were not asked for.
    """

    vectors: Tensor
    tokens: Tensor | None


class FeatureExtractor(Protocol):
    """Function from clips to their features."""

    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool) -> BatchFeatures: ...


class EncoderFeatures:
    """An encoder's features, in eval mode, without gradients, in bf16 on GPUs that have it.

    Args:
        encoder: stays where it is and as it is.
        summary: a clip's vector: ``pooled``, the ``mean`` of its patch tokens, or ``both`` side by
            side. What an objective trained is in one or the other.
    """

    def __init__(self, encoder: ViViT, summary: Summary = "both") -> None:
        self.encoder, self.summary = encoder, summary

    @torch.no_grad()
    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool = False) -> BatchFeatures:
        """Features in float32: vectors (b, d or 2 d), tokens (b, t, n, d)."""
        wanted = tokens or self.summary != "pooled"
        with evaluation_mode(self.encoder), half_precision(clips.device):
            out = self.encoder(clips, tokens=wanted)
        parts = []
        if self.summary != "mean":
            parts.append(out.pooled.float())
        if self.summary != "pooled":
            parts.append(out.tokens.float().mean((1, 2)))
        return BatchFeatures(torch.cat(parts, 1), out.tokens.float() if tokens else None)


class PixelFeatures:
    """Clips averaged to a few numbers, as a baseline without any encoder.

    Args:
        grid: (t, h, w) that a clip is averaged to, at most its own.
    """

    def __init__(self, grid: tuple[int, int, int] = (4, 8, 12)) -> None:
        self.grid = grid

    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool = False) -> BatchFeatures:
        """Vectors (b, t·h·w·c); as tokens one frame each, (b, t, 1, h·w·c)."""
        return _averaged(clips.float(), self.grid, tokens)


class MotionEnergyFeatures:
    """Absolute differences of successive frames, averaged like pixels: where something moves.

    A baseline without any encoder that knows motion, which averaged pixels hardly hold.

    Args:
        grid: (t, h, w) that differences are averaged to, at most their own.
    """

    def __init__(self, grid: tuple[int, int, int] = (4, 8, 12)) -> None:
        self.grid = grid

    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool = False) -> BatchFeatures:
        """Vectors (b, t·h·w); as tokens one time step each, (b, t, 1, h·w). One frame gives zeros."""
        change = clips.float().diff(dim=2).abs().mean(1, keepdim=True)
        if change.shape[2] == 0:
            change = torch.zeros_like(clips[:, :1], dtype=torch.float)
        return _averaged(change, self.grid, tokens)


def _averaged(x: Float[Tensor, "b c T H W"], grid: Sequence[int], tokens: bool) -> BatchFeatures:
    t, h, w = (min(own, there) for own, there in zip(grid, x.shape[2:], strict=True))
    small = F.adaptive_avg_pool3d(x, (t, h, w))
    steps = rearrange(small, "b c t h w -> b t (h w c)")
    return BatchFeatures(steps.flatten(1), steps[:, :, None] if tokens else None)


def half_precision(device: torch.device) -> Any:
    """Autocast to bf16 on GPUs that have it; nothing elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


class TokenStore:
    """Tokens of many clips in half precision in a scratch file, so that memory is bounded.

    The file has no name: nothing is left behind, however the process ends.

    Args:
        folder: where there is room.
        shape: (n, views, l, d).

    Raises:
        RunError: if there is not enough room.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        size = torch.Size(shape).numel()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # A named file would outlive a process that is killed before the name is removed.
            with tempfile.TemporaryFile(dir=folder) as file:
                # A mapped file that meets a full disk would kill the process without a word.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size * 2)
                mapped = np.memmap(file, np.float16, "r+", shape=tuple(shape))
            self._values = torch.from_numpy(mapped)
        except OSError as error:
            raise RunError(
                f"{folder} has no room for {size * 2 / 2**30:.1f} GiB of tokens "
                f"({error.strerror}); lower --train_videos, or leave attentive out of --probes"
            ) from error
        self.filled = 0

    def append(self, tokens: Float[Tensor, "b views l d"]) -> None:
        """Add the next clips."""
        self._values[self.filled : self.filled + len(tokens)] = tokens
        self.filled += len(tokens)

    def read(self, index: Tensor, views: slice) -> Float[Tensor, "b l d"]:
        """Tokens of clips, those of several views one after the other, in float32."""
        return rearrange(self._values[index][:, views].float(), "b v l d -> b (v l) d")

    @property
    def shape(self) -> torch.Size:
        """(n, views, l, d), n counting what has been added."""
        return torch.Size((self.filled, *self._values.shape[1:]))


class ClipFeatures(NamedTuple):
    """Features and labels of videos.

    Attributes:
        vectors: extractor → (n, views, d) float32 on the CPU.
        tokens: extractor → a :class:`TokenStore`; empty where they were not asked for.
        labels: name → (n, …) as ``labels`` told them.
        keys: names of the n videos.
    """

    vectors: dict[str, Tensor]
    tokens: dict[str, TokenStore]
    labels: dict[str, Tensor]
    keys: list[str]


def clip_features(
    extractors: Mapping[str, FeatureExtractor],
    batches: Iterable[dict[str, Any]],
    labels: Callable[[dict[str, Any]], dict[str, Tensor]],
    *,
    videos: int,
    token_folder: Path | None = None,
    title: str = "features",
) -> ClipFeatures:
    """One pass over batches of clips, which all extractors share.

    Args:
        extractors: name → what makes features.
        batches: with ``clips`` (b, views, C, T, H, W) and ``key``, on the device of the encoders.
        labels: what a batch's videos are labelled with, each (b, …).
        videos: how many are expected, for the progress bar and the room for tokens.
        token_folder: where tokens are kept; None takes none.
        title: of the progress bar.

    Raises:
        ValueError: if there is no video.
        RunError: if there is no room for tokens.
    """
    vectors: dict[str, list[Tensor]] = {name: [] for name in extractors}
    stores: dict[str, TokenStore] = {}
    told: list[dict[str, Tensor]] = []
    keys: list[str] = []
    with tqdm(total=videos, desc=title, unit="video", leave=False, dynamic_ncols=True) as progress:
        for batch in batches:
            views = batch["clips"].shape[1]
            clips = rearrange(batch["clips"], "b v c T H W -> (b v) c T H W")
            for name, extract in extractors.items():
                found = extract(clips, tokens=token_folder is not None)
                vectors[name].append(rearrange(found.vectors.cpu(), "(b v) d -> b v d", v=views))
                if token_folder is not None and found.tokens is not None:
                    tokens = rearrange(found.tokens.cpu(), "(b v) t n d -> b v (t n) d", v=views)
                    if name not in stores:
                        stores[name] = TokenStore(token_folder, (videos, *tokens.shape[1:]))
                    stores[name].append(tokens)
            told.append({name: value.cpu() for name, value in labels(batch).items()})
            keys += batch["key"]
            progress.update(len(batch["key"]))
    if not keys:
        raise ValueError("there is no readable video to take features of")
    return ClipFeatures(
        {name: torch.cat(parts) for name, parts in vectors.items()},
        stores,
        {name: torch.cat([part[name] for part in told]) for name in told[0]},
        keys,
    )


def untrained(encoder: ViViT, seed: int) -> ViViT:
    """Return an encoder of the same architecture and device with fresh weights."""
    from ssl_vivit.encoders import ViViT

    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = ViViT(encoder.config)
    fresh.preprocessing = encoder.preprocessing
    return fresh.to(device).eval()
