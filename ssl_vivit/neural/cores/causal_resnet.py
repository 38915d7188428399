"""A causal 3D ResNet as the core of a model of neurons.

The stages are those of Hara et al. 2018 (arXiv 1711.09577, basic blocks), in pre-activation order
(He et al. 2016). Three things differ: the frame rate is not reduced, all convolutions are causal,
and each frame is normalised separately.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.neural.cores.causal_convolution import (
    CausalConv3d,
    ChannelNorm,
    check_kernels,
    check_stages,
    initialise_convolutions,
)
from ssl_vivit.neural.cores.past import Past


@dataclass(frozen=True)
class CausalResNetConfig:
    """Architecture of :class:`CausalResNet`.

    Args:
        in_channels: channels of the video.
        widths: channels of each stage.
        depths: number of residual blocks of each stage.
        strides: stride in height and width at the start of each stage.
        stem_kernel: size (t, h, w) of the first convolution's kernel.
        kernel: size (t, h, w) of all other kernels.
        drop_path: rate of stochastic depth in the last block. The rate rises linearly from 0 in
            the first block.
    """

    in_channels: int = 1
    widths: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 2, 2)
    strides: tuple[int, ...] = (1, 2, 2)
    stem_kernel: tuple[int, int, int] = (5, 7, 7)
    kernel: tuple[int, int, int] = (3, 3, 3)
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_stages("CausalResNetConfig", self.widths, self.depths, self.strides)
        check_kernels("CausalResNetConfig", stem_kernel=self.stem_kernel, kernel=self.kernel)


class CausalResNet(nn.Module):
    """Core that computes a feature map for each frame, from this frame and earlier ones.

    It has 2,065,888 parameters by default.

    Args:
        config: the architecture. None means the defaults.
    """

    temporal_stride = 1

    def __init__(self, config: CausalResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CausalResNetConfig()
        self.channels = config.widths[-1]
        self.stem = CausalConv3d(config.in_channels, config.widths[0], config.stem_kernel)
        blocks: list[nn.Module] = []
        total = sum(config.depths)
        rates = iter(torch.linspace(0, config.drop_path, total, device="cpu").tolist())
        width = config.widths[0]
        for out, depth, stride in zip(config.widths, config.depths, config.strides, strict=True):
            for index in range(depth):
                first = stride if index == 0 else 1
                blocks.append(_Block(width, out, config.kernel, first, next(rates)))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.norm = ChannelNorm(width)
        initialise_convolutions(self)

    def dense(
        self, video: Float[Tensor, "b c T H W"], past: Past | None = None
    ) -> Float[Tensor, "b d T h w"]:
        """Return the features of each frame (b, channels, T, h, w).

        Args:
            video: standardised.
            past: state of a stream after the previous frames.
        """
        x = self.stem(video, past)
        for block in self.blocks:
            x = block(x, past)
        return self.norm(x)

    def step(self, frame: Float[Tensor, "b c 1 H W"], past: Past) -> Float[Tensor, "b d 1 h w"]:
        """Return the map of the next frame of a stream."""
        return self.dense(frame, past)

    forward = dense

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {"kind": "resnet", **asdict(self.config)}


class _Block(nn.Module):
    """Residual block: norm, ReLU and convolution, twice, with a shortcut."""

    def __init__(
        self,
        width: int,
        out: int,
        kernel: tuple[int, int, int],
        stride: int,
        drop_path: float,
    ) -> None:
        from timm.layers import DropPath  # imported here, so that --help does not wait for timm

        super().__init__()
        self.norm1 = ChannelNorm(width)
        self.conv1 = CausalConv3d(width, out, kernel, stride=stride)
        self.norm2 = ChannelNorm(out)
        self.conv2 = CausalConv3d(out, out, kernel)
        self.drop_path = DropPath(drop_path)
        changes = width != out or stride != 1
        self.shortcut = CausalConv3d(width, out, (1, 1, 1), stride=stride) if changes else None

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past | None = None
    ) -> Float[Tensor, "b d t i j"]:
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv2(F.relu(self.norm2(self.conv1(active, past))), past)
        return kept + self.drop_path(branch)
