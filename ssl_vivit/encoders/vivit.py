"""ViViT: video → tokens → one vector a clip (Arnab et al. 2021, arXiv 2103.15691).

- tubelet embedding, overlapping and causally padded where the config says so
- Model 2, factorised encoder: a spatial transformer within each time step, a temporal one over them
- Model 3, factorised self-attention: space and time in turn in every block
- learned, sinusoidal and rotary positions; class tokens; registers for each axis
- tube masks: only the visible tubelets are ever embedded
- gradient checkpointing, patch dropout, stochastic depth
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vivit.encoders.blocks import norm_layer
from ssl_vivit.encoders.config import ViViTConfig, named_config
from ssl_vivit.encoders.factorized_encoder import FactorizedEncoder
from ssl_vivit.encoders.factorized_self_attention import FactorizedSelfAttention
from ssl_vivit.encoders.pooling import AttentionPooling, reduce_tokens
from ssl_vivit.encoders.positions import Positions, Rotation
from ssl_vivit.encoders.tubelets import TubeletEmbedding
from ssl_vivit.grid import Grid


class EncoderOutput(NamedTuple):
    """What an encoder returns.

    Attributes:
        tokens: (b, t, n, d) patch tokens, or None where they were not asked for.
        cls: (b, t, d) class token of each time step (or pooled frame vectors), or None.
        pooled: (b, d), one vector a clip.
        grid: token grid of the clip.
    """

    tokens: Tensor | None
    cls: Tensor | None
    pooled: Tensor
    grid: Grid

    @property
    def map(self) -> Float[Tensor, "b d t h w"]:
        """Tokens as a feature map (b, d, t, h, w).

        Raises:
            ValueError: if tokens were not asked for, or some positions are hidden.
        """
        if self.tokens is None:
            raise ValueError("there is no map without tokens; call encoder(video, tokens=True)")
        if self.tokens.shape[2] != self.grid.n:
            raise ValueError(
                f"{self.tokens.shape[2]} visible tokens do not fill a map of {self.grid.h}×"
                f"{self.grid.w}; encode without visible"
            )
        return rearrange(self.tokens, "b t (h w) d -> b d t h w", h=self.grid.h)


class ViViT(nn.Module):
    """A ViViT encoder; see :class:`ViViTConfig` for what it can be.

    Attributes:
        config: the architecture.
        preprocessing: how pixels were prepared in pretraining (pixel range, mean, std, frames per
            second, frame stride, resize), or None for a fresh encoder.
    """

    _no_split_modules = ("PreNormBlock", "ParallelBlock", "SpaceTimeBlock")

    def __init__(self, config: ViViTConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessing: dict[str, Any] | None = None
        self.tubelets = TubeletEmbedding(config)
        self.positions = Positions(config)
        self.trunk: FactorizedEncoder | FactorizedSelfAttention
        if config.variant == "factorized_encoder":
            self.trunk = FactorizedEncoder(config)
        else:
            self.trunk = FactorizedSelfAttention(config)
        self.attention_pooling = AttentionPooling(config) if config.pooling == "attention" else None
        self.pooled_norm = norm_layer(config) if config.final_norm == "pooled" else nn.Identity()

    @property
    def embed_dim(self) -> int:
        """Width d of tokens and of the pooled vector."""
        return self.config.embed_dim

    def forward(
        self,
        video: Float[Tensor, "b c T H W"],
        visible: Int[Tensor, "b v"] | None = None,
        *,
        tokens: bool = True,
    ) -> EncoderOutput:
        """Encode clips.

        Args:
            video: (B, C, T, H, W) floats, normalised as ``preprocessing`` says.
            visible: tube mask, indices of the kept spatial positions, the same at all times;
                tokens come out in their order.
            tokens: whether patch tokens are wanted. Without them Model 2 sends the class tokens
                alone through time, and its last spatial block computes the class query alone.

        Returns:
            :class:`EncoderOutput` with tokens (b, t, n, d), cls (b, t, d) or None, pooled (b, d).

        Raises:
            ValueError: for video of another shape or geometry than the encoder takes.
        """
        self._check(video)
        kept = self._drop_patches(video, visible)
        embedded = visible if kept is None else kept.positions
        x, grid = self.tubelets(video, embedded)
        # Under autocast the embedding is in half precision; residuals add up in the weights' own,
        # also where no learned positions would have raised them.
        x = x.to(self.tubelets.weight.dtype)
        x = self.positions.add_spatial(x, grid, embedded)
        rotations = self.positions.rotations(grid, embedded, x)
        if isinstance(self.trunk, FactorizedEncoder):
            out = self._factorized_encoder(x, grid, rotations, tokens)
        else:
            x = self.trunk(self.positions.add_temporal(x, grid), rotations)
            pooled = self._pool(rearrange(x, "b t n d -> b (t n) d"))
            out = EncoderOutput(x if tokens else None, None, self.pooled_norm(pooled), grid)
        if kept is not None and out.tokens is not None:
            out = out._replace(tokens=kept.restore(out.tokens))
        return out

    def _check(self, video: Tensor) -> None:
        if video.ndim != 5 or video.shape[1] != self.config.in_channels:
            raise ValueError(
                f"video of shape {tuple(video.shape)} is not (B, C, T, H, W) with C = in_channels "
                f"= {self.config.in_channels}"
            )
        if not video.is_floating_point():
            raise ValueError(
                f"video is {video.dtype}; give floats, normalised as encoder.preprocessing says"
            )

    def _drop_patches(self, video: Tensor, visible: Tensor | None) -> _KeptTubes | None:
        """In training, a random choice of tubes to keep for each clip."""
        if not (self.training and self.config.patch_dropout > 0):
            return None
        grid = self.config.grid_of(*video.shape[2:])
        total = grid.n if visible is None else visible.shape[1]
        keep = max(1, total - int(total * self.config.patch_dropout))
        order = torch.rand(len(video), total, device=video.device).argsort(1)[:, :keep]
        slots = order.sort(1).values
        return _KeptTubes(slots, slots if visible is None else visible.gather(1, slots), total)

    def _factorized_encoder(
        self,
        x: Float[Tensor, "b t n d"],
        grid: Grid,
        rotations: tuple[Rotation | None, Rotation | None],
        tokens: bool,
    ) -> EncoderOutput:
        config = self.config
        pools_frames = config.pooling in ("cls_mean", "temporal_cls") or (
            config.frame_pooling != "none"
        )
        patches, frames, temporal_class = self.trunk(
            x, grid, self.positions, rotations, tokens or not pools_frames
        )
        if config.pooling == "temporal_cls":
            pooled = temporal_class
        elif config.pooling == "cls_mean":
            pooled = frames.mean(1)
        elif config.frame_pooling != "none":
            pooled = self._pool(frames)
        else:
            pooled = self._pool(rearrange(patches, "b t n d -> b (t n) d"))
        return EncoderOutput(patches if tokens else None, frames, self.pooled_norm(pooled), grid)

    def _pool(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        if self.attention_pooling is not None:
            return self.attention_pooling(x)
        assert self.config.pooling is not None
        return reduce_tokens(x, self.config.pooling)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.trunk.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights: positions, class tokens and registers."""
        tokens = ("class_token", "_registers", "attention_pooling.query")
        return {
            name
            for name, _ in self.named_parameters()
            if name.startswith("positions.") or name.endswith(tokens)
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter names → depth, for timm's layer-wise learning rate decay.

        Args:
            coarse: timm's protocol: whole transformers in place of single blocks.
        """
        groups = self.trunk.group_matcher()
        if coarse:
            groups = {name: pattern.replace(r"\.(\d+)", r"\.") for name, pattern in groups.items()}
        return groups

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        preprocessing: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        """Write this encoder as a directory; see :func:`ssl_vivit.encoders.export.save_pretrained`."""
        from ssl_vivit.encoders.export import save_pretrained

        save_pretrained(self, directory, preprocessing=preprocessing, card=card)


class _KeptTubes(NamedTuple):
    """Tubes that patch dropout kept: their slots among the asked-for ones, and their positions."""

    slots: Tensor
    positions: Tensor
    total: int

    def restore(self, tokens: Float[Tensor, "b t k d"]) -> Float[Tensor, "b t n d"]:
        """Tokens back in their slots, zeros where tubes were dropped."""
        b, t, _, d = tokens.shape
        index = repeat(self.slots, "b k -> b t k d", t=t, d=d)
        return tokens.new_zeros(b, t, self.total, d).scatter(2, index, tokens)


def create_encoder(name: str, **overrides: Any) -> ViViT:
    """A fresh encoder of a named size.

    Args:
        name: a size, see :func:`ssl_vivit.encoders.config.named_config`.
        overrides: settings of :class:`ViViTConfig` to change.

    Raises:
        ValueError: for an unknown size or setting, or values that do not fit each other.
    """
    return ViViT(named_config(name, **overrides))
