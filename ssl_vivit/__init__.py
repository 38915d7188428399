"""Self-supervised pretraining of ViViT video encoders, and models of recorded neurons."""

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from ssl_vivit.lazy_names import lazy_names

if TYPE_CHECKING:
    from ssl_vivit.encoders.classifier import VideoClassifier
    from ssl_vivit.encoders.config import ViViTConfig
    from ssl_vivit.encoders.vivit import ViViT, create_encoder, load_encoder
    from ssl_vivit.grid import Grid
    from ssl_vivit.pretrained import load_pretrained

__all__ = [
    "Grid",
    "ViViT",
    "ViViTConfig",
    "VideoClassifier",
    "__version__",
    "create_encoder",
    "load_encoder",
    "load_pretrained",
]

__version__ = version("ssl_vivit")
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Grid": "ssl_vivit.grid",
        "ViViT": "ssl_vivit.encoders.vivit",
        "ViViTConfig": "ssl_vivit.encoders.config",
        "VideoClassifier": "ssl_vivit.encoders.classifier",
        "create_encoder": "ssl_vivit.encoders.vivit",
        "load_encoder": "ssl_vivit.encoders.vivit",
        "load_pretrained": "ssl_vivit.pretrained",
    },
)

if "timm" in sys.modules:
    # If timm is loaded, so is torch. Register the named sizes with timm.create_model at once.
    import ssl_vivit.encoders.timm_registry  # noqa: F401
