"""Earlier name of :mod:`ssl_vivit.evaluation.features.files`, kept for existing code."""

from ssl_vivit.evaluation.features.files import Features, load_features

__all__ = ["Features", "load_features"]
