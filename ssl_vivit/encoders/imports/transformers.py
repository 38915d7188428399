"""Import ViViT and VideoMAE of Hugging Face transformers, with key names of versions 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.imports.foreign_weights import ForeignWeights, as_dict, built_classifier

# Defaults of transformers, which a config.json may omit.
_SHARED = {
    "image_size": 224, "num_channels": 3, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072,
}  # fmt: skip
_VIVIT = _SHARED | {
    "num_frames": 32, "tubelet_size": [2, 16, 16], "hidden_act": "gelu_fast",
    "layer_norm_eps": 1e-6, "qkv_bias": True, "pooler_act": "tanh",
}  # fmt: skip
_VIDEOMAE = _SHARED | {
    "num_frames": 16, "tubelet_size": 2, "patch_size": 16, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "use_mean_pooling": True,
}  # fmt: skip

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# The norm of the classification head always has torch's default epsilon.
_FC_NORM_EPS = 1e-5

# Names in a block of ViViT → names in transformers 5 and 4. VideoMAE has names of 4 in both.
_V5 = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "proj": "attention.o_proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_V4 = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "proj": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}


def from_hf_vivit(state_dict: Mapping[str, Any], config: Any) -> VideoClassifier:
    """Import transformers' ``VivitModel`` or ``VivitForVideoClassification``.

    Args:
        state_dict: weights of the model.
        config: ``VivitConfig`` of the model, or its config.json as a dict.

    Returns:
        :class:`VideoClassifier` in eval mode, video (B, C, T, H, W) → logits. The pooler of
        ``VivitModel`` becomes the representation layer, so that without classes the classifier
        returns ``pooler_output``. The encoder's tokens are ``last_hidden_state`` without its first
        token.

    Raises:
        ValueError: if weights are missing or unexpected (at most ten are named), or if settings are
            not supported.
    """
    given: dict[str, Any] = {**_VIVIT, **as_dict(config)}
    width, bias = given["hidden_size"], bool(given["qkv_bias"])
    encoder = _config(given, tuple(given["tubelet_size"])) | {
        "qkv_bias": bias,
        "head_dim": given.get("head_dim") or width // given["num_attention_heads"],
        "joint_positions": "learned",
    }
    ours = ViViTConfig(**encoder)
    weights = ForeignWeights(state_dict, "the ViViT checkpoint")
    root = "vivit." if any(name.startswith("vivit.") for name in state_dict) else ""
    version_5 = any(name.startswith(f"{root}layers.") for name in state_dict)
    blocks, names = ("layers", _V5) if version_5 else ("encoder.layer", _V4)
    length = 1 + ours.grid.t * ours.grid.n
    state = _tubelets(weights, root, ours) | _norm(weights, f"{root}layernorm", "trunk.norm", width)
    state["trunk.class_token"] = weights.take(f"{root}embeddings.cls_token", 1, 1, width).flatten()
    state["positions.joint"] = weights.take(
        f"{root}embeddings.position_embeddings", 1, length, width
    )[0]
    for index in range(given["num_hidden_layers"]):
        theirs = f"{root}{blocks}.{index}"
        biases = [f"{theirs}.{names[part]}.bias" for part in ("query", "key", "value")]
        state |= _block(weights, theirs, index, names, ours, biases if bias else None)

    head, classes = _classifier(weights, width)
    pooler = f"{root}pooler.dense"
    representation = None
    if not classes and f"{pooler}.weight" in weights:
        if given["pooler_act"] != "tanh":
            raise ValueError(f"pooler_act {given['pooler_act']!r} is not supported; only tanh is")
        representation = given.get("pooler_output_size") or width
        head |= _linear(weights, pooler, "representation", width, representation)
    weights.finish()
    return built_classifier(ours, state, head, classes, representation)


def from_videomae(state_dict: Mapping[str, Any], config: Any) -> VideoClassifier:
    """Import transformers' VideoMAE model, pretraining model (without its decoder) or classifier.

    The encoder's ``visible_tokens`` are the indices at which ``bool_masked_pos`` is False.

    Args:
        state_dict: weights of ``VideoMAEModel``, ``VideoMAEForPreTraining`` or
            ``VideoMAEForVideoClassification``.
        config: ``VideoMAEConfig`` of the model, or its config.json as a dict.

    Returns:
        :class:`VideoClassifier` in eval mode, video (B, C, T, H, W) → logits. Without a classifier
        it returns the pooled vector: the mean of the tokens, or the first token if the config has
        ``use_mean_pooling=False``. The encoder's tokens are ``last_hidden_state``.

    Raises:
        ValueError: if weights are missing or unexpected (at most ten are named), or if settings are
            not supported.
    """
    given: dict[str, Any] = {**_VIDEOMAE, **as_dict(config)}
    width, mean = given["hidden_size"], bool(given["use_mean_pooling"])
    bias = next(
        (given[name] for name in ("qkv_bias", "qv_bias") if given.get(name) is not None), True
    )
    weights = ForeignWeights(state_dict, "the VideoMAE checkpoint")
    root = "videomae." if any(name.startswith("videomae.") for name in state_dict) else ""
    head, classes = _classifier(weights, width)
    pooled_norm = "fc_norm.weight" in weights or (mean and classes > 0)
    final_norm = "pooled" if pooled_norm else "none"
    tubelet = (given["tubelet_size"], *_pair(given["patch_size"]))
    encoder = _config(given, tubelet) | {
        "qkv_bias": bool(bias),
        "class_token": False,
        "joint_positions": "sinusoidal",
        "pooling": "mean" if mean else "first",
        "final_norm": final_norm if mean else "tokens",
        "pooled_norm_eps": _FC_NORM_EPS if mean and pooled_norm else None,
    }
    ours = ViViTConfig(**encoder)
    state = _tubelets(weights, root, ours)
    if not mean:
        state |= _norm(weights, f"{root}layernorm", "trunk.norm", width)
    elif pooled_norm:
        state |= _norm(weights, "fc_norm", "pooled_norm", width)
    for index in range(given["num_hidden_layers"]):
        theirs = f"{root}encoder.layer.{index}"
        attention = f"{theirs}.attention.attention"
        # Keys have no bias, since it would add one constant to all logits of a query.
        biases = [f"{attention}.query.bias", None, f"{attention}.value.bias"]
        if f"{attention}.q_bias" in weights:
            biases = [f"{attention}.q_bias", None, f"{attention}.v_bias"]
        state |= _block(weights, theirs, index, _V4, ours, biases if bias else None)
    decoder = ("decoder.", "encoder_to_decoder.", "mask_token")
    weights.finish(ignored=lambda name: name.startswith(decoder))
    return built_classifier(ours, state, head, classes)


def _config(given: Mapping[str, Any], tubelet: tuple[int, ...]) -> dict[str, Any]:
    """Return settings of :class:`ViViTConfig` for transformers' config of a ViViT or VideoMAE.

    These are the settings that are converted in the same way for both models.

    Args:
        given: settings of transformers' config.
        tubelet: (t, h, w) of a tubelet.
    """
    activation = given["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act {activation!r} is not supported; it must be one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    sizes = (given["num_frames"], *_pair(given["image_size"]))
    fits = all(size % patch == 0 for size, patch in zip(sizes, tubelet, strict=True))
    return {
        "variant": "joint",
        "in_channels": given["num_channels"],
        "num_frames": sizes[0],
        "image_size": sizes[1:],
        "tubelet_size": tubelet,
        "remainder": "error" if fits else "crop",
        "embed_dim": given["hidden_size"],
        "num_heads": given["num_attention_heads"],
        "mlp_ratio": given["intermediate_size"] / given["hidden_size"],
        "depth": given["num_hidden_layers"],
        "activation": _ACTIVATIONS[activation],
        "norm_eps": given["layer_norm_eps"],
    }


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def _tubelets(weights: ForeignWeights, root: str, config: ViViTConfig) -> dict[str, Tensor]:
    name = f"{root}embeddings.patch_embeddings.projection"
    shape = (config.embed_dim, config.in_channels, *config.tubelet_size)
    return {
        "tubelets.weight": weights.take(f"{name}.weight", *shape),
        "tubelets.bias": weights.take(f"{name}.bias", config.embed_dim),
    }


def _block(
    weights: ForeignWeights,
    theirs: str,
    index: int,
    names: Mapping[str, str],
    config: ViViTConfig,
    biases: list[Any] | None,
) -> dict[str, Tensor]:
    """Return the weights of one block, under the encoder's names.

    Args:
        weights: arrays of the checkpoint.
        theirs: name of the block in the checkpoint.
        index: index of the block.
        names: names of the block's linear layers in the checkpoint, by their role.
        config: config of the encoder.
        biases: names of the biases of queries, keys and values. None in the list stands for zeros;
            None instead of the list means no biases.
    """
    assert config.head_dim is not None
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    hidden, ours = round(config.mlp_ratio * width), f"trunk.blocks.{index}"
    parts = [f"{theirs}.{names[part]}.weight" for part in ("query", "key", "value")]
    state = {
        f"{ours}.attention.qkv.weight": torch.cat([weights.take(p, inner, width) for p in parts]),
        **_linear(weights, f"{theirs}.{names['proj']}", f"{ours}.attention.proj", inner, width),
        **_linear(weights, f"{theirs}.{names['fc1']}", f"{ours}.mlp.fc1", width, hidden),
        **_linear(weights, f"{theirs}.{names['fc2']}", f"{ours}.mlp.fc2", hidden, width),
        **_norm(weights, f"{theirs}.layernorm_before", f"{ours}.attention_norm", width),
        **_norm(weights, f"{theirs}.layernorm_after", f"{ours}.mlp_norm", width),
    }
    if biases is not None:
        zeros = state[f"{ours}.attention.proj.bias"].new_zeros(inner)
        taken = [zeros if name is None else weights.take(name, inner) for name in biases]
        state[f"{ours}.attention.qkv.bias"] = torch.cat(taken)
    return state


def _classifier(weights: ForeignWeights, width: int) -> tuple[dict[str, Tensor], int]:
    """Return the head's weights and the number of classes, which is 0 without a head."""
    if "classifier.weight" not in weights:
        return {}, 0
    classes = len(weights.arrays["classifier.weight"])
    return _linear(weights, "classifier", "head", width, classes), classes


def _linear(
    weights: ForeignWeights, theirs: str, ours: str, inputs: int, outputs: int
) -> dict[str, Tensor]:
    return {
        f"{ours}.weight": weights.take(f"{theirs}.weight", outputs, inputs),
        f"{ours}.bias": weights.take(f"{theirs}.bias", outputs),
    }


def _norm(weights: ForeignWeights, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    return {
        f"{ours}.weight": weights.take(f"{theirs}.weight", width),
        f"{ours}.bias": weights.take(f"{theirs}.bias", width),
    }
