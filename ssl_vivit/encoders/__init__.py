"""Encoders from video to tokens, independent of losses, data and training."""

# Importing this module registers the named sizes with timm.
from ssl_vivit.encoders import timm_registry as timm_registry
from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.config import ViViTConfig
from ssl_vivit.encoders.named_sizes import named_config, sizes
from ssl_vivit.encoders.vivit import (
    EncoderOutput,
    ViViT,
    create_encoder,
    load_encoder,
    save_pretrained,
)

__all__ = [
    "EncoderOutput",
    "ViViT",
    "ViViTConfig",
    "VideoClassifier",
    "create_encoder",
    "load_encoder",
    "named_config",
    "save_pretrained",
    "sizes",
]
