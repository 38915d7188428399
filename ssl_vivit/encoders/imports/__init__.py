"""Weights of others: checkpoints of Scenic, transformers, timm and a public Model 3.

Each import is exact: the same video gives the same numbers. ``python -m ssl_vivit.encoders.imports
SOURCE OUT_DIR`` turns a checkpoint into a directory that ``load_encoder`` opens.
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
