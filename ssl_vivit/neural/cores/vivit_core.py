"""Protocol of cores, which turn video into a causal feature map, and the ViViT core."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders import ViViT
from ssl_vivit.encoders.intermediates import block_names
from ssl_vivit.encoders.trunks.attention_window import KeyValueCache
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.block_reader import BlockReader
from ssl_vivit.neural.cores.past import Past, after_past


@runtime_checkable
class Core(Protocol):
    """Protocol of the core of a :class:`~ssl_vivit.neural.model.NeuralModel`.

    A core with a method ``step(frame, past)``, like :meth:`ViViTCore.step`, can also be streamed.

    Attributes:
        channels: width d of the map.
        temporal_stride: number of video frames per time step of the map. Time step i must not
            depend on frames after (i + 1) · temporal_stride − 1.
    """

    channels: int
    temporal_stride: int

    def dense(self, video: Float[Tensor, "b c T H W"]) -> Float[Tensor, "b d t h w"]:
        """Return the feature map of T frames, which has t = T // temporal_stride time steps."""

    def to_config(self) -> dict[str, Any]:
        """Return ``kind`` and the settings from which a core is rebuilt."""


class ViViTCore:
    """A causal ViViT as a core.

    Learned positions in time exist only for the length for which the encoder is configured. With
    such positions, a longer trial is encoded in windows of this length that overlap by half. Each
    token is taken from the earliest window that contains it, because this window has most frames
    before the token. Windows always begin at multiples of half their length, so tokens never depend
    on later frames.

    Args:
        encoder: the encoder.
        reader: reader of the chosen blocks. None reads the last block.

    Raises:
        NeuralModelError: if a token of the encoder depends on frames after its own tubelet.
    """

    def __init__(self, encoder: ViViT, reader: BlockReader | None = None) -> None:
        config = encoder.config
        needed: list[str] = []
        if config.tubelet_embedding == "uniform_frames":
            needed.append("tubelet_embedding='tubelet'")
        if not config.temporal_causal:
            needed.append("temporal_causal=True")
        if config.tubelet_size[0] > config.kernel_stride[0] and config.temporal_padding != "causal":
            needed.append("temporal_padding='causal'")
        if needed:
            raise NeuralModelError(
                "some tokens of the encoder depend on later frames, but the model must be causal: "
                f"call load_encoder or create_encoder with {', '.join(needed)}"
            )
        self.encoder, self.reader = encoder, reader
        self.channels = config.embed_dim
        self.in_channels = config.in_channels
        self.temporal_stride = config.kernel_stride[0]
        # Time steps of a window; None if positions exist for any length.
        positions = encoder.positions
        learned = positions.temporal is not None or positions.joint is not None
        self.context = config.grid.t if learned else None

    def dense(
        self,
        video: Float[Tensor, "b c T H W"],
        patch_draw: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b d t h w"]:
        """Return the tokens of all complete time steps as a map. A short video may have none.

        Args:
            video: video of any length.
            patch_draw: random numbers for patch dropout, one row for each clip; see
                :meth:`ViViT.forward`. None draws them from torch's generator.
        """
        return self.mixed(self.maps(video, patch_draw))

    def mixed(self, maps: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        """Return the weighted sum of the chosen blocks' maps; the map of one block is unchanged."""
        return maps if self.reader is None else self.reader.mixed(maps)

    def maps(
        self,
        video: Float[Tensor, "b c T H W"],
        patch_draw: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Return the maps of the chosen blocks, concatenated along channels.

        They do not depend on the weights of the sum, so maps of a frozen encoder can be cached.

        Args:
            video: see :meth:`dense`.
            patch_draw: see :meth:`dense`.
        """
        # Use whole strides only: padding in front to complete a tubelet would depend on the length.
        steps = video.shape[2] // self.temporal_stride
        video = video[:, :, : steps * self.temporal_stride]
        if not steps:
            grid = self.encoder.config.grid_of(self.temporal_stride, *video.shape[3:])
            channels = self.channels * (1 if self.reader is None else len(self.reader.blocks))
            return video.new_zeros(len(video), channels, 0, grid.h, grid.w)
        if self.context is None or steps <= self.context:
            return self._map(video, patch_draw)
        if self.encoder.trunk.attention_window is not None:
            self.check_length(steps)
        return self._in_windows(video, steps, patch_draw)[:, :, :steps]

    def step(
        self, frame: Float[Tensor, "b c 1 H W"], past: Past
    ) -> Float[Tensor, "b d 1 h w"] | None:
        """Return the tokens of the time step that ends with the next frame of a stream.

        Args:
            frame: the next frame.
            past: state after the previous frames.

        Returns:
            (b, d, 1, h, w), or None if no time step ends with this frame.
        """
        config = self.encoder.config
        frames = after_past(frame, config.kernel_size[0] - 1, (self.encoder, "frames"), past)
        shown, cache = past.kept.get(self.encoder, (0, KeyValueCache(past.window)))
        past.kept[self.encoder] = shown + 1, cache
        if (shown + 1) % self.temporal_stride:
            return None
        reader = self.reader or BlockReader([len(block_names(self.encoder)) - 1])
        return reader.step(self.encoder, frames, cache)

    def check_length(self, steps: int) -> None:
        """Check that the learned positions in time suffice for ``steps`` successive time steps.

        Raises:
            NeuralModelError: if there are fewer positions; the message gives their number.
        """
        if self.context is not None and steps > self.context:
            raise NeuralModelError(
                f"the encoder's learned positions in time end after {self.context} time steps "
                f"({self.context * self.temporal_stride} of its frames), and a stream or a "
                "prediction with context cannot be longer; begin a new stream, omit context, or "
                "use an encoder with rotary or sinusoidal temporal_positions"
            )

    def _map(
        self, video: Float[Tensor, "b c T H W"], patch_draw: Float[Tensor, "b n"] | None
    ) -> Float[Tensor, "b c t h w"]:
        if self.reader is None:
            return self.encoder(video, patch_draw=patch_draw).map
        return self.reader.maps(self.encoder, video, patch_draw)

    def _in_windows(
        self,
        video: Float[Tensor, "b c T H W"],
        steps: int,
        patch_draw: Float[Tensor, "b n"] | None,
    ) -> Float[Tensor, "b c t h w"]:
        """Encode overlapping windows, and return the tokens of at least ``steps`` time steps.

        Each token is taken from the earliest window that contains it.
        """
        assert self.context is not None
        length, hop = self.context, max(self.context // 2, 1)
        count = 1 + -(-(steps - length) // hop)
        # Pad the end with zeros to complete the last window, so that one call encodes all windows.
        missing = ((count - 1) * hop + length - steps) * self.temporal_stride
        video = F.pad(video, (0, 0, 0, 0, 0, missing))
        stride = self.temporal_stride
        windows = video.unfold(2, length * stride, hop * stride)
        windows = rearrange(windows, "b c k H W T -> (b k) c T H W")
        if patch_draw is not None:
            patch_draw = patch_draw.repeat_interleave(count, dim=0)
        map = self._map(windows, patch_draw)
        map = rearrange(map, "(b k) d t h w -> b k d t h w", k=count)
        later = rearrange(map[:, 1:, :, length - hop :], "b k d t h w -> b d (k t) h w")
        return torch.cat([map[:, 0], later], dim=2)

    def to_config(self) -> dict[str, Any]:
        """Return kind and architecture as a JSON-serialisable dictionary."""
        return {"kind": "vivit", "encoder": self.encoder.config.to_dict()}


def core_of(encoder: nn.Module, reader: BlockReader | None = None) -> Core:
    """Return a module as a core; a ViViT is wrapped in :class:`ViViTCore`.

    Args:
        encoder: the module.
        reader: see :class:`ViViTCore`. Ignored for other cores.

    Raises:
        NeuralModelError: if the module is not a core, or is a ViViT that is not causal.
    """
    if isinstance(encoder, ViViT):
        return ViViTCore(encoder, reader)
    if not isinstance(encoder, Core):
        raise NeuralModelError(
            f"{type(encoder).__name__} is not a core: give a ViViT, or a module with dense(video), "
            "channels, temporal_stride and to_config()"
        )
    return encoder


def screen_span(
    encoder: nn.Module, frame_size: tuple[int, int], *, align_corners: bool = False
) -> Float[Tensor, "2 2"]:
    """Convert the positions −1 and 1 on the feature map to positions on the screen.

    The map of a ViViT with overlapping tubelets does not reach the edges of the screen, because its
    outermost pixels lie at the centres of the outermost tubelets. Maps of other cores span the
    screen.

    Args:
        encoder: encoder of the model.
        frame_size: (H, W) of the video.
        align_corners: whether −1 and 1 are the centres of the map's outermost pixels.

    Returns:
        (2, 2): the screen position (x, y) of the map position (−1, −1), then of (1, 1). On the
        screen, −1 and 1 are the edges.
    """
    if not isinstance(encoder, ViViT):
        return torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    config = encoder.config
    grid = config.grid_of(config.kernel_stride[0], *frame_size)
    _, down, across = config.padding_of(config.kernel_stride[0], *frame_size)
    ends = []
    for length, size, stride, count, (padded, _) in (
        (frame_size[1], config.kernel_size[2], config.kernel_stride[2], grid.w, across),
        (frame_size[0], config.kernel_size[1], config.kernel_stride[1], grid.h, down),
    ):
        low = size / 2 - padded
        high = low + (count - 1) * stride
        margin = 0.0 if align_corners else stride / 2
        ends.append([2 * (low - margin) / length - 1, 2 * (high + margin) / length - 1])
    return torch.tensor(ends).mT
