"""Causal convolution at full frame rate, which complements tokens that cover several frames."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.neural.cores.past import Past, after_past


class FrameStream(nn.Module):
    """Network that computes features of each frame, on the spatial grid of an encoder's tokens.

    The kernel spans the frame and a few frames before it. The layers are a space-time convolution
    with stride 1 in time, a GELU, and a projection to the width of the tokens. Behaviour in the
    frames of the kernel gives the hidden features a gain and an offset. Initially the gain is 1 and
    the offset is 0.

    Args:
        in_channels: channels of the video.
        channels: width d of the output.
        kernel: size (frames, height, width) of the kernel, whose last frame is the current one.
        stride: step of the grid in pixels, (height, width).
        padding: zeros before and after the frame along height and width, as in the encoder.
        hidden: number of space-time filters.
        behaviour_channels: number of behaviour channels; 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int],
        *,
        padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
        hidden: int = 64,
        behaviour_channels: int = 0,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding, self.hidden = kernel, stride, padding, hidden
        pixels = in_channels * kernel[0] * kernel[1] * kernel[2]
        self.filters = nn.Linear(pixels, hidden)
        self.project = nn.Linear(hidden, channels)
        self.modulate: nn.Linear | None = None
        if behaviour_channels:
            self.modulate = nn.Linear(kernel[0] * behaviour_channels, 2 * hidden)
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)
        for layer in (self.filters, self.project):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        video: Float[Tensor, "b c T H W"],
        behaviour: Float[Tensor, "b T k"] | None = None,
        past: Past | None = None,
    ) -> Float[Tensor, "b d T h w"]:
        """Return the features of each frame.

        Args:
            video: standardised.
            behaviour: standardised. None means the mean in all frames.
            past: state of a stream after the previous frames.
        """
        span, height, width = self.kernel
        down, across = self.padding
        video = F.pad(after_past(video, span - 1, (self, "video"), past), (*across, *down))
        tubelets = video.unfold(2, span, 1)
        tubelets = tubelets.unfold(3, height, self.stride[0]).unfold(4, width, self.stride[1])
        pixels = rearrange(tubelets, "b c T h w pt ph pw -> b T h w (c pt ph pw)")
        x = F.gelu(self.filters(pixels))
        if self.modulate is not None and behaviour is not None:
            signals = rearrange(behaviour, "b T k -> b k T")
            history = after_past(signals, span - 1, (self, "behaviour"), past).unfold(2, span, 1)
            changes = self.modulate(rearrange(history, "b k T s -> b T 1 1 (s k)"))
            gain, offset = changes.chunk(2, dim=-1)
            x = x * (1 + gain) + offset
        return rearrange(self.project(x), "b T h w d -> b d T h w")
