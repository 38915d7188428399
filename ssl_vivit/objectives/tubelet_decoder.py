"""The narrow decoder of masked tubelets: visible tokens and mask tokens → hidden pixels."""

from __future__ import annotations

import dataclasses

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders import ViViTConfig
from ssl_vivit.encoders.positions import Places, Positions, token_parameter
from ssl_vivit.encoders.trunks.factorized_dot_product import factorized_dot_product
from ssl_vivit.encoders.trunks.joint import Joint
from ssl_vivit.encoders.trunks.space_time import SpaceTimeTrunk
from ssl_vivit.grid import Grid
from ssl_vivit.objectives.config import DecoderPositions
from ssl_vivit.objectives.masking import TubeletMask

_HEAD_DIM = 64


class TubeletDecoder(nn.Module):
    """A transformer over visible tokens and mask tokens, with its own positions.

    Over all tokens at once for Model 1, as VideoMAE's (Tong et al. 2022, Sec. 3.3); for the others
    half of the heads attend over time and half over space, which costs no more than a plain block.
    Positions are fixed sinusoids: of the flattened index for Model 1 (VideoMAE), otherwise of
    (row, column) and of time. With ``rotary`` they are the latter for all models, and attention is
    rotary besides: what lies near, in space and time, can be told from what lies far without being
    learned, which takes sinusoids alone far more steps.

    Args:
        encoder: config of the encoder.
        dim: width, a multiple of 4, of 16 for ``rotary``.
        depth: blocks.
        outputs: numbers predicted for each hidden tubelet.
        positions: ``sinusoidal`` or ``rotary``.
    """

    def __init__(
        self,
        encoder: ViViTConfig,
        dim: int,
        depth: int,
        outputs: int,
        positions: DecoderPositions = "sinusoidal",
    ) -> None:
        super().__init__()
        config = decoder_config(encoder, dim, depth, positions)
        self.project = nn.Linear(encoder.embed_dim, dim, bias=False)
        self.mask_token = token_parameter(dim)
        self.positions = Positions(config)
        self.rotary: Positions | None = None
        if positions == "rotary":
            self.rotary = Positions(
                dataclasses.replace(config, spatial_positions="rotary", temporal_positions="rotary")
            )
        self.trunk: Joint | SpaceTimeTrunk
        self.trunk = Joint(config) if config.variant == "joint" else factorized_dot_product(config)
        self.head = nn.Linear(dim, outputs)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, tokens: Float[Tensor, "b t v d"], mask: TubeletMask, grid: Grid
    ) -> Float[Tensor, "b m outputs"]:
        """Predict the hidden tubelets.

        Args:
            tokens: of the visible tubelets, (b, 1, v, d) where the mask is by token.
            mask: which tubelets are visible, and which are hidden.
            grid: tokens of the whole clip.

        Returns:
            Predictions in the order of time and mask.
        """
        visible_at, hidden_at = (index[..., None] for index in mask.tokens(grid))
        # In the residuals' precision also under autocast, as in the encoder.
        visible = self.project(tokens.flatten(1, 2)).to(self.mask_token.dtype)
        b, _, d = visible.shape
        hidden = self.mask_token.expand(b, grid.t, grid.n, d)
        x = hidden.flatten(1, 2).scatter(1, visible_at.expand(-1, -1, d), visible)
        x = x.unflatten(1, (grid.t, grid.n))
        places = Places(grid)
        x = self.positions.add_spatial(x, places)
        x = self.positions.add_temporal(x, places)
        if isinstance(self.trunk, SpaceTimeTrunk):
            rotations = (None, None) if self.rotary is None else self.rotary.rotations(places, x)
            x = self.trunk(x, places, rotations).flatten(1, 2)
        else:
            x, _ = self.trunk(
                rearrange(x, "b t n d -> b (t n) d"),
                self.positions,
                places.times(x.device),
                grid.t,
                None if self.rotary is None else self.rotary.joint_rotation(places, x),
                class_only=False,
            )
        return self.head(x.gather(1, hidden_at.expand(-1, -1, d)))


def decoder_config(
    encoder: ViViTConfig, dim: int, depth: int, positions: DecoderPositions
) -> ViViTConfig:
    """The decoder's architecture; as few heads, an even number, as leave each up to 64 wide."""
    # Heads whose width is a multiple of 8 can turn by row, column and time.
    factor, width = (16, 8) if positions == "rotary" else (4, 1)
    if dim < factor or dim % factor:
        raise ValueError(
            f"objective.decoder_dim {dim} must be a multiple of {factor}, for {positions} positions"
        )
    joint = encoder.variant == "joint"
    flattened = joint and positions == "sinusoidal"
    return ViViTConfig(
        variant="joint" if joint else "factorized_dot_product",
        depth=depth,
        embed_dim=dim,
        num_heads=next(
            heads
            for heads in range(2, dim + 1, 2)
            if dim % (heads * width) == 0 and dim // heads <= _HEAD_DIM
        ),
        in_channels=encoder.in_channels,
        num_frames=encoder.num_frames,
        image_size=encoder.image_size,
        tubelet_size=encoder.tubelet_size,
        tubelet_stride=encoder.tubelet_stride,
        tubelet_embedding=encoder.tubelet_embedding,
        sampled_frames=encoder.sampled_frames,
        temporal_padding=encoder.temporal_padding,
        remainder=encoder.remainder,
        class_token=False,
        joint_positions="sinusoidal" if flattened else None,
        spatial_positions=None if flattened else "sinusoidal",
        temporal_positions=None if flattened else "sinusoidal",
    )
