"""Attention maps of a ViViT encoder, and their figure: ``python -m ssl_vivit.evaluation.attention``."""

from ssl_vivit.evaluation.attention.maps import AttentionMaps, attention_maps

__all__ = ["AttentionMaps", "attention_maps"]
