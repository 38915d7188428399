"""A causal X3D as the core of a model of neurons (Feichtenhofer 2020, arXiv 2004.04730).

As in X3D, blocks are inverted bottlenecks around a depthwise 3D convolution with Swish, and every
other block has squeeze and excitation. Three things differ, so that no frame depends on later ones.
Convolutions are causal, squeeze and excitation pools each frame separately, and norms are over
channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.causal_convolution import (
    CausalConv3d,
    ChannelNorm,
    check_kernels,
    check_stages,
    initialise_convolutions,
)
from ssl_vivit.neural.cores.past import Past


@dataclass(frozen=True)
class CausalX3DConfig:
    """Architecture of :class:`CausalX3D`.

    Args:
        in_channels: channels of the video.
        widths: channels of each stage.
        depths: number of residual blocks of each stage.
        strides: stride in height and width at the start of each stage.
        expansion: ratio of the inner width of a block to the width of its stage; at least 1.
        squeeze: ratio of the width of squeeze and excitation to the inner width, in (0, 1].
        stem_frames: frames of the stem's depthwise temporal kernel.
        kernel: size (t, h, w) of the kernels of the depthwise convolutions.
        drop_path: rate of stochastic depth in the last block. The rate rises linearly from 0 in
            the first block.
    """

    in_channels: int = 1
    widths: tuple[int, ...] = (24, 48, 96)
    depths: tuple[int, ...] = (3, 5, 11)
    strides: tuple[int, ...] = (1, 2, 2)
    expansion: float = 2.25
    squeeze: float = 0.0625
    stem_frames: int = 5
    kernel: tuple[int, int, int] = (3, 3, 3)
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_stages("CausalX3DConfig", self.widths, self.depths, self.strides)
        check_kernels("CausalX3DConfig", kernel=self.kernel)
        if self.expansion < 1 or not 0 < self.squeeze <= 1 or self.stem_frames < 1:
            raise NeuralModelError(
                f"CausalX3DConfig: expansion {self.expansion} must be at least 1, squeeze "
                f"{self.squeeze} in (0, 1], stem_frames {self.stem_frames} at least 1"
            )


class CausalX3D(nn.Module):
    """Core that computes a feature map for each frame, from this frame and earlier ones.

    It has 678,562 parameters by default. The last convolution multiplies the width by
    ``expansion``, like the convolution before the pooling of X3D.

    Args:
        config: the architecture. None means the defaults.
    """

    temporal_stride = 1

    def __init__(self, config: CausalX3DConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CausalX3DConfig()
        width = config.widths[0]
        self.stem = nn.ModuleList([
            CausalConv3d(config.in_channels, width, (1, 3, 3)),
            CausalConv3d(width, width, (config.stem_frames, 1, 1), groups=width),
            ChannelNorm(width),
        ])  # fmt: skip
        blocks: list[nn.Module] = []
        total = sum(config.depths)
        rates = iter(torch.linspace(0, config.drop_path, total, device="cpu").tolist())
        for out, depth, stride in zip(config.widths, config.depths, config.strides, strict=True):
            for index in range(depth):
                first = stride if index == 0 else 1
                blocks.append(_Block(width, out, config, first, index % 2 == 0, next(rates)))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.channels = round(config.expansion * width)
        self.head = nn.Sequential(
            CausalConv3d(width, self.channels, (1, 1, 1)), ChannelNorm(self.channels)
        )
        initialise_convolutions(self)
        for block in blocks:
            # A new block is the identity up to its shortcut and ReLU.
            nn.init.zeros_(block.last_norm.weight)  # type: ignore[union-attr, arg-type]

    def dense(
        self, video: Float[Tensor, "b c T H W"], past: Past | None = None
    ) -> Float[Tensor, "b d T h w"]:
        """Return the features of each frame (b, channels, T, h, w).

        Args:
            video: standardised.
            past: state of a stream after the previous frames.
        """
        over_space, over_time, norm = self.stem
        x = F.relu(norm(over_time(over_space(video), past)))
        for block in self.blocks:
            x = block(x, past)
        return self.head(x)

    def step(self, frame: Float[Tensor, "b c 1 H W"], past: Past) -> Float[Tensor, "b d 1 h w"]:
        """Return the map of the next frame of a stream."""
        return self.dense(frame, past)

    forward = dense

    def to_config(self) -> dict[str, Any]:
        """Return kind and settings as a JSON-serialisable dictionary."""
        return {"kind": "x3d", **asdict(self.config)}


class _Block(nn.Module):
    """Residual block: widen, convolve depthwise, squeeze and excite, narrow, with a shortcut."""

    def __init__(
        self,
        width: int,
        out: int,
        config: CausalX3DConfig,
        stride: int,
        excites: bool,
        drop_path: float,
    ) -> None:
        from timm.layers import DropPath  # imported here, so that --help does not wait for timm

        super().__init__()
        inner = round(config.expansion * out)
        self.widen = CausalConv3d(width, inner, (1, 1, 1))
        self.norm1 = ChannelNorm(inner)
        self.depthwise = CausalConv3d(inner, inner, config.kernel, stride=stride, groups=inner)
        self.norm2 = ChannelNorm(inner)
        self.excitation = _Excitation(inner, config.squeeze) if excites else nn.Identity()
        self.narrow = CausalConv3d(inner, out, (1, 1, 1))
        self.last_norm = ChannelNorm(out)
        self.drop_path = DropPath(drop_path)
        changes = width != out or stride != 1
        self.shortcut = CausalConv3d(width, out, (1, 1, 1), stride=stride) if changes else None

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past | None = None
    ) -> Float[Tensor, "b d t i j"]:
        wide = F.relu(self.norm1(self.widen(x)))
        wide = F.silu(self.excitation(self.norm2(self.depthwise(wide, past))))
        kept = x if self.shortcut is None else self.shortcut(x)
        return F.relu(kept + self.drop_path(self.last_norm(self.narrow(wide))))


class _Excitation(nn.Module):
    """Squeeze and excitation (Hu et al. 2018), computed for each frame separately."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        # X3D rounds this width to multiples of eight, as mobile networks do.
        squeezed = max(8, round(width * share / 8) * 8)
        self.squeeze = CausalConv3d(width, squeezed, (1, 1, 1), bias=True)
        self.excite = CausalConv3d(squeezed, width, (1, 1, 1), bias=True)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        pooled = x.mean((3, 4), keepdim=True)
        return x * self.excite(F.relu(self.squeeze(pooled))).sigmoid()
