"""ViViTConfig: everything that defines an encoder's architecture, and the named sizes."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from ssl_vivit.grid import Grid

Variant = Literal["factorized_encoder", "factorized_self_attention"]
Positions = Literal["learned", "sinusoidal", "rotary", "none"]
Pooling = Literal["cls_mean", "mean", "max", "sum", "first", "temporal_cls", "attention"]


@dataclass(frozen=True)
class ViViTConfig:
    """Architecture of a ViViT encoder (Arnab et al. 2021, arXiv 2103.15691).

    Sizes are (time, height, width); frames are counted as the encoder receives them. Values left
    at ``None`` are resolved at construction, so that a saved config is always complete.

    Args:
        variant: ``factorized_encoder`` is the paper's Model 2 (Sec. 3.3), a spatial transformer
            within each time step followed by a temporal one; ``factorized_self_attention`` is
            Model 3, where each block attends over space, then over time.
        in_channels: 3 for colour, 1 for grey video.
        num_frames: frames in a clip.
        image_size: (H, W) in pixels.
        tubelet_size: pixels of one tubelet, (t, h, w).
        tubelet_stride: step between tubelets, at most tubelet_size (smaller overlaps);
            None is tubelet_size.
        tubelet_init: ``random``; ``central_frame`` and ``average`` inflate a random image kernel
            (Sec. 3.4), so a fresh encoder starts as an image encoder of the tubelet's middle frame
            or of its mean frame.
        temporal_padding: ``causal`` puts tubelet_size − tubelet_stride zero frames in front, so
            that token i ends at frame (i + 1) · stride − 1.
        remainder: what to do with pixels and frames that fill no tubelet: ``error`` or ``crop``.
        embed_dim: token width d.
        num_heads: attention heads.
        head_dim: width of a head; None is embed_dim / num_heads.
        mlp_ratio: hidden width of the MLP over embed_dim.
        depth: blocks of Model 3; None is 12. Not used by Model 2.
        spatial_depth: spatial blocks of Model 2; None is 8.
        temporal_depth: temporal blocks of Model 2; None is 4, and 0 is the paper's average pooling
            over frames (Table 3's baseline).
        attention_order: which attention comes first in a Model 3 block.
        block: ``pre_norm``, or ``parallel``: attention and MLP side by side from one
            normalisation (Dehghani et al. 2023, Sec. 2), in Model 2 with QKV and the MLP's input
            fused in one product.
        activation: of the MLP. ``gelu_tanh`` is flax's default GELU; ``swiglu`` gates.
        norm_eps: LayerNorm's epsilon.
        final_norm: LayerNorm on the ``tokens`` after each transformer, on the ``pooled`` vector
            only, or ``none``.
        qkv_bias: biases on queries, keys and values (and on the MLP's input where a parallel
            block fuses it with them).
        qk_norm: LayerNorm on queries and keys of each head.
        layer_scale: start of a learned scale on each residual branch; None is no scale.
        class_token: a class token for each time step (Model 2); None is on for Model 2.
        register_tokens: registers for each attention axis (Darcet et al. 2024).
        temporal_causal: time attention sees no later frame.
        spatial_positions: positions within a frame. Rotary is axial in (row, column).
        temporal_positions: positions in time. Rotary's unit is one tubelet stride.
        joint_positions: one table over all t·h·w tokens instead of the two above.
        rotary_base_spatial: base of rotary frequencies in space.
        rotary_base_temporal: base of rotary frequencies in time.
        pooling: how tokens become one vector. ``cls_mean`` is the mean over time of the class
            tokens; ``temporal_cls`` a class token of the temporal transformer (Model 2);
            ``mean``, ``max``, ``sum``, ``first`` and ``attention`` go over all tokens, or over the
            frame vectors where frame_pooling makes them. None is ``cls_mean`` with a class token,
            otherwise ``mean``.
        frame_pooling: Model 2 without a class token: pool space to one vector a time step,
            then attend over time.
        patch_dropout: share of tubes dropped in training; a dense output has zeros there.
        attention_dropout: dropout on attention weights in training.
        mlp_dropout: dropout in the MLP and on the output projections in training.
        drop_path: stochastic depth rate of the last block, rising linearly from 0.

    Raises:
        ValueError: for a value that does not fit; the message names the setting and the mend.
    """

    variant: Variant = "factorized_encoder"
    in_channels: int = 3
    num_frames: int = 20
    image_size: tuple[int, int] = (256, 256)
    tubelet_size: tuple[int, int, int] = (4, 16, 16)
    tubelet_stride: tuple[int, int, int] | None = None
    tubelet_init: Literal["central_frame", "average", "random"] = "random"
    temporal_padding: Literal["none", "causal"] = "none"
    remainder: Literal["error", "crop"] = "error"
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
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    class_token: bool | None = None
    register_tokens: int = 0
    temporal_causal: bool = False
    spatial_positions: Positions = "learned"
    temporal_positions: Positions = "learned"
    joint_positions: Literal["learned", "sinusoidal"] | None = None
    rotary_base_spatial: float = 100.0
    rotary_base_temporal: float = 10000.0
    pooling: Pooling | None = None
    frame_pooling: Literal["none", "mean", "max", "sum", "first"] = "none"
    patch_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "tubelet_size", "tubelet_stride"):
            value = getattr(self, name)
            if isinstance(value, list):
                self._set(name, tuple(value))
        self._check_choices()
        self._resolve()
        self._check_geometry()
        self._check_architecture()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_choices(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            allowed = _literals(hint)
            value = getattr(self, name)
            if allowed and value not in allowed:
                raise ValueError(f"{name} {value!r} is unknown; choose one of {_listed(allowed)}")

    def _resolve(self) -> None:
        model2 = self.variant == "factorized_encoder"
        defaults: dict[str, Any] = {
            "tubelet_stride": self.tubelet_size,
            "head_dim": max(self.embed_dim // max(self.num_heads, 1), 1),
            "depth": None if model2 else 12,
            "spatial_depth": 8 if model2 else None,
            "temporal_depth": 4 if model2 else None,
            "class_token": model2 and self.frame_pooling == "none",
        }
        if self.head_dim is None and self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} does not divide into num_heads {self.num_heads}; "
                "give head_dim, or another num_heads"
            )
        for name, value in defaults.items():
            if getattr(self, name) is None:
                self._set(name, value)
        if self.pooling is None:
            self._set("pooling", "cls_mean" if self.class_token else "mean")

    def _check_geometry(self) -> None:
        assert self.tubelet_stride is not None
        for name, length in (("image_size", 2), ("tubelet_size", 3), ("tubelet_stride", 3)):
            value = getattr(self, name)
            whole = isinstance(value, tuple) and all(type(v) is int and v > 0 for v in value)
            if not whole or len(value) != length:
                raise ValueError(f"{name} {value} must be {length} positive whole numbers")
        if any(s > p for s, p in zip(self.tubelet_stride, self.tubelet_size, strict=True)):
            raise ValueError(
                f"tubelet_stride {self.tubelet_stride} exceeds tubelet_size {self.tubelet_size}: "
                "pixels between tubelets would never be seen; use a stride of at most the size"
            )
        self.grid_of(self.num_frames, *self.image_size)

    def _check_architecture(self) -> None:
        model2 = self.variant == "factorized_encoder"
        for name, least in (
            ("in_channels", 1), ("embed_dim", 1), ("num_heads", 1), ("head_dim", 1),
            ("depth", 1), ("spatial_depth", 1), ("temporal_depth", 0), ("register_tokens", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} {value!r} must be a whole number of at least {least}")
        for name in ("patch_dropout", "attention_dropout", "mlp_dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} {getattr(self, name)} must lie in [0, 1)")
        if model2 and self.depth is not None:
            raise ValueError(
                f"depth {self.depth} is not a setting of factorized_encoder; "
                "give spatial_depth and temporal_depth"
            )
        if not model2:
            for name in ("spatial_depth", "temporal_depth"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is not a setting of {self.variant}; give depth")
            if self.class_token:
                raise ValueError(
                    f"class_token is not a setting of {self.variant}: its attention over time "
                    "would have no frames to relate; use pooling='mean' or 'attention'"
                )
            if self.frame_pooling != "none":
                raise ValueError(f"frame_pooling is not a setting of {self.variant}; use pooling")
        if self.attention_order != "space_time" and (model2 or self.block == "parallel"):
            raise ValueError(
                "attention_order is a setting of factorized_self_attention with pre_norm blocks; "
                "leave it out"
            )
        self._check_pooling(model2)
        self._check_positions()

    def _check_pooling(self, model2: bool) -> None:
        if self.pooling == "cls_mean" and not self.class_token:
            raise ValueError("pooling 'cls_mean' needs class_token; use pooling='mean'")
        if self.pooling == "temporal_cls" and not (model2 and self.temporal_depth):
            raise ValueError(
                "pooling 'temporal_cls' needs factorized_encoder with temporal_depth ≥ 1"
            )
        if self.frame_pooling != "none" and self.class_token:
            raise ValueError("frame_pooling and class_token exclude each other; set one of them")
        if self.pooling == "temporal_cls" and not self.class_token and self.frame_pooling == "none":
            raise ValueError(
                "pooling 'temporal_cls' attends over frame vectors; set class_token or "
                "frame_pooling"
            )

    def _check_positions(self) -> None:
        given = (self.spatial_positions, self.temporal_positions)
        if self.joint_positions is not None and given != ("none", "none"):
            raise ValueError(
                "joint_positions replaces spatial_positions and temporal_positions; set both of "
                "those to 'none'"
            )
        if self.embed_dim % 4 and self.spatial_positions == "sinusoidal":
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of 4 for sinusoidal positions"
            )
        if self.embed_dim % 2 and "sinusoidal" in (self.temporal_positions, self.joint_positions):
            raise ValueError(f"embed_dim {self.embed_dim} must be even for sinusoidal positions")
        assert self.head_dim is not None
        if self.spatial_positions == "rotary" and self.head_dim % 4:
            raise ValueError(
                f"head_dim {self.head_dim} must be a multiple of 4 for rotary spatial_positions"
            )
        if self.temporal_positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even for rotary temporal_positions")

    @property
    def grid(self) -> Grid:
        """The token grid of a clip of the configured size."""
        return self.grid_of(self.num_frames, *self.image_size)

    def grid_of(self, frames: int, height: int, width: int) -> Grid:
        """The token grid of a clip of T frames of H×W pixels.

        Raises:
            ValueError: where tubelets do not fill the clip and ``remainder`` is ``error``, or
                where not even one fits; the message names the sizes that would.
        """
        assert self.tubelet_stride is not None
        counts = []
        for axis, (name, size) in enumerate(
            (("num_frames", frames), ("image_size height", height), ("image_size width", width))
        ):
            kernel, stride = self.tubelet_size[axis], self.tubelet_stride[axis]
            padding = kernel - stride if axis == 0 and self.temporal_padding == "causal" else 0
            span = size + padding - kernel
            if span < 0 or (span % stride and self.remainder == "error"):
                below = size - span % stride if span >= 0 else None
                above = size + (-span) % stride if span >= 0 else kernel - padding
                fits = " or ".join(str(v) for v in (below, above) if v)
                crop = "" if span < 0 else ", or remainder='crop'"
                raise ValueError(
                    f"{name} {size} is not filled by tubelets of {kernel} at stride {stride} "
                    f"(tubelet_size, tubelet_stride); use {fits}{crop}"
                )
            counts.append(span // stride + 1)
        return Grid(*counts)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON-serialisable values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ViViTConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: for a setting that does not exist; the nearest and all names are listed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                raise ValueError(_unknown("encoder setting", name, names))
        return cls(**settings)


def _literals(hint: Any) -> list[Any]:
    """Allowed values of a ``Literal`` type, also inside a union with None; [] for other types."""
    if type(hint) is type(Literal["a"]):
        return list(get_args(hint))
    inner = get_args(hint)
    allowed = [value for part in inner for value in _literals(part)]
    return [*allowed, None] if allowed and type(None) in inner else allowed


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def _unknown(what: str, name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{what} {name!r} is unknown{hint} Known: {_listed(names)}"


# embed_dim, num_heads, spatial and temporal depth (Model 2); the other variants use their sum.
_WIDTHS: dict[str, tuple[int, int, int, int]] = {
    "vivit_tiny": (192, 3, 8, 4),
    "vivit_small": (384, 6, 8, 4),
    "vivit_base": (768, 12, 8, 4),
    "vivit_large": (1024, 16, 20, 4),
    "vivit_base_16x2": (768, 12, 12, 4),
    "vivit_large_16x2": (1024, 16, 24, 4),
    "vivit_neural_small": (192, 4, 4, 4),
    "vivit_neural_baseline": (384, 6, 6, 6),
}
_PAPER: dict[str, Any] = {
    "num_frames": 32,
    "image_size": (224, 224),
    "tubelet_size": (2, 16, 16),
    "tubelet_init": "central_frame",
    "activation": "gelu_tanh",
    "pooling": "temporal_cls",
}
_NEURAL: dict[str, Any] = {
    "in_channels": 1,
    "num_frames": 300,
    "image_size": (36, 64),
    "tubelet_size": (4, 4, 4),
    "temporal_padding": "causal",
    "temporal_causal": True,
    "block": "parallel",
    "class_token": False,
    "spatial_positions": "rotary",
    "temporal_positions": "rotary",
}


def named_config(name: str, **overrides: Any) -> ViViTConfig:
    """The configuration of a named size, with any of its settings overridden.

    Args:
        name: ``vivit_tiny``, ``vivit_small``, ``vivit_base``, ``vivit_large`` (the prefix may be
            left out), the paper's ``vivit_base_16x2`` and ``vivit_large_16x2``, or
            ``vivit_neural_small`` and ``vivit_neural_baseline`` for 36×64 grey stimuli.
        overrides: fields of :class:`ViViTConfig`.

    Raises:
        ValueError: for an unknown size or setting, naming those that exist.
    """
    if f"vivit_{name}" in _WIDTHS:
        name = f"vivit_{name}"
    if name not in _WIDTHS:
        raise ValueError(_unknown("encoder size", name, list(_WIDTHS)))
    embed_dim, num_heads, spatial_depth, temporal_depth = _WIDTHS[name]
    settings: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads}
    if name.endswith("16x2"):
        settings |= _PAPER
    if name.startswith("vivit_neural"):
        settings |= _NEURAL
    if overrides.get("variant", "factorized_encoder") == "factorized_encoder":
        settings |= {"spatial_depth": spatial_depth, "temporal_depth": temporal_depth}
    else:
        settings["depth"] = spatial_depth + temporal_depth
        settings.pop("pooling", None)
    return ViViTConfig.from_dict(settings | overrides)


def sizes() -> list[str]:
    """Names that :func:`named_config` and ``create_encoder`` know."""
    return list(_WIDTHS)
