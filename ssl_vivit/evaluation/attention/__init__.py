"""Attention of ViViT encoders and of models of neurons with a ViViT core.

``python -m ssl_vivit.evaluation.attention`` draws attention as figures.
"""

from ssl_vivit.evaluation.attention.maps import AttentionMaps, attention_maps
from ssl_vivit.evaluation.attention.trial import TrialAttention, trial_attention

__all__ = ["AttentionMaps", "TrialAttention", "attention_maps", "trial_attention"]
