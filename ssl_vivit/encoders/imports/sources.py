"""Open checkpoints of other programs, which are recognised by their contents."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.imports.scenic import from_scenic, read_scenic_checkpoint
from ssl_vivit.encoders.imports.timm import config_from_timm, from_timm
from ssl_vivit.encoders.imports.transformers import from_hf_vivit, from_videomae
from ssl_vivit.encoders.imports.vivit_backbone import from_vivit_backbone
from ssl_vivit.errors import ExportError, MissingError, UserError
from ssl_vivit.exported.hub import REPO_ID
from ssl_vivit.nested_text import read_json_text
from ssl_vivit.preprocessing import Preprocessing

_TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
_BACKBONE_KEY = "to_tubelet_embedding.1.weight"


@dataclass
class Request:
    """Options of an import.

    Args:
        config: settings that the weights lack: Scenic's model config, transformers' config.json, or
            the arguments of ViViTBackbone.
        video_shape: (T, H, W) of a Scenic model's clips.
        timm_architecture: timm's name of the model whose weights a safetensors file contains.
        settings: settings of the video encoder that is made from an image ViT.
    """

    config: dict[str, Any] | None = None
    video_shape: tuple[int, int, int] | None = None
    timm_architecture: str | None = None
    settings: dict[str, Any] | None = None


def open_source(source: str, request: Request) -> tuple[VideoClassifier, str]:
    """Open a checkpoint.

    Args:
        source: a flax msgpack file of Scenic; a directory of transformers, or its weights file; a
            safetensors file of a timm model; ``timm:NAME`` or a name of a timm model; or weights of
            a ViViTBackbone as a safetensors or torch file (only tensors are read).
        request: options of the import.

    Returns:
        The model, and a description of the source.

    Raises:
        MissingError: if there is no such file.
        ExportError: if the source is none of these, or is incomplete.
    """
    try:
        return _opened(source, request)
    except UserError:
        raise
    except ValueError as error:
        raise ExportError(str(error)) from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        # A value of the wrong type in another program's config can raise any of these errors.
        raise ExportError(
            f"{source} cannot be imported: a setting has a value of the wrong type or size "
            f"({error})"
        ) from error


def _opened(source: str, request: Request) -> tuple[VideoClassifier, str]:
    path = Path(source)
    if source.startswith("timm:") or (not path.exists() and timm.is_model(source)):
        return _of_timm(source.removeprefix("timm:"), None, request)
    if not path.exists():
        mend = ""
        if REPO_ID.fullmatch(source):
            mend = (
                f"; for a model on the hub, run `hf download {source} --local-dir DIR` and give DIR"
            )
        raise MissingError(
            f"{source} is neither a file or directory nor the name of a timm model{mend}"
        )
    if path.is_dir():
        return _of_directory(path, request)
    if request.timm_architecture is not None:
        return _of_timm(request.timm_architecture, path, request)
    if path.suffix == ".safetensors" or path.suffix in _TORCH_FILES:
        return _of_weights(path, _read_tensors(path), _config_beside(path), request)
    _check_options(request, "a Scenic checkpoint", "config", "video_shape")
    params = read_scenic_checkpoint(path)
    shape = None
    if request.video_shape is not None:
        kernel = params.get("embedding/kernel")
        channels = 3 if kernel is None or kernel.ndim < 2 else kernel.shape[-2]
        shape = (*request.video_shape, channels)
    return from_scenic(params, request.config, shape), "google-research/scenic"


def _of_directory(path: Path, request: Request) -> tuple[VideoClassifier, str]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = _read_json(index).get("weight_map", {})
        parts = [path / Path(name).name for name in sorted(set(files.values()))]
    else:
        names = ("model.safetensors", "pytorch_model.bin")
        parts = [path / name for name in names if (path / name).is_file()][:1]
    if not parts:
        raise ValueError(
            f"{path} contains no model.safetensors; give a directory of transformers, or the "
            "checkpoint file itself"
        )
    weights: dict[str, Tensor] = {}
    for part in parts:
        weights |= _read_tensors(part)
    return _of_weights(parts[0], weights, _config_beside(parts[0]), request)


def _of_weights(
    path: Path, weights: Mapping[str, Tensor], beside: dict[str, Any], request: Request
) -> tuple[VideoClassifier, str]:
    if "format" in beside and "encoder" in beside:
        raise ValueError(f"{path.parent} is already an exported encoder; load it with load_encoder")
    if _BACKBONE_KEY in weights:
        _check_options(request, "a ViViTBackbone", "config")
        if request.config is None:
            raise ValueError(
                "the weights of a ViViTBackbone do not determine its geometry; give --config with "
                "t, h, w, patch_t, patch_h, patch_w and heads"
            )
        return from_vivit_backbone(weights, request.config), "ViViTBackbone"
    if "architecture" in beside and request.config is None:
        return _of_timm(str(beside["architecture"]), path, request)
    config = beside | (request.config or {})
    kind = config.get("model_type", "vivit" if _has_class_token(weights) else "videomae")
    if not config:
        raise ValueError(
            f"the architecture of {path} cannot be recognised from its weights; give --config FILE "
            "(a config.json of transformers or the arguments of a ViViTBackbone), or "
            "--timm-architecture"
        )
    if kind not in ("vivit", "videomae"):
        raise ValueError(
            f"{path}: its config is for model_type {kind}; only vivit and videomae are supported"
        )
    _check_options(request, f"a {kind} of transformers", "config")
    make = from_hf_vivit if kind == "vivit" else from_videomae
    model = make(weights, config)
    model.encoder.preprocessing = _preprocessing(path.parent, model)
    return model, f"transformers' {kind}"


def _has_class_token(weights: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("embeddings.cls_token") for name in weights)


def _of_timm(name: str, weights: Path | None, request: Request) -> tuple[VideoClassifier, str]:
    _check_options(request, "an image ViT of timm", "settings", "timm_architecture")
    if weights is not None and weights.suffix != ".safetensors":
        raise ValueError(f"{weights} must be a safetensors file for timm's {name}")
    config = config_from_timm(name, **(request.settings or {}))
    return VideoClassifier(from_timm(name, config, weights), 0), f"timm's {name}"


def _check_options(request: Request, what: str, *used: str) -> None:
    """Raise ValueError if an option is set that does not apply to the source.

    Args:
        request: options of the import.
        what: kind of source, for the message.
        used: names of the options that apply to this kind of source.
    """
    options = {
        "config": "--config",
        "video_shape": "--video-shape",
        "timm_architecture": "--timm-architecture",
        "settings": "--set",
    }
    for name, option in options.items():
        if name not in used and getattr(request, name):
            raise ValueError(f"{option} does not apply to {what}; omit it")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or torch file; raise ValueError for other objects."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from None
    try:
        with warnings.catch_warnings():
            # torch warns about foreign files even if it can read them.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # A damaged file can fail anywhere in torch's reader. torch's own message for other objects
        # would advise to load them with code execution.
        raise ValueError(
            f"{path} is truncated or contains objects other than tensors; save its state_dict as "
            "safetensors"
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} contains a {type(content).__name__}, not a state dict")
    return content


def _config_beside(path: Path) -> dict[str, Any]:
    file = path.parent / "config.json"
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = read_json_text(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} contains a {type(content).__name__}, not an object of settings")
    return content


def _preprocessing(directory: Path, model: VideoClassifier) -> Preprocessing | None:
    """Read mean and std for pixels in [0, 1] from preprocessor_config.json, if it exists."""
    file = directory / "preprocessor_config.json"
    if not file.is_file():
        return None
    given = _read_json(file)
    config = model.encoder.config
    scale = 255 * given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 255.0
    offset = float(bool(given.get("offset", False)))
    zeros, ones = [0.0] * config.in_channels, [1.0] * config.in_channels
    normalised = given.get("do_normalize", True)
    mean = given.get("image_mean", zeros) if normalised else zeros
    std = given.get("image_std", ones) if normalised else ones
    # transformers maps a pixel p in [0, 1] to (scale · p − offset − mean) / std.
    return Preprocessing(
        channels="rgb" if config.in_channels == 3 else "luma",
        mean=tuple((value + offset) / scale for value in mean),
        std=tuple(value / scale for value in std),
        resize=config.image_size,
    )
