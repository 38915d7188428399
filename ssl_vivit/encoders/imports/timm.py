"""Initialise a video encoder from an image ViT of timm (Arnab et al. 2021, Sec. 3.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from einops import repeat
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import Attention, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.layers.patch_embed import resample_patch_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.imports.foreign_weights import ForeignWeights
from ssl_vivit.encoders.positions import resample_spatial
from ssl_vivit.encoders.trunks.blocks import mlp_widths
from ssl_vivit.encoders.tubelets import inflate
from ssl_vivit.encoders.vivit import ViViT
from ssl_vivit.preprocessing import Preprocessing

# Settings of the video encoder that the image model determines.
_FIXED = (
    "embed_dim", "num_heads", "head_dim", "mlp_ratio", "block", "activation", "norm_eps",
    "final_norm", "qkv_bias", "qk_norm", "register_tokens",
)  # fmt: skip

# Parts of the image model, and the classes that each part may have.
_PARTS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("patch_embed", (PatchEmbed,)),
    ("patch_embed.norm", (nn.Identity,)),
    ("norm_pre", (nn.Identity,)),
    ("blocks.0", (Block,)),
    ("blocks.0.norm1", (nn.LayerNorm,)),
    ("blocks.0.attn", (Attention,)),
    ("blocks.0.attn.q_norm", (nn.LayerNorm, nn.Identity)),
    ("blocks.0.attn.norm", (nn.Identity, type(None))),
    ("blocks.0.attn.gate", (type(None),)),
    ("blocks.0.mlp", (Mlp, GluMlp, SwiGLU)),
    ("blocks.0.mlp.norm", (nn.Identity, type(None))),
    ("norm", (nn.LayerNorm, nn.Identity)),
    ("fc_norm", (nn.LayerNorm, nn.Identity)),
)


def from_timm(
    name_or_model: str | nn.Module,
    config: ViViTConfig,
    checkpoint: str | Path | None = None,
) -> ViViT:
    """Make a video encoder with the weights of an image ViT.

    - The image model's patch embedding is applied to the central frame of each tubelet (with
      ``tubelet_init="average"``: to the mean of its frames). It is resampled to another patch size
      as in FlexiViT, and summed over channels for grey video.
    - Positions are resampled to the grid; a joint table repeats them over time. Class token and
      registers are copied; the positions of registers are added to them. A class token is dropped
      if the encoder has none.
    - The image model's first blocks become the spatial transformer in Model 2, the spatial
      attention and the MLP in Model 3, and whole blocks in Models 1 and 4.
    - Temporal parts keep their initial values: transformer, attention, positions, class token and
      registers.

    So a Model 2 without temporal blocks gives the image model's features of the central frame.

    Args:
        name_or_model: a timm ``VisionTransformer``, or the name of one.
        config: config of the encoder; it must fit the image model, see :func:`config_from_timm`.
        checkpoint: safetensors file with weights of the named model, used instead of a download.

    Returns:
        :class:`ViViT` in eval mode, ``preprocessing`` set from the model's pretrained_cfg.

    Raises:
        ValueError: if the model is not a plain ViT, a setting does not fit it (the message names
            the setting and a value that fits), or its weights are not available.
    """
    model = timm_model(name_or_model, checkpoint)
    _check_fit(model, config)
    encoder = ViViT(config).to(model.patch_embed.proj.weight.dtype)
    state = _stem(model, config) | _specials(model, config, encoder)
    for index in range(config.spatial_depth or config.depth or 0):
        state |= _block(model.blocks[index], index, config)
    for norm, ours in ((model.norm, _token_norm(config)), (model.fc_norm, "pooled_norm")):
        if isinstance(norm, nn.LayerNorm):
            state |= _parameters(norm, ours)
    misfits = encoder.load_state_dict(state, strict=False)
    assert not misfits.unexpected_keys, misfits.unexpected_keys
    encoder.preprocessing = _preprocessing(model, config)
    return encoder.eval()


def config_from_timm(name_or_model: str | nn.Module, **overrides: Any) -> ViViTConfig:
    """Return the config of a video encoder that fits an image ViT's weights.

    Args:
        name_or_model: a timm ``VisionTransformer``, or the name of one (nothing is downloaded).
        overrides: settings of :class:`ViViTConfig`, such as ``variant`` or ``num_frames``. The
            default is Model 2 with the image model's blocks as spatial transformer, 4 temporal
            blocks, and clips of 32 frames in tubelets of 2.

    Raises:
        ValueError: if the model is not a plain ViT, or overrides do not fit it.
    """
    if isinstance(name_or_model, str):
        name_or_model = _create(name_or_model, pretrained=False)
    model = _checked_vit(name_or_model)
    settings = _fixed_settings(model)
    variant = overrides.get("variant", "factorized_encoder")
    depth = "spatial_depth" if variant == "factorized_encoder" else "depth"
    size, patch = model.patch_embed.img_size or (224, 224), model.patch_embed.patch_size
    settings |= {
        "in_channels": model.patch_embed.proj.in_channels,
        "num_frames": 32,
        "image_size": tuple(size),
        "tubelet_size": (2, *patch),
        "remainder": "crop" if size[0] % patch[0] or size[1] % patch[1] else "error",
        "tubelet_init": "central_frame",
        "layer_scale": _layer_scale(model),
        depth: len(model.blocks),
    }
    if model.cls_token is None and variant in ("factorized_encoder", "joint"):
        settings["class_token"] = False
    return ViViTConfig.from_dict(settings | overrides)


def timm_model(
    name_or_model: str | nn.Module, checkpoint: str | Path | None = None
) -> VisionTransformer:
    """Return a plain ViT of timm, with its pretrained weights or those of a file.

    Args:
        name_or_model: the model, or its name.
        checkpoint: safetensors file used instead of a download; it may lack the classification
            head.

    Raises:
        ValueError: if there is no such model, it is not a plain ViT, or its weights are not
            available.
    """
    if not isinstance(name_or_model, str):
        if checkpoint is not None:
            raise ValueError(
                "checkpoint needs name_or_model to be a name; load the checkpoint into your model "
                "before the call"
            )
        return _checked_vit(name_or_model)
    model = _checked_vit(_create(name_or_model, pretrained=checkpoint is None))
    if checkpoint is None:
        return model
    try:
        weights = load_file(checkpoint)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} is not a valid safetensors file: {error}") from None
    source = ForeignWeights(weights, str(checkpoint))
    state = {
        name: source.take(name, *value.shape)
        for name, value in model.state_dict().items()
        if not name.startswith("head.")
    }
    source.finish(ignored=lambda name: name.startswith("head."))
    model.load_state_dict(state, strict=False)
    return model


def _create(name: str, pretrained: bool) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        # timm, the hub's client and urllib raise different errors for missing models.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        mend = "; alternatively pass its safetensors file as checkpoint" if pretrained else ""
        raise ValueError(f"timm cannot load {name!r}: {reason}{mend}") from None


def _checked_vit(model: nn.Module) -> VisionTransformer:
    """Return the model if all its parts exist in a ViViT, else raise ValueError."""
    if type(model) is not VisionTransformer:
        raise ValueError(
            f"{type(model).__name__} is not a VisionTransformer of timm; only those can be imported"
        )
    for name, kinds in _PARTS:
        part: Any = model
        for step in name.split("."):
            part = part[0] if step == "0" else getattr(part, step, None)
        if not isinstance(part, kinds):
            raise ValueError(
                f"the image model's {name} is {type(part).__name__}, which ViViT does not have; "
                f"use a ViT whose {name} is {' or '.join(kind.__name__ for kind in kinds)}"
            )
    first: Any = model.blocks[0]
    _activation(first.mlp)
    return model


def _activation(mlp: Any) -> str:
    """Return the name of a timm MLP's activation, as used in :class:`ViViTConfig`."""
    act = mlp.act
    if isinstance(mlp, SwiGLU) or (isinstance(mlp, GluMlp) and not mlp.gate_last):
        if isinstance(act, nn.SiLU):
            return "swiglu"
    elif not isinstance(mlp, GluMlp):
        kind = type(act).__name__
        if kind == "GELUTanh" or (kind == "GELU" and getattr(act, "approximate", "") == "tanh"):
            return "gelu_tanh"
        if kind == "GELU":
            return "gelu"
    raise ValueError(
        f"the image model's activation {type(act).__name__} in {type(mlp).__name__} is not "
        "supported; "
        "use a ViT with GELU, tanh GELU or SwiGLU"
    )


def _fixed_settings(model: VisionTransformer) -> dict[str, Any]:
    """Return the encoder's settings that the image model determines."""
    block: Any = model.blocks[0]
    on_tokens = isinstance(model.norm, nn.LayerNorm)
    on_pooled = isinstance(model.fc_norm, nn.LayerNorm)
    return {
        "embed_dim": model.embed_dim,
        "num_heads": block.attn.num_heads,
        "head_dim": block.attn.head_dim,
        "mlp_ratio": block.mlp.fc2.in_features / model.embed_dim,
        "block": "pre_norm",
        "activation": _activation(block.mlp),
        "norm_eps": block.norm1.eps,
        "final_norm": "tokens" if on_tokens else "pooled" if on_pooled else "none",
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": isinstance(block.attn.q_norm, nn.LayerNorm),
        "register_tokens": model.num_reg_tokens,
    }


def _layer_scale(model: VisionTransformer) -> float | None:
    block: Any = model.blocks[0]
    scale = block.ls1
    return None if isinstance(scale, nn.Identity) else float(getattr(scale, "init_values", 1e-5))


def _check_fit(model: VisionTransformer, config: ViViTConfig) -> None:
    """Raise if a config does not fit the image model; the message names a value that fits."""
    fitting = _fixed_settings(model)
    block: Any = model.blocks[0]
    for name in _FIXED:
        value = getattr(config, name)
        if name == "mlp_ratio" and mlp_widths(config)[1] == block.mlp.fc2.in_features:
            continue  # only the resulting width must be equal
        if value != fitting[name]:
            raise ValueError(f"{name} {value} does not fit the image model; use {fitting[name]}")
    if (config.layer_scale is None) != (_layer_scale(model) is None):
        raise ValueError(
            f"layer_scale {config.layer_scale} does not fit the image model; use "
            f"{_layer_scale(model)}"
        )
    depth = "spatial_depth" if config.variant == "factorized_encoder" else "depth"
    if getattr(config, depth) > len(model.blocks):
        raise ValueError(
            f"{depth} {getattr(config, depth)} exceeds the image model's blocks; use at most "
            f"{len(model.blocks)}"
        )
    if config.class_token and model.cls_token is None:
        raise ValueError(
            "class_token True does not fit the image model, which has no class token; use False"
        )
    channels = model.patch_embed.proj.in_channels
    if config.in_channels not in (1, channels):
        raise ValueError(
            f"in_channels {config.in_channels} does not fit the image model; use {channels} or 1"
        )
    learned = "learned" in (config.spatial_positions, config.joint_positions)
    if model.pos_embed is not None and not learned:
        raise ValueError(
            "this config has no table for the image model's learned positions; use "
            "spatial_positions='learned' or joint_positions='learned'"
        )


def _stem(model: VisionTransformer, config: ViViTConfig) -> dict[str, Tensor]:
    kernel = model.patch_embed.proj.weight
    if config.in_channels != kernel.shape[1]:
        kernel = kernel.sum(1, keepdim=True)
    kernel = resample_patch_embed(kernel, list(config.kernel_size[1:]))
    how: Literal["average", "central_frame"] = (
        "average" if config.tubelet_init == "average" else "central_frame"
    )
    bias = model.patch_embed.proj.bias
    return {
        "tubelets.weight": inflate(kernel, config.kernel_size[0], how),
        "tubelets.bias": kernel.new_zeros(len(kernel)) if bias is None else bias,
    }


def _specials(model: VisionTransformer, config: ViViTConfig, encoder: ViViT) -> dict[str, Tensor]:
    """Return positions, class token and registers of the image model as weights of the encoder."""
    width, prefix = config.embed_dim, int(model.cls_token is not None)
    places = model.patch_embed.proj.weight.new_zeros(model.num_prefix_tokens, width)
    patches = None if model.pos_embed is None else model.pos_embed[0]
    if patches is not None and not model.no_embed_class:
        places, patches = patches[: len(places)], patches[len(places) :]
    state: dict[str, Tensor] = {}
    if config.class_token:
        assert model.cls_token is not None
        state["trunk.class_token"] = model.cls_token.flatten()
    if config.register_tokens:
        name = "registers" if config.variant == "joint" else "spatial_registers"
        # Registers of ViViT have no positions, so add the image model's positions to them.
        assert model.reg_token is not None
        state[f"trunk.{name}"] = model.reg_token[0] + places[prefix:]

    grid, old = config.grid, model.patch_embed.grid_size
    table = encoder.state_dict()
    if patches is None:
        spatial = places.new_zeros(grid.n, width)
    else:
        spatial = resample_spatial(patches, old, (grid.h, grid.w))
    placed = False
    for name, times in (("positions.spatial", 1), ("positions.joint", grid.t)):
        if name in table:
            tiled = repeat(spatial, "n d -> (t n) d", t=times)
            slots = len(table[name]) - len(tiled)
            state[name] = torch.cat((places[:slots], tiled))
            placed |= slots > 0
    if config.class_token and not placed:
        state["trunk.class_token"] = state["trunk.class_token"] + places[0]
    return state


def _token_norm(config: ViViTConfig) -> str:
    return "trunk.spatial_norm" if config.variant == "factorized_encoder" else "trunk.norm"


def _block(block: Any, index: int, config: ViViTConfig) -> dict[str, Tensor]:
    model2 = config.variant == "factorized_encoder"
    model3 = config.variant == "factorized_self_attention"
    ours = f"trunk.{'spatial_blocks' if model2 else 'blocks'}.{index}"
    names = {
        "attn.qkv": "space.qkv" if model3 else "attention.qkv",
        "attn.proj": "space.proj" if model3 else "attention.proj",
        "norm1": "space_norm" if model3 else "attention_norm",
        "ls1": "space_branch.scale" if model3 else "attention_branch.scale",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls2": "mlp_branch.scale",
    }
    axes = [f"{'space' if model3 else 'attention'}.heads"]
    if config.variant == "factorized_dot_product":
        axes = ["attention.time_heads", "attention.space_heads"]
    state: dict[str, Tensor] = {}
    for theirs, name in names.items():
        if theirs == "mlp.fc1" and isinstance(block.mlp, SwiGLU):
            gate, value = block.mlp.fc1_g, block.mlp.fc1_x
            for part in ("weight", "bias"):
                both = [getattr(gate, part), getattr(value, part)]
                if both[0] is not None:
                    state[f"{ours}.{name}.{part}"] = torch.cat(both)
            continue
        state |= _parameters(block.get_submodule(theirs), f"{ours}.{name}")
    for axis in axes:
        state |= _parameters(block.attn.q_norm, f"{ours}.{axis}.query_norm")
        state |= _parameters(block.attn.k_norm, f"{ours}.{axis}.key_norm")
    for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        bias = f"{ours}.{names[name]}.bias"
        if bias not in state:
            state[bias] = torch.zeros(len(state[bias.replace(".bias", ".weight")]))
    return state


def _parameters(module: nn.Module, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.{name}": value for name, value in module.state_dict().items()}


def _preprocessing(model: VisionTransformer, config: ViViTConfig) -> Preprocessing | None:
    pretrained = getattr(model, "pretrained_cfg", None) or {}
    if "mean" not in pretrained or "std" not in pretrained:
        return None
    mean, std = list(pretrained["mean"]), list(pretrained["std"])
    if config.in_channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    return Preprocessing(
        channels="luma" if config.in_channels == 1 else "rgb",
        mean=tuple(mean),
        std=tuple(std),
        resize=config.image_size,
    )
