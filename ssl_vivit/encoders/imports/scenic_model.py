"""Read the architecture of a Scenic ViViT from its arrays and its config."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# attention_config.type → variant in ViViTConfig.
KINDS = {
    "spacetime": "joint",
    "factorized_encoder": "factorized_encoder",
    "factorized_self_attention_block": "factorized_self_attention",
    "factorized_dot_product_attention": "factorized_dot_product",
}
CLASSIFIERS = ("token", "0", "gap", "gmp", "gsp")


@dataclass(frozen=True)
class ScenicTransformer:
    """Size of a transformer.

    Args:
        depth: number of blocks.
        num_heads: number of attention heads.
        head_dim: width of a head.
        mlp_dim: hidden width of the MLP.
    """

    depth: int
    num_heads: int
    head_dim: int
    mlp_dim: int


@dataclass(frozen=True)
class ScenicModel:
    """Architecture of a Scenic ViViT.

    Args:
        kind: type of attention, ``attention_config.type`` of Scenic's config.
        classifier: input of the head: ``token`` (a class token), ``0`` (the first token), or the
            mean (``gap``), maximum (``gmp``) or sum (``gsp``) of the tokens.
        attention_order: time_space or space_time for Model 3; "" for the other models.
        kernel: (t, h, w) of a patch; t is 1 if frames are sampled.
        channels: number of channels of the video.
        width: width of a token.
        sampled_frames: number of frames that are sampled from a clip; None for tubelets.
        transformers: mapping from the name to the size of each transformer. Model 2 has
            SpatialTransformer and, unless it averages over frames, TemporalTransformer; other
            models have Transformer.
        representation_size: width of pre_logits, or None.
        num_classes: width of output_projection; 0 if there is none.
    """

    kind: str
    classifier: str
    attention_order: str
    kernel: tuple[int, int, int]
    channels: int
    width: int
    sampled_frames: int | None
    transformers: dict[str, ScenicTransformer]
    representation_size: int | None
    num_classes: int

    @property
    def class_slots(self) -> int:
        """Return the number of class tokens before the patches of a sequence."""
        return int(self.classifier == "token")


def scenic_model(params: Mapping[str, np.ndarray], model_config: Mapping[str, Any]) -> ScenicModel:
    """Read the architecture of a model from its arrays, and check it against its config.

    Args:
        params: '/'-joined flax names → arrays.
        model_config: the model part of a Scenic config, as plain dicts. Settings that can be read
            from the arrays may be missing.

    Raises:
        ValueError: if arrays and config disagree, or do not determine the model.
    """
    kind = _kind(params, model_config.get("attention_config") or {})
    embedding = _shape(params, "embedding/kernel", (4, 5))
    t, h, w = (1, *embedding[:2]) if len(embedding) == 4 else embedding[:3]
    patches = (model_config.get("patches") or {}).get("size")
    if patches is not None:
        found = (h, w, t) if len(embedding) == 5 else (h, w)
        _check_equal("patches.size", tuple(patches), found)
    _check_equal("hidden_size", model_config.get("hidden_size"), embedding[-1])
    layer = "pre_logits/kernel"
    size = _shape(params, layer, (2,))[1] if layer in params else None
    if "representation_size" in model_config:
        _check_equal(
            "representation_size", model_config["representation_size"] or None, size, none=True
        )
    head = "output_projection/kernel"
    classifier = _classifier(params, model_config)
    if classifier in ("token", "0") and KINDS[kind] not in ("joint", "factorized_encoder"):
        raise ValueError(f"classifier {classifier!r} is not supported by {kind}; set it to gap")
    return ScenicModel(
        kind=kind,
        classifier=classifier,
        attention_order=_order(kind, model_config.get("attention_config") or {}),
        kernel=(t, h, w),
        channels=embedding[-2],
        width=embedding[-1],
        sampled_frames=_sampled_frames(params, model_config, len(embedding) == 4),
        transformers=_transformers(params, model_config, kind),
        representation_size=size,
        num_classes=_shape(params, head, (2,))[1] if head in params else 0,
    )


def video_shape_of(
    params: Mapping[str, np.ndarray], model: ScenicModel
) -> tuple[int, int, int, int]:
    """Return the shape (T, H, W, C) of a Model 2's clips, assuming a square grid of tokens.

    Raises:
        ValueError: if the arrays do not determine the shape.
    """
    mend = (
        "give the shape (T, H, W) of the clips it was trained on, by --video-shape or video_shape"
    )
    counts = []
    for name in ("SpatialTransformer", "TemporalTransformer"):
        table = f"{name}/posembed_input/pos_embedding"
        if table not in params:
            raise ValueError(
                f"the arrays of this {model.kind} do not determine the size of its clips; {mend}"
            )
        counts.append(_shape(params, table, (3,))[1] - model.class_slots)
    side = round(counts[0] ** 0.5)
    if side * side != counts[0]:
        raise ValueError(f"{counts[0]} spatial positions do not form a square grid; {mend}")
    t, h, w = model.kernel
    return counts[1] * t, side * h, side * w, model.channels


def _kind(params: Mapping[str, np.ndarray], attention: Mapping[str, Any]) -> str:
    if any(name.startswith("SpatialTransformer/") for name in params):
        possible = ["factorized_encoder"]
    elif any("/MultiHeadDotProductAttention_time/" in name for name in params):
        possible = ["factorized_self_attention_block"]
    elif any(name.startswith("Transformer/") for name in params):
        possible = ["spacetime"]
        if "cls" not in params:
            possible.append("factorized_dot_product_attention")
    else:
        names = ", ".join(list(params)[:10]) or "nothing"
        raise ValueError(f"the arrays do not belong to a Scenic ViViT: {names}")
    given = attention.get("type")
    if given is not None and given not in KINDS:
        raise ValueError(
            f"attention_config.type {given!r} is unknown; it must be one of {', '.join(KINDS)}"
        )
    if given is not None and given not in possible:
        raise ValueError(
            f"attention_config.type is {given}, but the arrays belong to {' or '.join(possible)}; "
            "give the config of this checkpoint"
        )
    if given is None and len(possible) > 1:
        raise ValueError(
            f"the arrays could belong to {' or '.join(possible)}; give attention_config.type"
        )
    return given or possible[0]


def _classifier(params: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> str:
    given = config.get("classifier")
    has_token = "cls" in params or "cls_SpatialTransformer" in params
    if given is None and not has_token:
        raise ValueError(
            "the arrays have no class token and do not determine the pooling; set classifier to "
            "gap, gmp, gsp or 0"
        )
    classifier = "token" if given is None else str(given)
    if classifier not in CLASSIFIERS:
        raise ValueError(
            f"classifier {given!r} is unknown; it must be one of {', '.join(CLASSIFIERS)}"
        )
    return classifier


def _order(kind: str, attention: Mapping[str, Any]) -> str:
    if KINDS[kind] != "factorized_self_attention":
        return ""
    order = attention.get("attention_order")
    if order not in ("time_space", "space_time"):
        raise ValueError(
            f"attention_config.attention_order {order!r} must be time_space or space_time; it "
            "cannot be read from the arrays"
        )
    return str(order)


def _sampled_frames(
    params: Mapping[str, np.ndarray], config: Mapping[str, Any], of_frames: bool
) -> int | None:
    encoding = config.get("temporal_encoding_config") or {}
    method = "temporal_sampling" if of_frames else "3d_conv"
    _check_equal("temporal_encoding_config.method", encoding.get("method"), method)
    if not of_frames:
        return None
    count = encoding.get("n_sampled_frames")
    if count is None:
        raise ValueError(
            "the model embeds sampled frames, but the arrays do not determine their number; give "
            "temporal_encoding_config.n_sampled_frames"
        )
    return int(count)


def _transformers(
    params: Mapping[str, np.ndarray], config: Mapping[str, Any], kind: str
) -> dict[str, ScenicTransformer]:
    if kind != "factorized_encoder":
        return {"Transformer": _transformer(params, "Transformer", config)}
    spatial_only = (config.get("attention_config") or {}).get("spatial_only_baseline")
    if spatial_only is None:
        spatial_only = not any(name.startswith("TemporalTransformer/") for name in params)
    names = ("spatial",) if spatial_only else ("spatial", "temporal")
    return {
        f"{name.title()}Transformer": _transformer(
            params,
            f"{name.title()}Transformer",
            config.get(f"{name}_transformer") or {},
            f"{name}_transformer.",
        )
        for name in names
    }


def _transformer(
    params: Mapping[str, np.ndarray], name: str, config: Mapping[str, Any], prefix: str = ""
) -> ScenicTransformer:
    pattern = re.compile(rf"{name}/encoderblock_(\d+)/(?:(.*)/query/kernel|(.*)/Dense_0/kernel)?")
    blocks: set[str] = set()
    heads = mlps = None
    for key in params:
        match = pattern.match(key)
        if match is None:
            continue
        blocks.add(match[1])
        if match[2] is not None:
            heads = heads or _shape(params, key, (3,))[1:]
        if match[3] is not None:
            mlps = mlps or _shape(params, key, (2,))[1:]
    if heads is None or mlps is None:
        raise ValueError(f"{name} has no blocks with attention and an MLP in the arrays")
    _check_equal(f"{prefix}num_heads", config.get("num_heads"), heads[0])
    _check_equal(f"{prefix}mlp_dim", config.get("mlp_dim"), mlps[0])
    given = config.get("num_layers") or 0
    if 0 < given < len(blocks):
        # The published ViViT-B factorised encoder has 12 + 4 blocks in its config, but 12 + 12 in
        # its file.
        warnings.warn(
            f"{prefix}num_layers is {given}, but the checkpoint has {len(blocks)} blocks in "
            f"{name}; all of them are used",
            stacklevel=5,
        )
    return ScenicTransformer(max(len(blocks), given), heads[0], heads[1], mlps[0])


def _shape(
    params: Mapping[str, np.ndarray], name: str, dimensions: tuple[int, ...]
) -> tuple[int, ...]:
    if name not in params:
        raise ValueError(f"the arrays do not belong to a Scenic ViViT: {name} is missing")
    shape = np.shape(params[name])
    if len(shape) not in dimensions:
        counts = " or ".join(map(str, dimensions))
        raise ValueError(f"{name} has shape {shape}, but must have {counts} dimensions")
    return tuple(shape)


def _check_equal(name: str, given: Any, found: Any, none: bool = False) -> None:
    """Raise ValueError if a setting has different values in config and arrays.

    Args:
        name: name of the setting.
        given: value in the config. None is not compared unless ``none`` is True.
        found: value read from the arrays.
        none: compare ``given`` even if it is None.
    """
    if (given is not None or none) and given != found:
        raise ValueError(
            f"{name} is {given} in the config but {found} in the arrays; give the config of this "
            "checkpoint"
        )
