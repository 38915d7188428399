"""Frozen features of clips, from encoders and from baselines that use only pixels."""

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
    """Features of a batch of clips.

    Attributes:
        vectors: one vector for each of b clips, (b, d).
        tokens: n tokens for each of t time steps of a clip, (b, t, n, d); None if not requested.
    """

    vectors: Tensor
    tokens: Tensor | None


class FeatureExtractor(Protocol):
    """Function from clips to their features."""

    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool) -> BatchFeatures: ...


class EncoderFeatures:
    """Extractor of an encoder's features, in eval mode and without gradients.

    On GPUs with bf16 the encoder runs under autocast to bf16.

    Args:
        encoder: the encoder; its device and mode are not changed.
        summary: vector of a clip: ``pooled``, the ``mean`` of its patch tokens, or ``both``
            concatenated. An objective may train only the pooled vector or only the patch tokens.
    """

    def __init__(self, encoder: ViViT, summary: Summary = "both") -> None:
        self.encoder, self.summary = encoder, summary

    @torch.no_grad()
    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool = False) -> BatchFeatures:
        """Return vectors (b, d), or (b, 2 d) for "both", and tokens (b, t, n, d), in float32."""
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
    """Baseline without an encoder: pixels of a clip, averaged in each cell of a coarse grid.

    Args:
        grid: size (t, h, w) of the grid; limited to the clip's size.
    """

    def __init__(self, grid: tuple[int, int, int] = (4, 8, 12)) -> None:
        self.grid = grid

    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool = False) -> BatchFeatures:
        """Return vectors (b, t·h·w·c), and tokens with one token per frame, (b, t, 1, h·w·c)."""
        return _averaged(clips.float(), self.grid, tokens)


class MotionEnergyFeatures:
    """Baseline without an encoder: absolute frame differences, averaged in each cell of a grid.

    Unlike averaged pixels, the differences contain motion.

    Args:
        grid: size (t, h, w) of the grid; limited to the size of the differences.
    """

    def __init__(self, grid: tuple[int, int, int] = (4, 8, 12)) -> None:
        self.grid = grid

    def __call__(self, clips: Float[Tensor, "b c T H W"], *, tokens: bool = False) -> BatchFeatures:
        """Return vectors (b, t·h·w), and tokens with one token per time step, (b, t, 1, h·w).

        Clips of one frame give zeros.
        """
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
    """Return a context manager for bf16 autocast on GPUs with bf16; it does nothing elsewhere."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


class TokenStore:
    """Temporary file that stores the tokens of many videos in float16, to save memory.

    The file has no name, so nothing is left behind if the process is killed.

    Args:
        folder: folder of the file.
        shape: (n, views, l, d) for at most n videos with ``views`` clips each, and l tokens of
            width d for each clip.

    Raises:
        RunError: if the disk has not enough space.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        size = torch.Size(shape).numel()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # A file with a name would remain if the process is killed.
            with tempfile.TemporaryFile(dir=folder) as file:
                # Writing to a mapped file on a full disk would kill the process without an error.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size * 2)
                mapped = np.memmap(file, np.float16, "r+", shape=tuple(shape))
            self._values = torch.from_numpy(mapped)
        except OSError as error:
            raise RunError(
                f"{folder} has no space for {size * 2 / 2**30:.1f} GiB of tokens "
                f"({error.strerror}); lower --train_videos, or remove attentive from --probes"
            ) from error
        self.filled = 0

    def append(self, tokens: Float[Tensor, "b views l d"]) -> None:
        """Append the tokens of a batch of videos."""
        self._values[self.filled : self.filled + len(tokens)] = tokens
        self.filled += len(tokens)

    def read(self, index: Tensor, views: slice) -> Float[Tensor, "b l d"]:
        """Return the tokens of videos in float32, (b, l, d).

        The tokens of a video's clips are concatenated.

        Args:
            index: indices of the b videos.
            views: slice that selects clips of each video.
        """
        return rearrange(self._values[index][:, views].float(), "b v l d -> b (v l) d")

    @property
    def shape(self) -> torch.Size:
        """Shape (n, views, l, d), where n is the number of appended videos."""
        return torch.Size((self.filled, *self._values.shape[1:]))


class ClipFeatures(NamedTuple):
    """Features and labels of videos.

    Attributes:
        vectors: for each extractor, by name, vectors (n, views, d) of the videos' clips, in float32
            on the CPU.
        tokens: a :class:`TokenStore` for each extractor, by name; empty if not requested.
        labels: labels (n, …) by their name.
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
    """Compute features with several extractors in one pass over batches of clips.

    Args:
        extractors: the extractors by name.
        batches: batches with ``clips`` (b, views, C, T, H, W) and ``key``, on the encoders' device.
        labels: function that takes a batch and returns labels (b, …) of its videos by their name.
        videos: maximum number of videos; sets the progress bar and the size of the token files.
        token_folder: folder for tokens; None computes no tokens.
        title: title of the progress bar.

    Raises:
        ValueError: if there are no videos.
        RunError: if the disk has not enough space for tokens.
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
        raise ValueError("no video is readable, so there are no features; check the videos")
    return ClipFeatures(
        {name: torch.cat(parts) for name, parts in vectors.items()},
        stores,
        {name: torch.cat([part[name] for part in told]) for name in told[0]},
        keys,
    )


def untrained(encoder: ViViT, seed: int) -> ViViT:
    """Return an encoder with random weights, with the given encoder's architecture and device."""
    from ssl_vivit.encoders import ViViT

    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = ViViT(encoder.config)
    fresh.preprocessing = encoder.preprocessing
    return fresh.to(device).eval()
