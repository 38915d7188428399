"""Evaluation of encoders and models of neurons; ``encode_video`` computes features of a video."""

from typing import TYPE_CHECKING

from ssl_vivit.lazy_names import lazy_names

if TYPE_CHECKING:
    from ssl_vivit.evaluation.features.encoded_video import encode_video

__all__ = ["encode_video"]

__getattr__, __dir__ = lazy_names(
    __name__, {"encode_video": "ssl_vivit.evaluation.features.encoded_video"}
)
