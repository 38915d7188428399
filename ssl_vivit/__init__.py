"""Self-supervised pretraining of ViViT video encoders, and the way to a model of neurons."""

from importlib.metadata import version

from ssl_vivit.encoders import (
    VideoClassifier,
    ViViT,
    ViViTConfig,
    create_encoder,
    load_encoder,
)
from ssl_vivit.grid import Grid

__version__ = version("ssl_vivit")

__all__ = [
    "Grid",
    "ViViT",
    "ViViTConfig",
    "VideoClassifier",
    "__version__",
    "create_encoder",
    "load_encoder",
]
