"""Exported models: directories of weights, settings and a model card, without executable code."""
