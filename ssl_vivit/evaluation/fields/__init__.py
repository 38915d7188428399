"""Receptive fields of neurons. Command: ``python -m ssl_vivit.evaluation.fields``."""

from ssl_vivit.evaluation.fields.ellipses import Ellipses, ellipses_of
from ssl_vivit.evaluation.fields.white_noise import NoiseFields, WhiteNoise, reverse_correlation

__all__ = ["Ellipses", "NoiseFields", "WhiteNoise", "ellipses_of", "reverse_correlation"]
