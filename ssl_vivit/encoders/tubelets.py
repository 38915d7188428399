"""Tubelet embedding: video → tokens (Arnab et al. 2021, Sec. 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.grid import Grid


def inflate(
    kernel: Float[Tensor, "d c h w"], frames: int, how: Literal["central_frame", "average"]
) -> Float[Tensor, "d c t h w"]:
    """Make a tubelet kernel from an image kernel (Sec. 3.4).

    Args:
        kernel: weights of a 2D patch embedding.
        frames: temporal size t of the tubelet.
        how: ``central_frame`` puts the kernel at frame t // 2 and zeros elsewhere (Eq. 9);
            ``average`` repeats it over time, divided by t (Eq. 8).
    """
    if how == "average":
        return repeat(kernel, "d c h w -> d c t h w", t=frames) / frames
    inflated = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    inflated[:, :, frames // 2] = kernel
    return inflated


class TubeletEmbedding(nn.Module):
    """Linear embedding of spatio-temporal tubelets.

    The weight has Conv3d's layout ``(d, c, t, h, w)``. Tubelets that do not overlap are embedded by
    one matrix product on rearranged pixels. On CPUs this is never much slower than Conv3d, and up
    to seven times as fast in bfloat16 (tests/benchmarks/bench_tubelets.py). Uniformly sampled
    frames are embedded as tubelets of one frame.
    """

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(
            torch.empty(config.embed_dim, config.in_channels, *config.kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(config.embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a LeCun-normal tubelet kernel, or inflate a LeCun-normal image kernel."""
        frames = self.config.kernel_size[0]
        fan_in = self.weight[0].numel()
        with torch.no_grad():
            if self.config.tubelet_init == "random":
                nn.init.trunc_normal_(self.weight, std=fan_in**-0.5)
            else:
                image_kernel = torch.empty_like(self.weight[:, :, 0])
                nn.init.trunc_normal_(image_kernel, std=(fan_in // frames) ** -0.5)
                self.weight.copy_(inflate(image_kernel, frames, self.config.tubelet_init))
            nn.init.zeros_(self.bias)

    def forward(
        self,
        video: Float[Tensor, "b c T H W"],
        visible: Int[Tensor, "b *t v"] | None = None,
        visible_tokens: Int[Tensor, "b k"] | None = None,
    ) -> tuple[Float[Tensor, "b t n d"], Grid]:
        """Embed all tubelets, or only the visible ones.

        Args:
            video: (B, C, T, H, W) floats.
            visible: indices into the h·w spatial positions, (b, v) for all time steps or (b, t, v)
                for each time step. Tokens are returned in this order.
            visible_tokens: indices into all t·h·w tubelets, instead of ``visible``.

        Returns:
            The tokens and the token grid (t, h, w) of the whole clip. Tokens have the shape (b, t,
            h·w, d); with ``visible`` (b, t, v, d); with ``visible_tokens`` (b, 1, k, d).
        """
        config = self.config
        grid = config.grid_of(*video.shape[2:])
        padding = config.padding_of(*video.shape[2:])
        if config.tubelet_embedding == "uniform_frames":
            # Indexing by a list would copy it to the device and make the host wait.
            chosen = config.frames_of(video.shape[2])
            video = torch.stack([video[:, :, frame] for frame in chosen], dim=2)
        video = self._framed(video, grid, padding)
        if visible is None and visible_tokens is None:
            return self._embedded(video), grid
        pixels = self._visible_pixels(video, grid, visible, visible_tokens)
        return F.linear(pixels, self.weight.flatten(1), self.bias), grid

    def step(self, frames: Float[Tensor, "b c pt H W"]) -> tuple[Float[Tensor, "b 1 n d"], Grid]:
        """Embed the tubelets of one time step.

        Args:
            frames: the frames of the step's tubelets, oldest first; zeros stand for frames before
                the start of the video.

        Returns:
            The tokens (b, 1, h·w, d) of the time step, and its token grid (1, h, w).
        """
        sizes = (self.config.kernel_stride[0], *frames.shape[3:])
        grid = self.config.grid_of(*sizes)
        _, down, across = self.config.padding_of(*sizes)
        return self._embedded(self._framed(frames, grid, ((0, 0), down, across))), grid

    def _framed(
        self, video: Tensor, grid: Grid, padding: tuple[tuple[int, int], ...]
    ) -> Float[Tensor, "b c T H W"]:
        """Pad a video, and crop frames and pixels that do not fill a tubelet."""
        time, down, across = padding
        if any((*time, *down, *across)):
            video = F.pad(video, (*across, *down, *time))
        size, stride = self.config.kernel_size, self.config.kernel_stride
        ends = [(count - 1) * s + p for count, s, p in zip(grid, stride, size, strict=True)]
        return video[:, :, : ends[0], : ends[1], : ends[2]]

    def _embedded(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b t n d"]:
        """Embed all tubelets of a video that :meth:`_framed` has padded and cropped."""
        size, stride = self.config.kernel_size, self.config.kernel_stride
        if size != stride:
            tokens = F.conv3d(video, self.weight, self.bias, stride)
            return rearrange(tokens, "b d t h w -> b t (h w) d")
        pixels = rearrange(
            video,
            "b c (t pt) (h ph) (w pw) -> b t (h w) (c pt ph pw)",
            pt=size[0], ph=size[1], pw=size[2],
        )  # fmt: skip
        return F.linear(pixels, self.weight.flatten(1), self.bias)

    def _visible_pixels(
        self, video: Tensor, grid: Grid, visible: Tensor | None, visible_tokens: Tensor | None
    ) -> Float[Tensor, "b t v pixels"]:
        """Return the pixels of visible tubelets; other pixels are never copied."""
        tubelets = video
        for axis, (size, stride) in enumerate(
            zip(self.config.kernel_size, self.config.kernel_stride, strict=True)
        ):
            tubelets = tubelets.unfold(2 + axis, size, stride)
        batch = torch.arange(video.shape[0], device=video.device)[:, None]
        if visible is not None and visible.ndim == 3:
            time = torch.arange(grid.t, device=video.device)[:, None]
            tubelets = tubelets[batch[..., None], :, time, visible // grid.w, visible % grid.w]
            return rearrange(tubelets, "b t v c pt ph pw -> b t v (c pt ph pw)")
        if visible is not None:
            tubelets = tubelets[batch, :, :, visible // grid.w, visible % grid.w]
            return rearrange(tubelets, "b v c t pt ph pw -> b t v (c pt ph pw)")
        assert visible_tokens is not None
        time, place = visible_tokens // grid.n, visible_tokens % grid.n
        tubelets = tubelets[batch, :, time, place // grid.w, place % grid.w]
        return rearrange(tubelets, "b k c pt ph pw -> b 1 k (c pt ph pw)")
