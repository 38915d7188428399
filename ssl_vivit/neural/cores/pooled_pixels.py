"""Core and modulator of a linear model, which return pixels and behaviour as channels of a map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.past import Past


class PooledPixels(nn.Module):
    """Core without weights, whose features are the pixels of each frame, averaged over squares.

    Args:
        image_size: (H, W) of the video.
        pool: side of the squares in pixels.
        in_channels: channels of the video.

    Raises:
        NeuralModelError: if ``pool`` does not divide the image size.
    """

    temporal_stride = 1

    def __init__(self, image_size: tuple[int, int], *, pool: int = 1, in_channels: int = 1) -> None:
        super().__init__()
        height, width = image_size
        if height % pool or width % pool:
            raise NeuralModelError(f"pool {pool} must divide the frame size {height}×{width}")
        self.image_size, self.pool, self.in_channels = (height, width), pool, in_channels
        self.pooled = (in_channels, height // pool, width // pool)
        self.channels = self.pooled[0] * self.pooled[1] * self.pooled[2]

    def dense(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b d T 1 1"]:
        """Return the pooled pixels of each frame as the channels of a map of 1×1 pixel.

        Raises:
            NeuralModelError: if channels, height or width of the video differ from the settings.
        """
        channels, (height, width) = video.shape[1], video.shape[-2:]
        if (channels, height, width) != (self.in_channels, *self.image_size):
            raise NeuralModelError(
                f"video has {channels} channels of {height}×{width} pixels; the model needs "
                f"{self.in_channels} of {self.image_size[0]}×{self.image_size[1]} pixels"
            )
        pixels = F.avg_pool3d(video, (1, self.pool, self.pool)) if self.pool > 1 else video
        return rearrange(pixels, "b c t h w -> b (c h w) t 1 1")

    def step(self, frame: Float[Tensor, "b c 1 H W"], past: Past) -> Float[Tensor, "b d 1 1 1"]:
        """Return the pooled pixels of the next frame of a stream; ``past`` is not used."""
        return self.dense(frame)

    forward = dense

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {
            "kind": "pixels",
            "image_size": list(self.image_size),
            "pool": self.pool,
            "in_channels": self.in_channels,
        }


class AppendedBehaviour(nn.Module):
    """Modulator that appends behaviour to the channels of the map.

    Args:
        behaviour_channels: number of behaviour channels.
    """

    def __init__(self, behaviour_channels: int) -> None:
        super().__init__()
        self.behaviour_channels = behaviour_channels

    def forward(
        self,
        map: Float[Tensor, "b d t 1 1"],
        behaviour: Float[Tensor, "b t k"] | None = None,
        state: None = None,
    ) -> tuple[Float[Tensor, "b dk t 1 1"], None]:
        """Return the map with behaviour as further channels, and None in place of a state.

        If ``behaviour`` is None, these channels are 0.
        """
        if behaviour is None:
            shape = (len(map), map.shape[2], self.behaviour_channels)
            behaviour = map.new_zeros(shape)
        signals = rearrange(behaviour, "b t k -> b k t 1 1").to(map.dtype)
        return torch.cat((map, signals), dim=1), None

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {"kind": "appended", "behaviour_channels": self.behaviour_channels}
