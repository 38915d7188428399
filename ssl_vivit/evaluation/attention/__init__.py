"""Attention of a ViViT encoder, also in a model of neurons, and its figures.

``python -m ssl_vivit.evaluation.attention`` draws them.
"""

from ssl_vivit.evaluation.attention.maps import AttentionMaps, attention_maps
from ssl_vivit.evaluation.attention.trial import TrialAttention, trial_attention

__all__ = ["AttentionMaps", "TrialAttention", "attention_maps", "trial_attention"]
