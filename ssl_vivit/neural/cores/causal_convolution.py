"""Causal convolutions, norms that are causal also in training, and checks of their settings."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.past import Past, after_past


class CausalConv3d(nn.Conv3d):
    """A 3D convolution whose output at frame t depends only on frames up to t.

    The input is padded with zeros before the first frame and around the edges. The number of frames
    is unchanged. Height and width are divided by the stride and rounded up.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: size (t, h, w) of the kernel; h and w must be odd.
        stride: stride in height and width.
        groups: as in ``nn.Conv3d``.
        bias: whether to add a bias.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        _, height, width = kernel
        super().__init__(
            channels_in,
            channels_out,
            kernel,
            stride=(1, stride, stride),
            padding=(0, height // 2, width // 2),
            groups=groups,
            bias=bias,
        )

    def forward(
        self, x: Float[Tensor, "b c t h w"], past: Past | None = None
    ) -> Float[Tensor, "b d t i j"]:
        """Apply the convolution.

        Args:
            x: the input.
            past: state of a stream after the previous frames. None pads with zeros.
        """
        return super().forward(after_past(x, self.kernel_size[0] - 1, self, past))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels, separately for each frame and each pixel of the map.

    A BatchNorm would not be causal: in training its statistics include later frames.
    """

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        normed = super().forward(rearrange(x, "b c t h w -> b t h w c"))
        return rearrange(normed, "b t h w c -> b c t h w")


def initialise_convolutions(module: nn.Module) -> None:
    """Initialise all 3D convolutions of a module as in He et al. 2015, with biases of zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


# Largest number of blocks, far above any model. A damaged config may contain any number.
_MOST_BLOCKS = 1_000


def check_stages(
    owner: str, widths: tuple[int, ...], depths: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Check the settings of the stages of a convolutional network.

    Raises:
        NeuralModelError: if ``widths``, ``depths`` and ``strides`` are empty or differ in length,
            a value is below 1, or the depths sum to more than 1,000 blocks.
    """
    if not len(widths) == len(depths) == len(strides) > 0:
        raise NeuralModelError(
            f"{owner}: widths {list(widths)}, depths {list(depths)} and strides {list(strides)} "
            "must each have one entry for each stage"
        )
    if min(*widths, *depths, *strides) < 1:
        raise NeuralModelError(
            f"{owner}: widths {list(widths)}, depths {list(depths)} and strides {list(strides)} "
            "must all be at least 1"
        )
    if sum(depths) > _MOST_BLOCKS:
        raise NeuralModelError(
            f"{owner}: depths {list(depths)} sum to more than {_MOST_BLOCKS:,} blocks; give fewer"
        )


def check_kernels(owner: str, **kernels: tuple[int, int, int]) -> None:
    """Check the sizes (t, h, w) of convolution kernels.

    Raises:
        NeuralModelError: if the height or width of a kernel is even, or t is below 1.
    """
    for name, (frames, height, width) in kernels.items():
        if frames < 1 or height % 2 != 1 or width % 2 != 1:
            raise NeuralModelError(
                f"{owner}: {name} {[frames, height, width]} must have at least one frame and odd "
                "height and width"
            )
