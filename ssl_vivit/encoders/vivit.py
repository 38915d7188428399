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
from torch.utils.checkpoint import checkpoint

from ssl_vivit.encoders.blocks import SpaceTimeBlock, make_block, norm_layer
from ssl_vivit.encoders.config import ViViTConfig, named_config
from ssl_vivit.encoders.pooling import AttentionPooling, reduce_tokens
from ssl_vivit.encoders.positions import (
    Rotation,
    rotation,
    sinusoidal_1d,
    sinusoidal_2d,
    spatial_coordinates,
    temporal_coordinates,
)
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
        self.grad_checkpointing = False
        self.tubelets = TubeletEmbedding(config)
        self._make_positions()
        registers = (config.register_tokens, config.embed_dim)
        self.spatial_registers = _parameter(*registers) if config.register_tokens else None
        self.temporal_registers = (
            _parameter(*registers) if config.register_tokens and self._attends_over_time else None
        )
        self.class_token = _parameter(config.embed_dim, std=1e-6) if config.class_token else None
        self.temporal_class_token = (
            _parameter(config.embed_dim, std=1e-6) if config.pooling == "temporal_cls" else None
        )
        if config.variant == "factorized_encoder":
            assert config.spatial_depth is not None
            assert config.temporal_depth is not None
            rates = _drop_path_rates(config, config.spatial_depth + config.temporal_depth)
            blocks = [make_block(config, rate) for rate in rates]
            self.spatial_blocks = nn.ModuleList(blocks[: config.spatial_depth])
            self.temporal_blocks = nn.ModuleList(blocks[config.spatial_depth :])
            self.spatial_norm = self._token_norm()
            self.temporal_norm = self._token_norm() if config.temporal_depth else nn.Identity()
        else:
            assert config.depth is not None
            rates = _drop_path_rates(config, config.depth)
            self.blocks = nn.ModuleList(SpaceTimeBlock(config, rate) for rate in rates)
            self.norm = self._token_norm()
        self.attention_pooling = AttentionPooling(config) if config.pooling == "attention" else None
        self.pooled_norm = norm_layer(config) if config.final_norm == "pooled" else nn.Identity()

    @property
    def embed_dim(self) -> int:
        """Width d of tokens and of the pooled vector."""
        return self.config.embed_dim

    @property
    def _attends_over_time(self) -> bool:
        # What only a temporal transformer reads must not exist without one: DDP refuses parameters
        # that have no gradient.
        return self.config.variant != "factorized_encoder" or self.config.temporal_depth != 0

    # -- input ---------------------------------------------------------------------------------

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
        positions = visible if kept is None else kept.positions
        x, grid = self.tubelets(video, positions)
        # Under autocast the embedding is in half precision; residuals add up in the weights' own,
        # also where no learned positions would have raised them.
        x = x.to(self.tubelets.weight.dtype)
        x = self._add_positions(x, grid, positions)
        rotations = self._rotations(grid, positions, x.dtype)
        if self.config.variant == "factorized_encoder":
            out = self._factorized_encoder(x, grid, rotations, tokens)
        else:
            out = self._factorized_self_attention(x, grid, rotations, tokens)
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

    # -- positions -----------------------------------------------------------------------------

    def _make_positions(self) -> None:
        config, grid = self.config, self.config.grid
        width = config.embed_dim
        class_slots = int(bool(config.class_token))
        temporal_slots = int(config.pooling == "temporal_cls")
        self.spatial_positions = self.temporal_positions = self.joint_positions = None
        if config.spatial_positions == "learned":
            self.spatial_positions = _parameter(class_slots + grid.n, width)
        if config.temporal_positions == "learned" and self._attends_over_time:
            self.temporal_positions = _parameter(temporal_slots + grid.t, width)
        if config.joint_positions == "learned":
            self.joint_positions = _parameter(grid.t * grid.n, width)

    def _add_positions(self, x: Tensor, grid: Grid, visible: Tensor | None) -> Tensor:
        """Spatial and joint positions on patch tokens, and in Model 3 the temporal ones."""
        config = self.config
        space = self._spatial_table(grid, x.dtype, x.device)
        if space is not None:
            patches = space[-grid.n :]
            x = x + (patches if visible is None else patches[visible][:, None])
        if config.variant != "factorized_encoder":
            time = self._temporal_table(grid, x.dtype, x.device)
            if time is not None:
                x = x + time[:, None]
        if config.joint_positions is not None:
            if config.joint_positions == "sinusoidal":
                joint = sinusoidal_1d(grid.t * grid.n, config.embed_dim).to(x)
            else:
                assert self.joint_positions is not None
                self._check_grid(grid.t == config.grid.t and grid[1:] == config.grid[1:], grid)
                joint = self.joint_positions
            joint = rearrange(joint, "(t n) d -> t n d", t=grid.t)
            x = x + (joint if visible is None else joint[:, visible].transpose(0, 1))
        return x

    def _spatial_table(self, grid: Grid, dtype: torch.dtype, device: Any) -> Tensor | None:
        if self.config.spatial_positions == "sinusoidal":
            return sinusoidal_2d(grid, self.config.embed_dim).to(device, dtype)
        if self.spatial_positions is not None:
            self._check_grid(grid[1:] == self.config.grid[1:], grid)
        return self.spatial_positions

    def _temporal_table(self, grid: Grid, dtype: torch.dtype, device: Any) -> Tensor | None:
        """Positions of the time steps, after the slot of a temporal class token."""
        config = self.config
        if config.temporal_positions == "sinusoidal":
            table = sinusoidal_1d(grid.t, config.embed_dim).to(device, dtype)
            slots = int(self.temporal_class_token is not None)
            return torch.cat((table.new_zeros(slots, config.embed_dim), table))
        if self.temporal_positions is None:
            return None
        # Causal tokens know nothing of later ones, so a shorter clip is the start of a longer one.
        fits = grid.t <= config.grid.t if config.temporal_causal else grid.t == config.grid.t
        self._check_grid(fits, grid)
        return self.temporal_positions[: len(self.temporal_positions) - config.grid.t + grid.t]

    def _check_grid(self, fits: bool, grid: Grid) -> None:
        if not fits:
            raise ValueError(
                f"a clip of {grid.t}×{grid.h}×{grid.w} tokens does not fit the learned positions "
                f"of {'×'.join(map(str, self.config.grid))}; use num_frames "
                f"{self.config.num_frames} and image_size {self.config.image_size}, or rotary or "
                "sinusoidal positions"
            )

    def _rotations(
        self, grid: Grid, visible: Tensor | None, dtype: torch.dtype
    ) -> tuple[Rotation | None, Rotation | None]:
        """Rotary tables for sequences over space and over time, special tokens included."""
        config, device = self.config, self.tubelets.weight.device
        assert config.head_dim is not None
        space = time = None
        if config.spatial_positions == "rotary":
            space = rotation(
                spatial_coordinates(grid, device),
                config.head_dim, config.rotary_base_spatial, dtype,
            )  # fmt: skip
            if visible is not None:
                shape = "b v f -> (b t) 1 v f"
                space = Rotation(*(repeat(part[visible], shape, t=grid.t) for part in space))
            space = space.padded(config.register_tokens + int(bool(config.class_token)))
        if config.temporal_positions == "rotary":
            time = rotation(
                temporal_coordinates(grid, device),
                config.head_dim, config.rotary_base_temporal, dtype,
            )  # fmt: skip
            time = time.padded(config.register_tokens, int(self.temporal_class_token is not None))
        return space, time

    # -- Model 2 -------------------------------------------------------------------------------

    def _factorized_encoder(
        self,
        x: Float[Tensor, "b t n d"],
        grid: Grid,
        rotations: tuple[Rotation | None, Rotation | None],
        tokens: bool,
    ) -> EncoderOutput:
        config = self.config
        batch = len(x)
        by_frame = config.class_token or config.frame_pooling != "none"
        reads_tokens = not by_frame or (config.pooling in _OVER_TOKENS and config.class_token)
        tokens_through_time = tokens or bool(reads_tokens)
        class_only = bool(config.class_token) and not tokens_through_time

        x = rearrange(x, "b t n d -> (b t) n d")
        special = self._spatial_specials(len(x), x)
        x = torch.cat((special, x), dim=1) if special is not None else x
        for index, block in enumerate(self.spatial_blocks):
            last = index == len(self.spatial_blocks) - 1
            x = self._run(block, x, rotations[0], False, 1 if class_only and last else None)
        x = self.spatial_norm(x)
        x = rearrange(x, "(b t) n d -> b t n d", b=batch)

        # Position 0 of each time step is its frame vector, where there is one; patches follow.
        first_patch = config.register_tokens + int(bool(config.class_token))
        patches = x[:, :, first_patch:]
        frame = None
        if config.class_token:
            frame = x[:, :, 0]
        elif by_frame:
            flat = rearrange(patches, "b t n d -> (b t) n d")
            frame = rearrange(
                reduce_tokens(flat, config.frame_pooling), "(b t) d -> b t d", b=batch
            )
        parts = [] if frame is None else [frame[:, :, None]]
        if tokens_through_time:
            parts.append(patches)
        x, temporal_class = self._through_time(torch.cat(parts, dim=2), grid, rotations[1])

        cls = x[:, :, 0] if frame is not None else None
        patches = x[:, :, int(frame is not None) :]
        if config.pooling == "temporal_cls":
            assert temporal_class is not None
            pooled = temporal_class[:, 0]
        elif config.pooling == "cls_mean":
            assert cls is not None
            pooled = cls.mean(1)
        elif config.frame_pooling != "none":
            assert cls is not None
            pooled = self._pool(cls)
        else:
            pooled = self._pool(rearrange(patches, "b t n d -> b (t n) d"))
        return EncoderOutput(patches if tokens else None, cls, self.pooled_norm(pooled), grid)

    def _spatial_specials(self, frames: int, like: Tensor) -> Tensor | None:
        """[class, registers] of each time step, the class token with its position."""
        specials = []
        if self.class_token is not None:
            class_token: Tensor = self.class_token
            if self.spatial_positions is not None:
                class_token = class_token + self.spatial_positions[0]
            specials.append(class_token[None])
        if self.spatial_registers is not None:
            specials.append(self.spatial_registers)
        if not specials:
            return None
        return repeat(torch.cat(specials).to(like.dtype), "r d -> b r d", b=frames)

    def _through_time(
        self, x: Float[Tensor, "b t m d"], grid: Grid, time_rotation: Rotation | None
    ) -> tuple[Tensor, Tensor | None]:
        """The temporal transformer over [registers, time steps, temporal class] at m positions.

        The class token stands last, so that under a causal mask it sees all frames and no frame
        sees it.

        Returns:
            tokens (b, t, m, d), and the temporal class token at each position (b, m, d) or None.
        """
        if not self.temporal_blocks:
            return x, None
        batch = len(x)
        table = self._temporal_table(grid, x.dtype, x.device)
        if table is not None:
            x = x + table[len(table) - grid.t :, None]
        x = rearrange(x, "b t m d -> (b m) t d")
        parts = [x]
        if self.temporal_registers is not None:
            registers = self.temporal_registers.to(x.dtype)
            parts.insert(0, repeat(registers, "r d -> b r d", b=len(x)))
        if self.temporal_class_token is not None:
            class_token: Tensor = self.temporal_class_token
            if table is not None:
                class_token = class_token + table[0]
            parts.append(repeat(class_token.to(x.dtype), "d -> b 1 d", b=len(x)))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else x
        for block in self.temporal_blocks:
            x = self._run(block, x, time_rotation, self.config.temporal_causal)
        x = rearrange(self.temporal_norm(x), "(b m) t d -> b t m d", b=batch)
        before = self.config.register_tokens
        temporal_class = x[:, -1] if self.temporal_class_token is not None else None
        return x[:, before : before + grid.t], temporal_class

    # -- Model 3 -------------------------------------------------------------------------------

    def _factorized_self_attention(
        self,
        x: Float[Tensor, "b t n d"],
        grid: Grid,
        rotations: tuple[Rotation | None, Rotation | None],
        tokens: bool,
    ) -> EncoderOutput:
        b, t, n, d = x.shape
        if self.spatial_registers is None or self.temporal_registers is None:
            spatial, temporal = x.new_zeros(b, t, 0, d), x.new_zeros(b, 0, n, d)
        else:
            spatial = repeat(self.spatial_registers.to(x.dtype), "r d -> b t r d", b=b, t=t)
            temporal = repeat(self.temporal_registers.to(x.dtype), "r d -> b r n d", b=b, n=n)
        for block in self.blocks:
            x, spatial, temporal = self._run(block, x, spatial, temporal, *rotations)
        x = self.norm(x)
        pooled = self.pooled_norm(self._pool(rearrange(x, "b t n d -> b (t n) d")))
        return EncoderOutput(x if tokens else None, None, pooled, grid)

    # -- shared --------------------------------------------------------------------------------

    def _pool(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        if self.attention_pooling is not None:
            return self.attention_pooling(x)
        assert self.config.pooling is not None
        return reduce_tokens(x, self.config.pooling)

    def _token_norm(self) -> nn.Module:
        return norm_layer(self.config) if self.config.final_norm == "tokens" else nn.Identity()

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights: positions, class tokens and registers."""
        names = {"spatial_positions", "temporal_positions", "joint_positions", "class_token",
                 "temporal_class_token", "spatial_registers", "temporal_registers",
                 "attention_pooling.query"}  # fmt: skip
        return {name for name, _ in self.named_parameters() if name in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter names → depth, for timm's layer-wise learning rate decay."""
        stem = r"^(?:tubelets|class_token|spatial_positions|joint_positions|spatial_registers)"
        if self.config.variant != "factorized_encoder":
            stem = r"^(?:tubelets|\w+_positions|\w+_registers)"
            return {"stem": stem, "blocks": r"^blocks\.(\d+)", "norm": r"^norm"}
        return {
            "stem": stem,
            "spatial_blocks": r"^spatial_blocks\.(\d+)",
            "between": r"^(?:spatial_norm|temporal_positions|temporal_class_token|temporal_registers)",
            "temporal_blocks": r"^temporal_blocks\.(\d+)",
            "norm": r"^temporal_norm",
        }

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


_OVER_TOKENS = ("mean", "max", "sum", "first", "attention")


def _parameter(*shape: int, std: float = 0.02) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=std, a=-2 * std, b=2 * std))


def _drop_path_rates(config: ViViTConfig, depth: int) -> list[float]:
    return [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]


def create_encoder(name: str, **overrides: Any) -> ViViT:
    """A fresh encoder of a named size.

    Args:
        name: a size, see :func:`ssl_vivit.encoders.config.named_config`.
        overrides: settings of :class:`ViViTConfig` to change.

    Raises:
        ValueError: for an unknown size or setting, or values that do not fit each other.
    """
    return ViViT(named_config(name, **overrides))
