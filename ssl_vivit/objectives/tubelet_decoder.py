"""Narrow decoder of masked tubelets, which predicts hidden pixels from visible tokens."""

from __future__ import annotations

import dataclasses

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vivit.encoders import ViViTConfig
from ssl_vivit.encoders.positions import Positions, token_parameter
from ssl_vivit.encoders.trunks.factorized_dot_product import factorized_dot_product
from ssl_vivit.encoders.trunks.joint import Joint
from ssl_vivit.encoders.trunks.space_time import SpaceTimeTrunk
from ssl_vivit.encoders.visible_tokens import Places
from ssl_vivit.grid import Grid
from ssl_vivit.objectives.config import DecoderPositions
from ssl_vivit.objectives.masking import TubeletMask

_HEAD_DIM = 64


class TubeletDecoder(nn.Module):
    """Transformer over visible tokens and mask tokens, with its own positions.

    For Model 1 attention is over all tokens, as in VideoMAE (Tong et al. 2022, Sec. 3.3). For the
    other models half of the heads attend over time and half over space, which costs no more than a
    plain block. Positions are fixed sinusoids: of the flattened index for Model 1, as in VideoMAE,
    and of (row, column) and time for the other models. With ``rotary``, sinusoids are of
    (row, column) and time for all models, and attention has rotary positions as well. Attention
    then depends on distances in space and time from the first training step. With sinusoids only,
    the decoder must learn this dependence, which takes far more steps.

    Args:
        encoder: config of the encoder.
        dim: width; must be a multiple of 4, or of 16 for ``rotary``.
        depth: number of blocks.
        outputs: number of outputs for each hidden tubelet.
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
            tokens: tokens of the visible tubelets, in the order of the encoder's output: (b, t, v,
                d), or (b, 1, v, d) for Model 1 (``mask.by_token``).
            mask: masks of the clips.
            grid: grid of the tokens of a whole clip.

        Returns:
            Predictions of the hidden tubelets, in the order of :meth:`TubeletMask.tokens`.
        """
        visible_at, hidden_at = (index[..., None] for index in mask.tokens(grid))
        # Use the precision of the residual stream also under autocast, as in the encoder.
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
    """Return the decoder's config; its number of heads is even, and a head is at most 64 wide."""
    # Rotary positions of row, column and time need head widths that are multiples of 8.
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
