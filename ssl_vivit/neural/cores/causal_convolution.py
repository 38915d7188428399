"""Convolutions and norms that never look ahead, in training as little as in eval, and their checks."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.cores.past import Past, after_past


class CausalConv3d(nn.Conv3d):
    """A 3D convolution whose output at frame t sees frames up to t.

    Zeros stand before the first frame and around the edges, so the number of frames stays, and
    sizes are divided by the spatial stride, rounded up.

    Args:
        channels_in: of the input.
        channels_out: of the output.
        kernel: (t, h, w); h and w odd.
        stride: in space.
        groups: as in ``nn.Conv3d``.
        bias: whether there is one.
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
        """The convolution.

        Args:
            x: the input.
            past: of the frames before it, in a stream; zeros stand there without.
        """
        return super().forward(after_past(x, self.kernel_size[0] - 1, self, past))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each frame and place.

    Batch statistics would tell each frame of later ones while training.
    """

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        normed = super().forward(rearrange(x, "b c t h w -> b t h w c"))
        return rearrange(normed, "b t h w c -> b c t h w")


def initialise_convolutions(module: nn.Module) -> None:
    """He et al. 2015 for every convolution within; biases at zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


# Far more than any model has; a damaged config may ask for any number.
_MOST_BLOCKS = 1_000


def check_stages(
    owner: str, widths: tuple[int, ...], depths: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Refuse stages that do not pair up.

    Raises:
        NeuralModelError: in one line.
    """
    if not len(widths) == len(depths) == len(strides) > 0:
        raise NeuralModelError(
            f"{owner}: widths {list(widths)}, depths {list(depths)} and strides {list(strides)} "
            "must have one entry a stage each"
        )
    if min(*widths, *depths, *strides) < 1:
        raise NeuralModelError(f"{owner}: widths, depths and strides must be at least 1")
    if sum(depths) > _MOST_BLOCKS:
        raise NeuralModelError(
            f"{owner}: depths {list(depths)} are more than {_MOST_BLOCKS:,} blocks; give fewer"
        )


def check_kernels(owner: str, **kernels: tuple[int, int, int]) -> None:
    """Refuse kernels that have no middle.

    Raises:
        NeuralModelError: in one line.
    """
    for name, (frames, height, width) in kernels.items():
        if frames < 1 or height % 2 != 1 or width % 2 != 1:
            raise NeuralModelError(
                f"{owner}: {name} {[frames, height, width]} must have odd height and width"
            )
