"""The named sizes of encoders."""

from __future__ import annotations

from typing import Any

from ssl_vivit.encoders.config import ViViTConfig, unknown_name

# embed_dim, num_heads, spatial and temporal depth of Model 2; the depth of other models is the sum.
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
    """Return the config of a named size, with settings overridden.

    In Models 1, 3 and 4 the number of blocks is the sum of Model 2's spatial and temporal blocks.
    In the paper's sizes it is the number of Model 2's spatial blocks, and one learned table has the
    positions of all tokens. Model 4 needs an even number of heads, so ``vivit_tiny`` has 4 heads in
    Model 4 and 3 heads in the others.

    Args:
        name: ``vivit_tiny``, ``vivit_small``, ``vivit_base`` or ``vivit_large``; the paper's sizes
            ``vivit_base_16x2`` or ``vivit_large_16x2``; or ``vivit_neural_small`` or
            ``vivit_neural_baseline`` for grey stimuli of 36×64 pixels. The prefix ``vivit_`` is
            optional.
        overrides: settings of :class:`ViViTConfig` to change.

    Raises:
        ValueError: for an unknown size or setting; the message lists the known ones.
    """
    if f"vivit_{name}" in _WIDTHS:
        name = f"vivit_{name}"
    if name not in _WIDTHS:
        raise ValueError(unknown_name("encoder size", name, list(_WIDTHS)))
    embed_dim, num_heads, spatial_depth, temporal_depth = _WIDTHS[name]
    variant = overrides.get("variant", "factorized_encoder")
    if variant == "factorized_dot_product":
        num_heads += num_heads % 2
    settings: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads}
    paper = name.endswith("16x2")
    if paper:
        settings |= _PAPER
    if name.startswith("vivit_neural"):
        settings |= _NEURAL
    if variant == "factorized_encoder":
        settings |= {"spatial_depth": spatial_depth, "temporal_depth": temporal_depth}
        class_tokens = overrides.get("class_token") is not False and overrides.get(
            "temporal_depth", temporal_depth
        )
        if paper and class_tokens and overrides.get("frame_pooling", "none") == "none":
            settings["pooling"] = "temporal_cls"
    else:
        settings["depth"] = spatial_depth if paper else spatial_depth + temporal_depth
        if paper and not {"spatial_positions", "temporal_positions"} & set(overrides):
            settings["joint_positions"] = "learned"
    if overrides.get("joint_positions") is not None:
        # A joint table replaces the size's own positions. Positions that the caller gave stay, so
        # that ViViTConfig raises an error for them.
        settings.pop("spatial_positions", None)
        settings.pop("temporal_positions", None)
    return ViViTConfig.from_dict(settings | overrides)


def sizes() -> list[str]:
    """Return the names of sizes for :func:`named_config` and ``create_encoder``."""
    return list(_WIDTHS)
