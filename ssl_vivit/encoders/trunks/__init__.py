"""Transformer blocks, and the transformers of Models 1 to 4."""
