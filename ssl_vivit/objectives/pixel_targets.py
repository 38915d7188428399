"""Targets of masked tubelets: pixels, optionally normalised within each tubelet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ssl_vivit.data.to_device import to_device
from ssl_vivit.encoders import ViViTConfig

_EPSILON = 1e-6


def tubelet_pixels(
    video: Float[Tensor, "b c T H W"], config: ViViTConfig
) -> Float[Tensor, "b t n c pixels"]:
    """Return the pixels that each token is to predict, as (b, t, n, c, pixels).

    Tokens are along t time steps and n spatial positions in row-major order. The last axis is
    ordered by frame, row and column of the tubelet.

    If tubelets overlap in time, a token predicts only ``stride`` frames of its tubelet: under
    causal padding the last ones (frames i · stride to (i + 1) · stride − 1), else the first ones.
    If the encoder pads tubelets with zeros (``remainder`` pad), border pixels and the first frame
    are repeated here instead, so that targets contain no artificial edge.
    """
    grid = config.grid_of(*video.shape[2:])
    _, down, across = config.padding_of(*video.shape[2:])
    frames = torch.tensor(shown_frames(config, video.shape[2]))
    video = video[:, :, to_device(frames, video.device)]
    if any((*down, *across)):
        video = F.pad(video, (*across, *down, 0, 0), mode="replicate")
    size = config.kernel_stride
    video = video[:, :, : grid.t * size[0], : grid.h * size[1], : grid.w * size[2]]
    return rearrange(
        video,
        "b c (t pt) (h ph) (w pw) -> b t (h w) c (pt ph pw)",
        pt=size[0], ph=size[1], pw=size[2],
    )  # fmt: skip


def shown_frames(config: ViViTConfig, frames: int) -> list[int]:
    """Return the indices of the frames of a clip whose pixels the tokens are to predict.

    These are the frames of :func:`tubelet_pixels` and, restored, of :func:`video_of`. Frames that
    the encoder drops are missing. The first frame is repeated where the encoder pads.

    Args:
        config: config of the encoder.
        frames: number of frames T of the clip.
    """
    if config.tubelet_embedding == "uniform_frames":
        return config.frames_of(frames)
    steps, stride = config.grid_of(frames, *config.image_size).t, config.kernel_stride[0]
    (before, _), *_ = config.padding_of(frames, *config.image_size)
    if config.temporal_padding == "causal":
        before -= config.kernel_size[0] - stride
    return [max(number - before, 0) for number in range(steps * stride)]


def video_of(
    pixels: Float[Tensor, "b t n c pixels"], config: ViViTConfig, height: int
) -> Float[Tensor, "b c T H W"]:
    """Put tubelets together to clips (b, c, T, H, W); inverse of :func:`tubelet_pixels`.

    Repeated pixels at the border are kept.

    Args:
        pixels: pixels of all tubelets, as :func:`tubelet_pixels` returns them.
        config: config of the encoder.
        height: number of rows of the token grid.
    """
    size = config.kernel_stride
    return rearrange(
        pixels,
        "b t (h w) c (pt ph pw) -> b c (t pt) (h ph) (w pw)",
        h=height, pt=size[0], ph=size[1], pw=size[2],
    )  # fmt: skip


class PixelScale:
    """Mean and standard deviation of the pixels of each tubelet and channel.

    Normalised pixels are (x − mean) / (standard deviation + 1e-6), with the unbiased variance, as
    in VideoMAE (Tong et al. 2022, Sec. 4.1). They are 0 for a tubelet of uniform colour.

    Args:
        pixels: (…, c, pixels) in [0, 1].
    """

    def __init__(self, pixels: Float[Tensor, "... c pixels"]) -> None:
        self.mean = pixels.mean(-1, keepdim=True)
        self.spread = pixels.var(-1, keepdim=True).sqrt() + _EPSILON

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return the target of the decoder: pixels normalised within each tubelet and channel."""
        return (pixels - self.mean) / self.spread

    def restored(self, targets: Tensor) -> Tensor:
        """Convert normalised pixels, such as predictions, back to pixels in [0, 1]."""
        return targets * self.spread + self.mean


def denormalised(
    video: Float[Tensor, "b c T H W"], mean: Tensor, std: Tensor
) -> Float[Tensor, "b c T H W"]:
    """Convert clips normalised by ``mean`` and ``std`` to pixels in [0, 1] (float32 or float64)."""
    shape = (-1, 1, 1, 1)
    exact = video if video.dtype == torch.float64 else video.float()
    return exact * std.to(exact).view(shape) + mean.to(exact).view(shape)


def squared_errors(
    predicted: Float[Tensor, "b m p"], target: Float[Tensor, "b m p"]
) -> Float[Tensor, " b"]:
    """Return the mean squared error of each clip, in the precision of ``target``."""
    return (predicted.to(target) - target).square().mean((1, 2))
