"""Import checkpoints of Scenic, transformers, timm and a public implementation of Model 3.

An imported encoder gives the outputs of the original model. ``python -m
ssl_vivit.encoders.imports SOURCE OUT_DIR`` converts a checkpoint to a directory for
``load_encoder``.
"""

from ssl_vivit.encoders.imports.scenic import from_scenic, read_scenic_checkpoint
from ssl_vivit.encoders.imports.timm import config_from_timm, from_timm
from ssl_vivit.encoders.imports.transformers import from_hf_vivit, from_videomae
from ssl_vivit.encoders.imports.vivit_backbone import from_vivit_backbone

__all__ = [
    "config_from_timm",
    "from_hf_vivit",
    "from_scenic",
    "from_timm",
    "from_videomae",
    "from_vivit_backbone",
    "read_scenic_checkpoint",
]
