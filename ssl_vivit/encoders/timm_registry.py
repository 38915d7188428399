"""The named sizes in timm's registry: ``timm.create_model("vivit_small", num_classes=10)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.models import FeatureInfo, group_parameters, register_model
from torch import Tensor, nn

from ssl_vivit.encoders.classifier import TIMM_POOLINGS, VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig, unknown_name
from ssl_vivit.encoders.intermediates import block_indices
from ssl_vivit.encoders.named_sizes import sizes
from ssl_vivit.encoders.vivit import create_encoder

# timm's settings that are called otherwise in ViViTConfig.
TIMM_SETTINGS = {
    "in_chans": "in_channels",
    "img_size": "image_size",
    "drop_path_rate": "drop_path",
    "patch_drop_rate": "patch_dropout",
    "attn_drop_rate": "attention_dropout",
    "proj_drop_rate": "mlp_dropout",
    "global_pool": "pooling",
}
HEAD_SETTINGS = ("num_classes", "representation_size", "drop_rate")
FEATURE_SETTINGS = ("features_only", "out_indices")


class VideoFeatures(nn.Module):
    """Video → a list of maps (b, d, t, h, w), one for each block that is asked for.

    No later block is computed, and parameters that the maps do not depend on are frozen, so that
    distributed training does not wait for their gradients.

    Args:
        model: the classifier, whose head has no part.
        out_indices: see :func:`ssl_vivit.encoders.intermediates.block_indices`.

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

    def forward(self, video: Float[Tensor, "b c T H W"]) -> list[Float[Tensor, "b d t h w"]]:
        return self.model.forward_intermediates(  # type: ignore[return-value]
            video, self.out_indices, stop_early=True, intermediates_only=True
        )


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    """A classifier of a named size, or what ``features_only`` makes of it."""
    # timm.create_model always passes its own three; without weights to fetch they say nothing.
    settings.pop("cache_dir", None)
    asked_for = [settings.pop(key, None) for key in ("pretrained_cfg", "pretrained_cfg_overlay")]
    if pretrained or any(asked_for):
        raise ValueError(
            f"{name} has no published weights; leave pretrained and tags out and give "
            "checkpoint_path, or use ssl_vivit.load_encoder or ssl_vivit.encoders.imports"
        )
    fields = [field.name for field in dataclasses.fields(ViViTConfig)]
    known = [*fields, *TIMM_SETTINGS, *HEAD_SETTINGS, *FEATURE_SETTINGS]
    for key in settings:
        if key not in known:
            raise ValueError(unknown_name(f"setting of {name}", key, known))
        if TIMM_SETTINGS.get(key) in settings:
            raise ValueError(f"give {key} or {TIMM_SETTINGS[key]}, not both: they are the same")
    head = {key: settings.pop(key) for key in HEAD_SETTINGS if key in settings}
    features = {key: settings.pop(key) for key in FEATURE_SETTINGS if key in settings}
    encoder = create_encoder(
        name, **{TIMM_SETTINGS.get(key, key): _value(key, x) for key, x in settings.items()}
    )
    if not features.get("features_only"):
        if "out_indices" in features:
            raise ValueError("out_indices goes with features_only=True; leave it out or add that")
        return VideoClassifier(encoder, **({"num_classes": 1000} | head))
    if head:
        raise ValueError(f"features_only has no head; leave out {', '.join(head)}")
    return VideoFeatures(VideoClassifier(encoder, 0), features.get("out_indices", 3))


def _value(key: str, value: Any) -> Any:
    if key == "img_size":
        return (value, value) if isinstance(value, int) else tuple(value)
    return TIMM_POOLINGS.get(value, value) if key == "global_pool" else value


def _register(name: str) -> Any:
    def entrypoint(pretrained: bool = False, **settings: Any) -> nn.Module:
        return _create(name, pretrained, settings)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"""``timm.create_model("{name}")``, a :class:`VideoClassifier`.

    Args:
        pretrained: refused: there are no published weights.
        settings: num_classes (1000 unless said otherwise; 0 gives the pooled features),
            representation_size and drop_rate of the head; any setting of :class:`ViViTConfig`, or
            timm's name for it ({", ".join(TIMM_SETTINGS)}); features_only=True with out_indices
            (the last 3 blocks unless said otherwise) for :class:`VideoFeatures`.

    Raises:
        ValueError: for unknown settings, two names of one, and values that do not fit.
    """
    return register_model(entrypoint)


# Under their own names, as timm's modules hold theirs.
globals().update({name: _register(name) for name in sizes()})
