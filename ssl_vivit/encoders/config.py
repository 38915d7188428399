"""ViViTConfig: the settings of an encoder's architecture."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal

from ssl_vivit.grid import Grid
from ssl_vivit.settings import check_types, listed

# Larger sizes are refused as mistakes: without a bound they could fill the memory.
_MOST, _MOST_BLOCKS = 1_000_000, 1_000
_LARGEST_RATIO = 1_000

Variant = Literal[
    "joint", "factorized_encoder", "factorized_self_attention", "factorized_dot_product"
]
Positions = Literal["learned", "sinusoidal", "rotary", "none"]
Pooling = Literal["cls_mean", "mean", "max", "sum", "first", "temporal_cls", "attention"]


@dataclass(frozen=True)
class ViViTConfig:
    """Architecture of a ViViT encoder (Arnab et al. 2021, arXiv 2103.15691).

    Sizes are (time, height, width). Settings that are ``None`` get their value at construction, so
    that a saved config is complete.

    Args:
        variant: the paper's models (Sec. 3.3). ``joint`` is Model 1, attention over all tokens at
            once; ``factorized_encoder`` Model 2, a spatial transformer within each time step
            followed by a temporal one; ``factorized_self_attention`` Model 3: each block attends
            over space, then over time; ``factorized_dot_product`` Model 4: half of the heads attend
            over time and half over space.
        in_channels: 3 for colour, 1 for grey video.
        num_frames: frames in a clip.
        image_size: (H, W) in pixels; an int stands for both.
        tubelet_size: size of a tubelet (t, h, w), in frames and pixels.
        tubelet_stride: step between tubelets (t, h, w), at most tubelet_size; smaller steps make
            tubelets overlap. None is tubelet_size.
        tubelet_embedding: ``tubelet``, or ``uniform_frames``: each token is a patch of one frame,
            and the frames are spread evenly over the clip (Sec. 3.2).
        sampled_frames: number of frames that uniform_frames samples from a clip of any length; None
            is one for every tubelet_size[0] frames.
        tubelet_init: initial tubelet kernel: ``random``, or a random image kernel (Sec. 3.4)
            applied to the tubelet's middle frame (``central_frame``) or to its mean frame
            (``average``).
        temporal_padding: ``none``, or ``causal``: size − stride frames of zeros are added before a
            clip, with the temporal size and stride of a tubelet. The tubelet of time step i then
            ends at frame (i + 1) · stride − 1.
        remainder: what to do with pixels and frames that do not fill a tubelet: ``error`` raises,
            ``crop`` drops them, ``pad`` adds zeros: in space half on each side, in time before the
            clip, so that the last token ends at the last frame.
        embed_dim: token width d.
        num_heads: attention heads.
        head_dim: width of a head; None is embed_dim / num_heads.
        mlp_ratio: hidden width of the MLP divided by embed_dim.
        depth: number of blocks of Models 1, 3 and 4; None is 12. Not used by Model 2.
        spatial_depth: number of spatial blocks of Model 2; None is 8.
        temporal_depth: number of temporal blocks of Model 2; None is 4; 0 averages over frames (the
            baseline of Table 3).
        attention_order: order of the two attentions in a block of Model 3, ``space_time`` or
            ``time_space``.
        block: ``pre_norm``, or ``parallel``: attention and MLP side by side from one
            normalisation, with queries, keys, values and the MLP's input from one product
            (Dehghani et al. 2023, Sec. 2).
        activation: activation of the MLP. ``gelu_tanh`` is flax's default GELU; ``swiglu`` is
            gated.
        norm_eps: epsilon of LayerNorm.
        final_norm: LayerNorm on the ``tokens`` after each transformer, on the ``pooled`` vector
            only, or ``none``.
        pooled_norm_eps: epsilon of the norm on the pooled vector, with final_norm ``pooled``; None
            is norm_eps.
        qkv_bias: use biases on queries, keys and values; in a ``parallel`` block also on the
            MLP's input.
        qk_norm: LayerNorm on queries and keys of each head.
        layer_scale: initial value of a learned scale on each residual branch; None is no scale.
        class_token: use a class token for each time step (Model 2) or for the clip (Model 1); None
            is True for these two. Models 3 and 4 have no class token.
        register_tokens: number of register tokens in each attended sequence (Darcet et al. 2024).
        temporal_causal: tokens do not attend to tokens of later time steps.
        spatial_positions: positions within a frame. Rotary is axial in (row, column). None is
            ``learned``, or ``none`` if joint_positions is set.
        temporal_positions: positions in time. The unit of rotary is one tubelet stride. In Model 1
            the components of each head are divided between rotary positions in time and rotary
            spatial_positions. None is ``learned``, or ``none`` if joint_positions is set.
        joint_positions: one table over all t·h·w tokens, instead of spatial_positions and
            temporal_positions.
        interpolate_positions: resample learned tables for clips of another size than configured;
            if False, such clips raise ValueError. With temporal_causal, shorter clips use the start
            of the table in time, and longer clips raise ValueError, since a token's position must
            not depend on the number of later tokens.
        rotary_base_spatial: base of rotary frequencies in space.
        rotary_base_temporal: base of rotary frequencies in time.
        pooling: how tokens are reduced to one vector. ``cls_mean`` is the mean over time of the
            class tokens (Model 1 has one); ``temporal_cls`` is a class token of the temporal
            transformer (Model 2); ``mean``, ``max``, ``sum``, ``first`` and ``attention`` reduce
            all tokens, or the frame vectors of frame_pooling. None is ``cls_mean`` with a class
            token, else ``mean``.
        frame_pooling: in Model 2 without a class token, pool each time step to one vector before
            attention over time.
        patch_dropout: fraction of spatial positions dropped in training, for all time steps; a
            dense output has zeros there.
        attention_dropout: dropout on attention weights in training.
        mlp_dropout: dropout in the MLP and on the output projections in training.
        drop_path: stochastic depth rate of the last block, rising linearly from 0.

    Raises:
        ValueError: if a value is out of range or settings do not fit each other; the message names
            the setting and the fix.
    """

    variant: Variant = "factorized_encoder"
    in_channels: int = 3
    num_frames: int = 20
    image_size: tuple[int, int] = (256, 256)
    tubelet_size: tuple[int, int, int] = (4, 16, 16)
    tubelet_stride: tuple[int, int, int] | None = None
    tubelet_embedding: Literal["tubelet", "uniform_frames"] = "tubelet"
    sampled_frames: int | None = None
    tubelet_init: Literal["central_frame", "average", "random"] = "random"
    temporal_padding: Literal["none", "causal"] = "none"
    remainder: Literal["error", "crop", "pad"] = "error"
    embed_dim: int = 384
    num_heads: int = 6
    head_dim: int | None = None
    mlp_ratio: float = 4.0
    depth: int | None = None
    spatial_depth: int | None = None
    temporal_depth: int | None = None
    attention_order: Literal["space_time", "time_space"] = "space_time"
    block: Literal["pre_norm", "parallel"] = "pre_norm"
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    norm_eps: float = 1e-6
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    pooled_norm_eps: float | None = None
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    class_token: bool | None = None
    register_tokens: int = 0
    temporal_causal: bool = False
    spatial_positions: Positions | None = None
    temporal_positions: Positions | None = None
    joint_positions: Literal["learned", "sinusoidal"] | None = None
    interpolate_positions: bool = False
    rotary_base_spatial: float = 100.0
    rotary_base_temporal: float = 10000.0
    pooling: Pooling | None = None
    frame_pooling: Literal["none", "mean", "max", "sum", "first"] = "none"
    patch_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if type(self.image_size) is int:
            self._set("image_size", (self.image_size, self.image_size))
        for name in ("image_size", "tubelet_size", "tubelet_stride"):
            value = getattr(self, name)
            if isinstance(value, list):
                self._set(name, tuple(value))
        self._check_values()
        self._resolve()
        self._check_geometry()
        self._check_architecture()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_values(self) -> None:
        """Check the range of each setting."""
        check_types(self)
        for name, least in (
            ("in_channels", 1), ("embed_dim", 1), ("num_heads", 1), ("head_dim", 1),
            ("depth", 1), ("spatial_depth", 1), ("temporal_depth", 0), ("register_tokens", 0),
            ("num_frames", 1), ("sampled_frames", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} {value} must be a whole number of at least {least}")
            most = _MOST_BLOCKS if name.endswith("depth") else _MOST
            if value is not None and value > most:
                raise ValueError(f"{name} {value} must be a whole number of at most {most:,}")
        for name in (
            "mlp_ratio", "norm_eps", "pooled_norm_eps", "rotary_base_spatial",
            "rotary_base_temporal",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} {value} must be positive and finite")
        if self.mlp_ratio > _LARGEST_RATIO:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} must be at most {_LARGEST_RATIO:,}")
        if self.layer_scale is not None and not math.isfinite(self.layer_scale):
            raise ValueError(f"layer_scale {self.layer_scale} must be finite")
        for name in ("patch_dropout", "attention_dropout", "mlp_dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} {getattr(self, name)} must lie in [0, 1)")

    def _resolve(self) -> None:
        model2 = self.variant == "factorized_encoder"
        defaults: dict[str, Any] = {
            "tubelet_stride": self.tubelet_size,
            "head_dim": max(self.embed_dim // max(self.num_heads, 1), 1),
            "depth": None if model2 else 12,
            "spatial_depth": 8 if model2 else None,
            "temporal_depth": 4 if model2 else None,
            "class_token": self.variant == "joint" or (model2 and self.frame_pooling == "none"),
            "spatial_positions": "none" if self.joint_positions else "learned",
            "temporal_positions": "none" if self.joint_positions else "learned",
        }
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; "
                "give head_dim, or another num_heads"
            )
        for name, value in defaults.items():
            if getattr(self, name) is None:
                self._set(name, value)
        if self.pooling is None:
            self._set("pooling", "cls_mean" if self.class_token else "mean")

    def _check_geometry(self) -> None:
        for name, length in (("image_size", 2), ("tubelet_size", 3), ("tubelet_stride", 3)):
            value = getattr(self, name)
            whole = isinstance(value, tuple) and all(
                type(v) is int and 0 < v <= _MOST for v in value
            )
            if not whole or len(value) != length:
                example = [4, 16, 16][-length:]
                raise ValueError(
                    f"{name} {value} must be {length} positive whole numbers, such as {example}"
                )
        assert self.tubelet_stride is not None
        if any(s > p for s, p in zip(self.tubelet_stride, self.tubelet_size, strict=True)):
            raise ValueError(
                f"tubelet_stride {self.tubelet_stride} exceeds tubelet_size {self.tubelet_size}, "
                "which "
                "would skip pixels; use a stride of at most the size"
            )
        if self.tubelet_embedding == "uniform_frames":
            self._check_uniform_frames()
        elif self.sampled_frames is not None:
            raise ValueError(
                "sampled_frames is a setting of tubelet_embedding='uniform_frames'; omit it"
            )
        self.grid_of(self.num_frames, *self.image_size)

    def _check_uniform_frames(self) -> None:
        assert self.tubelet_stride is not None
        if self.tubelet_stride[0] != self.tubelet_size[0]:
            raise ValueError(
                f"tubelet_stride {self.tubelet_stride} overlaps in time, but tubelet_embedding "
                f"'uniform_frames' embeds single frames; use {self.tubelet_size[0]} as its first "
                "number, or tubelet_embedding 'tubelet'"
            )
        if self.temporal_causal or self.temporal_padding == "causal":
            raise ValueError(
                "tubelet_embedding 'uniform_frames' cannot be causal, since the sampled frames "
                "depend on the length of the clip; use tubelet_embedding 'tubelet', or set neither "
                "temporal_causal nor temporal_padding"
            )

    def _check_architecture(self) -> None:
        model2 = self.variant == "factorized_encoder"
        if model2 and self.depth is not None:
            raise ValueError(
                f"depth {self.depth} is not a setting of factorized_encoder; set depth to null and "
                "give spatial_depth and temporal_depth"
            )
        if not model2:
            given = [n for n in ("spatial_depth", "temporal_depth") if getattr(self, n) is not None]
            if given:
                raise ValueError(
                    f"{' and '.join(given)} "
                    f"{'are not settings' if len(given) > 1 else 'is not a setting'} "
                    f"of {self.variant}; set {' and '.join(given)} to null and give depth"
                )
            if self.class_token and self.variant != "joint":
                raise ValueError(
                    f"class_token is not supported by {self.variant}, whose attention over time "
                    "needs tokens at all time steps; use pooling='mean' or 'attention'"
                )
            if self.frame_pooling != "none":
                raise ValueError(f"frame_pooling is not a setting of {self.variant}; use pooling")
        if self.variant == "factorized_dot_product" and self.num_heads % 2:
            raise ValueError(
                f"num_heads {self.num_heads} must be even for factorized_dot_product: half of them "
                f"attend over time and half over space; use {self.num_heads + 1}"
            )
        in_turn = self.variant == "factorized_self_attention" and self.block == "pre_norm"
        if self.attention_order != "space_time" and not in_turn:
            raise ValueError(
                "attention_order is a setting of factorized_self_attention with pre_norm blocks; "
                "omit it"
            )
        if self.pooled_norm_eps is not None and self.final_norm != "pooled":
            raise ValueError(
                f"pooled_norm_eps {self.pooled_norm_eps} is a setting of final_norm='pooled'; "
                "omit it"
            )
        self._check_pooling(model2)
        self._check_positions()

    def _check_pooling(self, model2: bool) -> None:
        if self.pooling == "cls_mean" and not self.class_token:
            raise ValueError("pooling 'cls_mean' needs class_token; use pooling='mean'")
        if self.pooling == "temporal_cls" and not (model2 and self.temporal_depth):
            raise ValueError(
                "pooling 'temporal_cls' needs factorized_encoder with temporal_depth of at least 1; "
                "use pooling='mean'"
            )
        if self.frame_pooling != "none" and self.class_token:
            raise ValueError("frame_pooling and class_token cannot both be set; set one of them")
        if self.pooling == "temporal_cls" and not self.class_token and self.frame_pooling == "none":
            raise ValueError(
                "pooling 'temporal_cls' needs a vector for each time step; set class_token or "
                "frame_pooling"
            )

    def _check_positions(self) -> None:
        given = (self.spatial_positions, self.temporal_positions)
        if self.joint_positions is not None and given != ("none", "none"):
            raise ValueError(
                "joint_positions replaces spatial_positions and temporal_positions; omit these two"
            )
        assert self.head_dim is not None
        rotary = given.count("rotary")
        if self.variant == "joint" and rotary == 2 and (self.head_dim % 2 or self.head_dim < 6):
            raise ValueError(
                f"head_dim {self.head_dim} must be even and at least 6 for rotary "
                "spatial_positions and temporal_positions with variant joint"
            )
        if self.embed_dim % 4 and self.spatial_positions == "sinusoidal":
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of 4 for sinusoidal positions"
            )
        if self.embed_dim % 2 and "sinusoidal" in (self.temporal_positions, self.joint_positions):
            raise ValueError(f"embed_dim {self.embed_dim} must be even for sinusoidal positions")
        if self.variant == "joint" and rotary == 2:
            return
        if self.spatial_positions == "rotary" and self.head_dim % 4:
            raise ValueError(
                f"head_dim {self.head_dim} must be a multiple of 4 for rotary spatial_positions"
            )
        if self.temporal_positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even for rotary temporal_positions")

    @property
    def grid(self) -> Grid:
        """Token grid (t, h, w) of a clip of the configured size."""
        return self.grid_of(self.num_frames, *self.image_size)

    def grid_of(self, frames: int, height: int, width: int) -> Grid:
        """Return the token grid (t, h, w) of a clip, whose size is given in frames and pixels.

        Raises:
            ValueError: if tubelets do not fill the clip and ``remainder`` is ``error``, or if the
                clip is smaller than a tubelet. The message lists sizes that fit.
        """
        assert self.tubelet_stride is not None
        counts, misfits, mend = [], [], ""
        padding = self.padding_of(frames, height, width)
        for axis, (name, size) in enumerate(
            (("num_frames", frames), ("image_size height", height), ("image_size width", width))
        ):
            if axis == 0 and self.sampled_frames is not None:
                counts.append(len(self.frames_of(size)))
                continue
            kernel, stride = self.tubelet_size[axis], self.tubelet_stride[axis]
            padded = sum(padding[axis])
            span = size + padded - kernel
            if span < 0 or (span % stride and self.remainder == "error"):
                below = size - span % stride if span >= 0 else None
                above = size + (-span) % stride if span >= 0 else kernel - padded
                fits = " or ".join(str(v) for v in (below, above) if v)
                misfits.append(
                    f"{name} {size} is not filled by tubelets of {kernel} at stride {stride}, "
                    f"use {fits}"
                )
                mend = mend if span < 0 else ", or remainder='crop' or 'pad'"
            counts.append(span // stride + 1)
        if misfits:
            raise ValueError("; ".join(misfits) + mend)
        if self.tubelet_embedding == "uniform_frames":
            counts[0] = len(self.frames_of(frames))
        return Grid(*counts)

    def padding_of(
        self, frames: int, height: int, width: int
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return the zero padding (before, after) of a clip along time, height and width."""
        assert self.tubelet_stride is not None
        padding = []
        for axis, size in enumerate((frames, height, width)):
            kernel, stride = self.tubelet_size[axis], self.tubelet_stride[axis]
            sampled = axis == 0 and self.tubelet_embedding == "uniform_frames"
            causal = kernel - stride if axis == 0 and self.temporal_padding == "causal" else 0
            missing = 0
            # Do not pad an empty clip, so that grid_of raises an error for it.
            if self.remainder == "pad" and not sampled and size > 0:
                span = size + causal - kernel
                missing = -span if span < 0 else -span % stride
            before = causal + missing if axis == 0 else missing // 2
            padding.append((before, causal + missing - before))
        time, down, across = padding
        return time, down, across

    @property
    def kernel_size(self) -> tuple[int, int, int]:
        """Size (t, h, w) of the embedding kernel: tubelet_size, with t = 1 for uniform_frames."""
        if self.tubelet_embedding == "uniform_frames":
            return (1, *self.tubelet_size[1:])
        return self.tubelet_size

    @property
    def kernel_stride(self) -> tuple[int, int, int]:
        """Step (t, h, w) between tokens: tubelet_stride, with t = 1 for uniform_frames."""
        assert self.tubelet_stride is not None
        if self.tubelet_embedding == "uniform_frames":
            return (1, *self.tubelet_stride[1:])
        return self.tubelet_stride

    def frames_of(self, frames: int) -> list[int]:
        """Return the indices of the frames that ``uniform_frames`` samples from T frames."""
        return uniform_frames(frames, self.sampled_frames or max(frames // self.tubelet_size[0], 1))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-serialisable values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ViViTConfig:
        """Make a config from the settings that :meth:`to_dict` returned.

        Raises:
            ValueError: for an unknown setting; the message has the most similar setting and the
                names of all settings.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                raise ValueError(unknown_name("encoder setting", name, names))
        return cls(**settings)


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """Return indices of frames spread evenly over a clip (Arnab et al. 2021, Sec. 3.2).

    The indices are the boundaries between count + 1 equal parts of the clip, rounded half to even,
    as in google-research/scenic. Floating-point rounding can add a last index, also in scenic, so
    that count + 1 indices are returned.

    Args:
        num_frames: number of frames T of the clip.
        count: number of frames to sample; all frames of shorter clips are returned.
    """
    if num_frames <= count:
        return list(range(num_frames))
    step = num_frames / (count + 1)
    # Equal to numpy.arange, but constant for torch.compile and torch.export, which trace numpy.
    points = math.ceil((num_frames - step) / step)
    return [min(round(step + i * step), num_frames - 1) for i in range(points)]


# timm's names of settings → their names in ViViTConfig.
TIMM_SETTINGS = {
    "in_chans": "in_channels",
    "img_size": "image_size",
    "drop_path_rate": "drop_path",
    "patch_drop_rate": "patch_dropout",
    "attn_drop_rate": "attention_dropout",
    "proj_drop_rate": "mlp_dropout",
    "global_pool": "pooling",
}


def unknown_name(what: str, name: str, names: list[str]) -> str:
    """Return an error message for an unknown name: the most similar name and all known names."""
    # Tubelets are the patches of a video.
    elsewhere = {**TIMM_SETTINGS, "patch_size": "tubelet_size"}.get(name)
    near = [elsewhere] if elsewhere in names else difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{what} {name!r} is unknown{hint} Known: {listed(names)}"
