"""Register the named sizes with timm: ``timm.create_model("vivit_small", num_classes=10)``.

The name ``vivit`` is registered for exported directories, whose config.json contains it. They are
loaded by ``timm.create_model("local-dir:DIR", pretrained=True)`` or ``"hf-hub:org/name"``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from timm.models import FeatureInfo, group_parameters, load_state_dict, register_model
from torch import Tensor, nn

from ssl_vivit.encoders.classifier import (
    TIMM_POOLINGS,
    VideoClassifier,
    load_encoder_or_classifier,
)
from ssl_vivit.encoders.config import TIMM_SETTINGS, ViViTConfig, unknown_name
from ssl_vivit.encoders.intermediates import block_indices
from ssl_vivit.encoders.named_sizes import sizes
from ssl_vivit.encoders.vivit import ARCHITECTURE, ENCODER, ViViT, create_encoder
from ssl_vivit.errors import ExportError, MissingError
from ssl_vivit.exported.directory import read_config
from ssl_vivit.exported.hub import locate

HEAD_SETTINGS = ("num_classes", "representation_size", "drop_rate")
FEATURE_SETTINGS = ("features_only", "out_indices")


class VideoFeatures(nn.Module):
    """Feature extractor: video → a list of maps (b, d, t, h, w), one for each requested block.

    Blocks after the last requested block are not computed. Parameters that do not affect the maps
    are frozen, so that distributed training does not wait for their gradients.

    Args:
        model: the classifier; its head is not used.
        out_indices: requested blocks, as ``indices`` of
            :func:`ssl_vivit.encoders.intermediates.block_indices`.

    Attributes:
        feature_info: timm's ``FeatureInfo``: names, widths and reductions of the maps.
    """

    def __init__(self, model: VideoClassifier, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.out_indices = tuple(block_indices(out_indices, len(model.feature_info)))
        self.feature_info = FeatureInfo(model.feature_info, self.out_indices)
        layers = group_parameters(model, model.group_matcher(), reverse=True)
        last = f"{self.feature_info.module_name()[-1]}."
        top = max(layer for name, layer in layers.items() if name.startswith(last))
        for name, parameter in model.named_parameters():
            if layers[name] > top:
                parameter.requires_grad_(False)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights of this model, of a :class:`VideoClassifier` or of a ViViT."""
        if any(name.startswith("model.") for name in state_dict):
            return super().load_state_dict(state_dict, strict, assign)
        headless = {
            name: value
            for name, value in state_dict.items()
            if not name.startswith(("head.", "representation."))
        }
        return self.model.load_state_dict(headless, strict, assign)

    def forward(self, video: Float[Tensor, "b c T H W"]) -> list[Float[Tensor, "b d t h w"]]:
        return self.model.forward_intermediates(  # type: ignore[return-value]
            video, self.out_indices, stop_early=True, intermediates_only=True
        )


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    """Make a classifier for ``timm.create_model``, or a :class:`VideoFeatures` for features_only.

    Args:
        name: a named size, or ``vivit`` for an exported directory or a new encoder with other
            settings.
        pretrained: load the weights of a file or of an exported directory.
        settings: further arguments of ``timm.create_model``.
    """
    # timm.create_model always passes these three arguments.
    source, overlay, cache_dir = (
        settings.pop(key, None) for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    )
    export = source if isinstance(source, Mapping) and "source" in source else None
    # timm loads a file by pretrained=True, pretrained_cfg_overlay={"file": path}.
    file = overlay["file"] if pretrained and overlay and overlay.keys() == {"file"} else None
    if (overlay and not file) or (export is None and ((pretrained and not file) or source)):
        raise ValueError(
            f"{name} has no published weights; omit pretrained, pretrained_cfg_overlay and tags. "
            "To load weights, give checkpoint_path, or an exported directory as model name "
            "('local-dir:DIR' or 'hf-hub:org/name'), or use ssl_vivit.encoders.imports"
        )
    if export is not None and export["source"] == "local-dir" and cache_dir is not None:
        raise ValueError(f"cache_dir {cache_dir} applies only to hf-hub: names; omit it")
    fields = [field.name for field in dataclasses.fields(ViViTConfig)]
    known = [*fields, *TIMM_SETTINGS, *HEAD_SETTINGS, *FEATURE_SETTINGS]
    for key in settings:
        if key not in known:
            raise ValueError(unknown_name(f"setting of {name}", key, known))
        if TIMM_SETTINGS.get(key) in settings:
            raise ValueError(f"give {key} or {TIMM_SETTINGS[key]}, not both: they name one setting")
    head = {key: settings.pop(key) for key in HEAD_SETTINGS if key in settings}
    features = {key: settings.pop(key) for key in FEATURE_SETTINGS if key in settings}
    only = features.get("features_only")
    if only and head:
        raise ValueError(f"features_only has no head; omit {', '.join(head)}")
    if not only and "out_indices" in features:
        raise ValueError("out_indices needs features_only=True; set that or omit out_indices")
    overrides = {TIMM_SETTINGS.get(key, key): _value(key, x) for key, x in settings.items()}
    if export is not None:
        model = _exported(export, pretrained, overrides, head, cache_dir)
    elif name == ARCHITECTURE:
        encoder = ViViT(ViViTConfig.from_dict(overrides))
        model = VideoClassifier(encoder, **({"num_classes": 1000} | head))
    else:
        model = VideoClassifier(create_encoder(name, **overrides), **({"num_classes": 1000} | head))
    made: nn.Module = model
    if only:
        last = min(3, len(model.feature_info))
        made = VideoFeatures(VideoClassifier(model.encoder, 0), features.get("out_indices", last))
    if file is not None:
        _load_file(made, file)
    return made


def _load_file(model: nn.Module, file: str | Path) -> None:
    """Load a checkpoint by timm.

    Raises:
        MissingError: if there is no such file.
        ExportError: if timm cannot read it.
        RuntimeError: if names or shapes of the weights differ from the model's.
    """
    if not Path(file).is_file():
        raise MissingError(
            f"pretrained_cfg_overlay: {file} is not a file; give a checkpoint, or name an exported "
            "directory as 'local-dir:DIR'"
        )
    try:
        weights = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # each file format raises its own errors
        raise ExportError(
            f"pretrained_cfg_overlay: {file} is damaged or no checkpoint that timm reads "
            f"({type(error).__name__}); give a safetensors or torch file of weights"
        ) from error
    model.load_state_dict(weights)


def _exported(
    source: Mapping[str, Any],
    pretrained: bool,
    overrides: dict[str, Any],
    head: dict[str, Any],
    cache_dir: str | Path | None,
) -> VideoClassifier:
    """Load the model of an exported directory in training mode, as timm does.

    Args:
        source: timm's parse of a ``local-dir:`` or ``hf-hub:`` name.
        pretrained: load the exported weights; False initialises them randomly, as in timm.
        overrides: settings of the encoder to change.
        head: settings of the head to change; another number of classes gets a new random head.
        cache_dir: cache of the hub's files; None is ``HF_HUB_CACHE``.
    """
    if source["source"] == "local-dir":
        path = Path(source["file"])
    else:
        name, _, revision = source["hf_hub_id"].partition("@")
        path = locate(name, ENCODER, revision=revision or None, cache_dir=cache_dir)
    if not pretrained:
        saved = read_config(path, ENCODER)
        encoder = ViViT(ViViTConfig.from_dict(saved["encoder"] | overrides))
        own: dict[str, Any] = saved.get("classifier") or {"num_classes": 0}
        return VideoClassifier(encoder, **(own | head))
    loaded = load_encoder_or_classifier(path, **overrides)
    if isinstance(loaded, ViViT):
        return VideoClassifier(loaded, **({"num_classes": 0} | head)).train()
    layer = loaded.representation
    size = None if layer is None else layer.out_features
    if head.get("representation_size", size) != size:
        raise ValueError(
            f"{path} was saved with representation_size {size}; omit representation_size"
        )
    if head.get("num_classes", loaded.num_classes) != loaded.num_classes:
        loaded.reset_classifier(head["num_classes"])
    loaded.head_drop.p = head.get("drop_rate", loaded.head_drop.p)
    return loaded.train()


def _value(key: str, value: Any) -> Any:
    return TIMM_POOLINGS.get(value, value) if key == "global_pool" else value


def _register(name: str) -> Any:
    def entrypoint(pretrained: bool = False, **settings: Any) -> nn.Module:
        return _create(name, pretrained, settings)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"""``timm.create_model("{name}")``, a :class:`VideoClassifier`.

    Args:
        pretrained: load the weights of a ``local-dir:`` or ``hf-hub:`` name. Other names have no
            published weights and raise ValueError.
        settings: num_classes (default 1000; 0 gives the pooled features),
            representation_size and drop_rate of the head; any setting of :class:`ViViTConfig`, or
            timm's name for it ({", ".join(TIMM_SETTINGS)}); features_only=True with out_indices
            (default: at most the last 3 blocks) for :class:`VideoFeatures`.

    Raises:
        ValueError: for unknown settings, two names of one setting, and values that do not fit.
    """
    return register_model(entrypoint)


# timm looks entrypoints up in the module by their names.
globals().update({name: _register(name) for name in (ARCHITECTURE, *sizes())})
