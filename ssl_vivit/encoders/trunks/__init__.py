"""Transformer blocks and the four ways in which ViViT attends over space and time."""
